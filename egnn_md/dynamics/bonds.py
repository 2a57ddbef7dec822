"""The bond graph of isolated molecules, and a watch over it during dynamics."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from egnn_md.chemistry.elements import BOUND, COVALENT_RADII, symbol
from egnn_md.neighbors import molecules_graph

LOST, FORMED = 1.7, 1.2  # as BOUND, times the sum of the covalent radii


class BondWatch:
    """Remembers the first broken or new bond of each molecule."""

    def __init__(self, positions: Tensor, atomic_numbers: Tensor, n_atoms: Tensor) -> None:
        """positions (total, 3) in Å and atomic_numbers (total,), one molecule after another; n_atoms of each."""
        graph = molecules_graph(positions, atomic_numbers, n_atoms, math.inf)
        self.pairs = graph.pairs
        self.numbers, self.molecule = atomic_numbers, graph.batch[self.pairs[0]]
        radii = torch.tensor(COVALENT_RADII, dtype=positions.dtype, device=positions.device)
        self.bond_length = radii[self.numbers[self.pairs]].sum(0)
        self.bound = self._ratios(positions) < BOUND
        self.first: dict[int, tuple[float, str]] = {}
        """Molecule -> (time in ps, what happened)."""

    def _ratios(self, positions: Tensor) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(positions[self.pairs[0]] - positions[self.pairs[1]], dim=-1)
        return lengths / self.bond_length

    def look(self, time_ps: float, positions: Tensor) -> None:
        """Compare the bonds at `positions` (n_atoms, 3) with those at the start; NaN counts as lost."""
        ratios = self._ratios(positions)
        wrong = torch.where(self.bound, ~(ratios < LOST), ~(ratios > FORMED))
        for pair in torch.nonzero(wrong).flatten().tolist():
            molecule = int(self.molecule[pair])
            if molecule not in self.first:
                names = "-".join(symbol(z) for z in self.numbers[self.pairs[:, pair]].tolist())
                event = "lost" if self.bound[pair] else "formed"
                self.first[molecule] = (time_ps, f"{names} {event} at {float(ratios[pair]):.2f} of the radii")
