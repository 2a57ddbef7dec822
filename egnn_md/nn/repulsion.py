"""Screened nuclear repulsion at short range (Ziegler, Biersack, Littmark 1985), smoothly switched off."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from egnn_md.chemistry.units import COULOMB
from egnn_md.nn.constants import WithConstants
from egnn_md.nn.pairs import bond_lengths
from egnn_md.nn.radial import cutoff_envelope

_SCREENING_WEIGHTS = (0.18175, 0.50986, 0.28022, 0.02817)
_SCREENING_RATES = (3.19980, 0.94229, 0.40290, 0.20162)


class Repulsion(WithConstants):
    """What every pair of nuclei does below its bond length, whatever a network has learned.

    Z_i Z_j e² φ(d/a) / d, a = 0.46850 Å / (Z_i^0.23 + Z_j^0.23), times an envelope that ends at `reach` times the sum
    of the covalent radii; twice continuously differentiable.
    """

    def __init__(self, elements: Sequence[int], *, reach: float) -> None:
        super().__init__()
        z = torch.tensor(elements, dtype=torch.float64)
        strength = COULOMB * z[:, None] * z[None, :]
        rate = (z[:, None] ** 0.23 + z[None, :] ** 0.23) / 0.46850
        ends = reach * bond_lengths(elements)
        self.constant("table", torch.stack([strength.reshape(-1), rate.reshape(-1), ends], -1))
        rates, weights = (torch.tensor(c, dtype=torch.float32).double() for c in (_SCREENING_RATES, _SCREENING_WEIGHTS))
        self.constant("rates", -rates)
        self.constant("weights", torch.stack([weights, -rates * weights], -1), rounded=False)
        self.table: Tensor
        self.rates: Tensor
        self.weights: Tensor

    def forward(self, distances: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (n_pairs, 1) in Å and the elements of each pair (n_pairs,), as a row of `bond_lengths` -> energy of
        the pair (n_pairs, 1) eV, and its slope, eV/Å.
        """
        strength, rate, end = self.table.index_select(0, kinds).chunk(3, 1)
        screening, slope = (torch.exp(distances * rate * self.rates) @ self.weights).chunk(2, 1)
        envelope, envelope_slope = cutoff_envelope(distances, end)
        coulomb = strength / distances
        energy = coulomb * screening * envelope
        along = torch.addcmul(slope * rate * envelope, screening, envelope_slope)
        return energy, coulomb * along - energy / distances
