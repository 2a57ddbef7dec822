"""Neighbour lists of many structures side by side, each made anew only when its atoms have moved too far.

Small isolated molecules keep all their pairs and never need a new list. Lengths in Å.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from egnn_md.neighbors.lists import ALL_PAIRS_ATOMS, neighbor_list

if TYPE_CHECKING:
    from ase import Atoms

FEW_PAIRS: Final = 40_000
"""Of isolated molecules of any size: filtering so many is less work than finding which are near."""
DENSEST: Final = 0.1
"""Atoms in an Å³ of a molecule or a liquid, about."""


def expected_edges(atoms: Atoms, reach: float) -> float:
    """About how many edges the structure has within `reach` Å; more rather than fewer."""
    n, sphere = len(atoms), 4.0 / 3.0 * math.pi * reach**3
    if not atoms.pbc.any():
        return n * min(n - 1.0, DENSEST * sphere)
    density = n / atoms.get_volume() if atoms.pbc.all() else 0.0
    return n * sphere * max(density, DENSEST)


class BatchedNeighbors:
    """pairs (2, n_pairs) and shifts of structures side by side; a superset of those within `cutoff`.

    Cells stay as they are. A structure's list reaches cutoff + skin and holds while no atom of it has moved more than
    half the skin. A structure whose positions are NaN or infinite has no pairs: it is its owner's to notice.
    """

    def __init__(self, structures: Sequence[Atoms], cutoff: float, skin: float, device: torch.device) -> None:
        self.reach, self.allowed, self.device = cutoff + skin, (0.5 * skin) ** 2, device
        self.cells = [(np.array(atoms.cell.array), np.array(atoms.pbc)) for atoms in structures]
        self.starts = np.concatenate([[0], np.cumsum([len(atoms) for atoms in structures])]).astype(np.int64)
        self.periodic = any(pbc.any() for _, pbc in self.cells)
        sizes = np.diff(self.starts)
        few = sizes.max(initial=0) <= ALL_PAIRS_ATOMS or np.square(sizes).sum() <= FEW_PAIRS
        self.has_every_pair = not self.periodic and few
        counts = torch.from_numpy(sizes).to(device)
        self.owner = torch.repeat_interleave(torch.arange(len(structures), device=device), counts)
        self.lists: list[tuple[Tensor, Tensor | None]] = []
        self.reference = torch.empty(0)
        self.joined: tuple[Tensor, Tensor | None] = (torch.empty(0), None)

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """positions (n_atoms, 3). The same tensors come back as long as they hold."""
        if self.has_every_pair:
            if self.joined[0].dim() != 2:
                self.joined = self._every_pair(), None
        elif not self.lists:
            self.lists = [(torch.empty(0), None)] * len(self.cells)
            self.reference = torch.full_like(positions, torch.nan)
            self._renew(positions, range(len(self.cells)))
            self._join()
        else:
            moved = (positions - self.reference).square().sum(1)
            gone = sorted(set(self.owner[~(moved <= self.allowed)].tolist()))
            if gone:
                self._renew(positions, gone)
                self._join()
        return self.joined

    def _renew(self, positions: Tensor, which: Sequence[int]) -> None:
        places = positions.detach().cpu().numpy()
        for k in which:
            atoms = slice(self.starts[k], self.starts[k + 1])
            self.reference[atoms] = positions[atoms]
            if np.isfinite(places[atoms]).all():
                index, shift = neighbor_list(places[atoms], *self.cells[k], self.reach)
            else:
                index, shift = np.zeros((2, 0), np.int64), None
            if shift is None and self.periodic:
                shift = np.zeros((index.shape[1], 3), np.int64)
            pairs = torch.from_numpy(np.ascontiguousarray(index + self.starts[k]))
            self.lists[k] = pairs, None if shift is None else torch.from_numpy(shift).double()

    def _join(self) -> None:
        shifts = [shift for _, shift in self.lists if shift is not None]
        index = torch.cat([pairs for pairs, _ in self.lists], 1).to(self.device)
        self.joined = index, torch.cat(shifts).to(self.device) if shifts else None

    def _every_pair(self) -> Tensor:
        """Each pair of the atoms of a structure."""
        starts = torch.from_numpy(self.starts).to(self.device)
        sizes = starts.diff()
        there = torch.arange(int(sizes.max()), device=self.device) < sizes[:, None]
        pairs = (there[:, :, None] & there[:, None]).triu(1)
        structure, i, j = pairs.nonzero(as_tuple=True)
        return starts[structure] + torch.stack([i, j])
