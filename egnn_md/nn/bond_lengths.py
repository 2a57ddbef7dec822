"""A sign of distortion: bonds longer or shorter than any of their kind at the minima of the training data."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from egnn_md.chemistry.elements import BOUND, COVALENT_RADII
from egnn_md.nn.ops import segment_sum

MOST_NEIGHBORS: Final = 6
OUTLIERS: Final = 5e-4
"""Fraction of the training bonds of a kind that may lie below its range, and as many above it."""
TOLERANCE: Final = 0.02
"""Å beyond the range that count as one more unit of strain."""


class BondLengths(nn.Module):
    """Strain of each atom's bonds against the lengths in the training data.

    A kind of bond is the element and the number of neighbours of either atom. In the middle of its range a bond has
    strain 0, at the ends 1, and one more for every `TOLERANCE` beyond; a kind never seen has infinite strain. At a
    minimum such ranges are narrow (C-H of a tetrahedral carbon: 1.08 to 1.11 Å), so that thermal motion shows.
    """

    def __init__(self, elements: tuple[int, ...]) -> None:
        super().__init__()
        self.n_kinds = len(elements) * (MOST_NEIGHBORS + 1)
        reach = BOUND * torch.tensor([COVALENT_RADII[z] for z in elements])  # of two atoms, added up: the longest bond
        self.register_buffer("reach", reach, persistent=False)
        self.register_buffer("shortest", torch.full((self.n_kinds**2,), torch.nan))
        self.register_buffer("longest", torch.full((self.n_kinds**2,), torch.nan))
        self.reach: Tensor
        self.shortest: Tensor
        self.longest: Tensor

    def forward(self, distances: Tensor, pairs: Tensor, species: Tensor) -> Tensor:
        """Largest strain of each atom's bonds, (n_atoms,).

        distances (n_pairs,) Å; pairs (2, n_pairs), each once; species (n_atoms,).
        """
        bound, kinds = self._bound(distances, pairs, species)
        low, high = self.shortest.index_select(0, kinds), self.longest.index_select(0, kinds)
        middle, half = (low + high) / 2, ((high - low) / 2).clamp(min=1e-3)
        away = (distances - middle).abs()
        strain = torch.where(away < half, away / half, 1.0 + (away - half) / TOLERANCE)
        strain = torch.where(bound, strain.nan_to_num(nan=math.inf, posinf=math.inf), 0.0)
        return strain.new_zeros(species.shape[0]).scatter_reduce(0, pairs.flatten(), strain.repeat(2), "amax")

    def bonds(self, distances: Tensor, pairs: Tensor, species: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each bond, from either end: its length (Å), its kind, its first atom; (n_bonds,) each."""
        bound, kinds = self._bound(distances, pairs, species)
        back = kinds % self.n_kinds * self.n_kinds + kinds // self.n_kinds
        found = torch.stack([kinds[bound], back[bound]])
        return distances[bound].repeat(2), found.flatten(), pairs[:, bound].flatten()

    def _bound(self, distances: Tensor, pairs: Tensor, species: Tensor) -> tuple[Tensor, Tensor]:
        """Which pairs are bonds, and of what kind they would be, (n_pairs,) each."""
        i, j = pairs
        first, second = species.index_select(0, i), species.index_select(0, j)
        bound = distances < self.reach.index_select(0, first) + self.reach.index_select(0, second)
        n_neighbors = segment_sum(bound.to(i.dtype).repeat(2), pairs.flatten(), species.shape[0]).clamp(
            max=MOST_NEIGHBORS
        )
        kind = species * (MOST_NEIGHBORS + 1) + n_neighbors
        return bound, kind.index_select(0, i) * self.n_kinds + kind.index_select(0, j)

    @torch.no_grad()
    def fit(self, lengths: NDArray[np.float32], kinds: NDArray[np.int64]) -> None:
        """Take the ranges of all bonds of the training data; see `bonds`."""
        order = np.lexsort((lengths, kinds))
        lengths, kinds = lengths[order], kinds[order]
        present, starts, counts = np.unique(kinds, return_index=True, return_counts=True)
        skipped = (OUTLIERS * counts).astype(np.int64)
        for limits, places in ((self.shortest, starts + skipped), (self.longest, starts + counts - 1 - skipped)):
            table = np.full(len(limits), np.nan)
            table[present] = lengths[places]
            limits.copy_(torch.from_numpy(table))
