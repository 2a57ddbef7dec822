"""Screened nuclear repulsion at short range (Ziegler, Biersack, Littmark 1985), smoothly switched off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from egnn_md.chemistry.elements import COVALENT_RADII
from egnn_md.chemistry.units import COULOMB
from egnn_md.nn.radial import cutoff_envelope, soft_core

_SCREENING_WEIGHTS = (0.18175, 0.50986, 0.28022, 0.02817)
_SCREENING_RATES = (3.19980, 0.94229, 0.40290, 0.20162)


class ShortRangeTerms(NamedTuple):
    """Functions of the distance of each edge, (n_edges, 1)."""

    energy: Tensor
    """Repulsion of the pair, eV."""
    energy_slope: Tensor
    """eV/Å."""
    seen: Tensor
    """The distance that the network may see, Å."""
    seen_slope: Tensor


class ShortRange(nn.Module):
    """What every pair of elements does below its bond length, whatever a network has learned.

    Two parts, each with its slope, both twice continuously differentiable. `energy` is the ZBL energy
    Z_i Z_j e² φ(d/a) / d, a = 0.46850 Å / (Z_i^0.23 + Z_j^0.23), times an envelope that ends at `reach` times the sum
    of the covalent radii. `seen` is the distance that the network may see: it stops shrinking between
    `core_end` and `core_start` (in sums of covalent radii), so that no learned radial force can beat the repulsion.
    """

    def __init__(self, elements: Sequence[int], *, reach: float, core_start: float, core_end: float) -> None:
        super().__init__()
        z = torch.tensor(elements, dtype=torch.float64)
        radii = torch.tensor([COVALENT_RADII[i] for i in elements], dtype=torch.float64)
        bond = radii[:, None] + radii[None, :]
        strength = COULOMB * z[:, None] * z[None, :]
        rate = (z[:, None] ** 0.23 + z[None, :] ** 0.23) / 0.46850
        table = torch.stack([strength, rate, reach * bond, core_start * bond, core_end * bond], -1)
        self.n_elements = len(elements)
        self.register_buffer("table", table.reshape(-1, 5).to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("rates", torch.tensor(_SCREENING_RATES), persistent=False)
        weights = torch.tensor(_SCREENING_WEIGHTS)
        self.register_buffer("weights", torch.stack([weights, -self.rates * weights], -1), persistent=False)
        self.table: Tensor
        self.rates: Tensor
        self.weights: Tensor

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Keep the slope's weights the exact multiples of the value's in the new precision."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        weights = self.weights[:, 0]
        self.weights = torch.stack([weights, -self.rates * weights], -1)
        return self

    def forward(self, distances: Tensor, species: Tensor, edge_index: Tensor) -> ShortRangeTerms:
        """Distances (n_edges, 1) in Å; `species` (n_atoms,) is the position of each atom's element in `elements`.

        The energy is that of the pair, which has two edges.
        """
        pairs = species.index_select(0, edge_index[0]) * self.n_elements + species.index_select(0, edge_index[1])
        strength, rate, end, core_start, core_end = self.table.index_select(0, pairs).unsqueeze(-1).unbind(1)
        screening, slope = (torch.exp(distances * rate * -self.rates) @ self.weights).unsqueeze(-1).unbind(1)
        envelope, envelope_slope = cutoff_envelope(distances, end)
        coulomb = strength / distances
        energy = coulomb * screening * envelope
        energy_slope = coulomb * (slope * rate * envelope + screening * envelope_slope) - energy / distances
        return ShortRangeTerms(energy, energy_slope, *soft_core(distances, core_start, core_end))
