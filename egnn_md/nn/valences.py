"""A sign of broken chemistry: atoms whose bonds do not add up to a valence that their element has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from egnn_md.chemistry.elements import VALENCES
from egnn_md.nn.constants import WithConstants
from egnn_md.nn.ends import Ends
from egnn_md.nn.pairs import bond_lengths

DECAY: Final = 0.3
"""Å, b in Pauling's bond order exp((r_i + r_j - d)/b) of two atoms with covalent radii r_i and r_j, at distance d."""
LEAST: Final = 1e-3
"""Of a sum of bond orders: an atom alone has this one."""
OUTLIERS: Final = 1e-3
"""Fraction of the training atoms of an element that may lie below its range, and as many above it."""
TOLERANCE: Final = 0.045
"""Beyond the range, in the logarithm of the sum, that counts as 1. A methyl radical is at 2, the limit of warnings."""


class Valences(WithConstants):
    """How far the sum of an atom's bond orders lies outside the range that is known of its element.

    Bond orders (Pauling, J. Am. Chem. Soc. 1947, 69, 542) decay so fast that their sum counts bonds: 4 for carbon, be
    they single or double, 2 for oxygen; 0 for an atom alone. Below 0 the sum lies inside the range. The ranges are
    those of `VALENCES`, widened by the training data (`fit`); of an element that neither knows, the answer is NaN.
    """

    def __init__(self, elements: Sequence[int]) -> None:
        super().__init__()
        self.constant("lengths", bond_lengths(elements).unsqueeze(-1) / DECAY)
        self.lengths: Tensor
        """(r_i + r_j)/b of each pair of elements, (n_elements², 1)."""
        self.constant("outwards", [1.0 / TOLERANCE, -1.0 / TOLERANCE])
        self.outwards: Tensor
        """What makes (smallest, largest) minus a sum positive outside the range, and 1 at `TOLERANCE` from it, (2,)."""
        ranges = torch.tensor([VALENCES.get(z, (math.nan, math.nan)) for z in elements], dtype=torch.float64).log()
        self.register_buffer("ranges", ranges.to(torch.get_default_dtype()))
        self.ranges: Tensor
        """Logarithms of the smallest and the largest sum of each element, (n_elements, 2)."""

    def forward(self, distances: Tensor, kinds: Tensor, ends: Ends, species: Tensor) -> Tensor:
        """d_ij (n_pairs, 1) Å, the elements of each pair (n_pairs,) as a row of `bond_lengths`, species (n_atoms,)
        -> (n_atoms,).
        """
        beyond = self.ranges.index_select(0, species) - self.sums(distances, kinds, ends)
        return (beyond * self.outwards).amax(-1)

    def sums(self, distances: Tensor, kinds: Tensor, ends: Ends) -> Tensor:
        """The logarithm of the sum of each atom's bond orders, (n_atoms, 1)."""
        orders = torch.exp(torch.sub(self.lengths.index_select(0, kinds), distances, alpha=1.0 / DECAY))
        return ends.sum((orders, orders)).clamp(min=LEAST).log()

    @torch.no_grad()
    def fit(self, sums: Tensor, species: Tensor) -> None:
        """Widen the ranges to hold the `sums` (NaN for none) of a sample of training atoms, but for `OUTLIERS`."""
        sums, species = sums[~sums.isnan()].double(), species[~sums.isnan()]
        for s in torch.unique(species).tolist():
            of_element = sums[species == s][:1_000_000]
            low, high = torch.quantile(of_element, of_element.new_tensor([OUTLIERS, 1.0 - OUTLIERS])).to(self.ranges)
            self.ranges[s, 0] = torch.fmin(self.ranges[s, 0], low)
            self.ranges[s, 1] = torch.fmax(self.ranges[s, 1], high)


def stranger(unfamiliar: Tensor, strain: Tensor) -> Tensor:
    """The larger of two signals, (n_atoms,) each: NaN where the first is not known and the second lies in its range."""
    return torch.where(strain > unfamiliar.nan_to_num(0.0), strain, unfamiliar)
