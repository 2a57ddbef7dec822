"""Structures of an engine, or molecules side by side, as `Graph`."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from egnn_md.chemistry.elements import CLOSEST_PAIR
from egnn_md.graph import Graph
from egnn_md.neighbors.lists import DEFAULT_SKIN, BoolArray, FloatArray, IntArray, VerletList


class GraphBuilder:
    """Structures of an engine, step after step, as `Graph`: whatever has not changed is not made again.

    Positions stay in float64: a model takes the differences before it rounds them to its own precision, and leaves the
    pairs of the skin out. The others, their order included, depend on the structure alone and not on the steps before.
    `closest` as in `VerletList`.

    >>> from ase.build import molecule
    >>> build, atoms = GraphBuilder(cutoff=5.0), molecule("CH4")
    >>> build(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc).n_pairs
    10
    """

    def __init__(
        self,
        cutoff: float,
        skin: float = DEFAULT_SKIN,
        *,
        closest: float = CLOSEST_PAIR,
        device: torch.device | str = "cpu",
    ) -> None:
        self.cutoff = cutoff
        self.neighbors = VerletList(cutoff, skin, closest=closest, device=device)
        self.device = torch.device(device)
        self._numbers_key = self._cell_key = b""
        self._numbers = self._batch = self._cell = self._pbc = torch.empty(0)

    def __call__(self, positions: FloatArray, atomic_numbers: IntArray, cell: FloatArray, pbc: BoolArray) -> Graph:
        """Positions (n_atoms, 3) and cell (3, 3, rows are vectors) in Å, atomic_numbers (n_atoms,), pbc (3,).

        Raises ValueError as `VerletList.update`.
        """
        pairs, shifts = self.neighbors.update(positions, cell, pbc)
        numbers_key = atomic_numbers.tobytes()
        if numbers_key != self._numbers_key:
            self._numbers = torch.tensor(atomic_numbers, dtype=torch.int64, device=self.device)
            self._batch = torch.zeros_like(self._numbers)
            self._numbers_key = numbers_key
        cell_key = cell.tobytes() + pbc.tobytes()
        if cell_key != self._cell_key:
            self._cell = torch.tensor(cell, dtype=torch.float64, device=self.device).unsqueeze(0)
            self._pbc = torch.tensor(pbc, device=self.device).unsqueeze(0)
            self._cell_key = cell_key
        return Graph(
            positions=torch.from_numpy(np.array(positions, dtype=np.float64)).to(self.device),
            atomic_numbers=self._numbers,
            pairs=pairs,
            shifts=shifts,
            cell=self._cell,
            pbc=self._pbc,
            batch=self._batch,
        )


def molecules_graph(positions: Tensor, atomic_numbers: Tensor, n_atoms: Tensor, cutoff: float) -> Graph:
    """Isolated molecules side by side, all their distances at once: for many small ones on any device.

    positions (total, 3) in Å and atomic_numbers (total,), one molecule after another; n_atoms (n_molecules,). Pairs
    within `cutoff` Å; math.inf keeps every pair. Needs n_molecules times the square of the largest in memory.
    """
    n_molecules, device = len(n_atoms), positions.device
    starts = torch.cumsum(n_atoms, 0) - n_atoms
    batch = torch.repeat_interleave(torch.arange(n_molecules, device=device), n_atoms)
    slot = torch.arange(len(positions), device=device) - starts[batch]
    padded = positions.new_full((n_molecules, int(n_atoms.max()), 3), math.nan)
    padded[batch, slot] = positions
    near = torch.cdist(padded, padded, compute_mode="donot_use_mm_for_euclid_dist") < cutoff  # NaN is near nothing
    molecule, i, j = near.triu(1).nonzero(as_tuple=True)
    first = starts[molecule]
    return Graph(
        positions=positions,
        atomic_numbers=atomic_numbers,
        pairs=torch.stack([first + i, first + j]),
        shifts=None,
        cell=positions.new_zeros(n_molecules, 3, 3),
        pbc=torch.zeros(n_molecules, 3, dtype=torch.bool, device=device),
        batch=batch,
    )
