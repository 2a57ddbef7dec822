"""Screened nuclear repulsion at short range (Ziegler, Biersack, Littmark 1985), smoothly switched off."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from egnn_md.elements import COVALENT_RADII
from egnn_md.nn.radial import cutoff_envelope, soft_core
from egnn_md.units import COULOMB

_SCREENING_WEIGHTS = (0.18175, 0.50986, 0.28022, 0.02817)
_SCREENING_RATES = (3.19980, 0.94229, 0.40290, 0.20162)


class ShortRange(nn.Module):
    """What every pair of elements does below its bond length, whatever a network has learned.

    Two parts, both twice continuously differentiable. `repulsion` is the ZBL energy
    Z_i Z_j e² φ(d/a) / d, a = 0.46850 Å / (Z_i^0.23 + Z_j^0.23), times an envelope that ends at `reach` times the sum
    of the covalent radii. `core_distance` is the distance that the network may see: it stops shrinking between
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
        self.register_buffer("weights", torch.tensor(_SCREENING_WEIGHTS), persistent=False)
        self.table: Tensor
        self.rates: Tensor
        self.weights: Tensor

    def forward(self, distances: Tensor, species: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        """(repulsion energy of each edge in eV, distance the network may see in Å), each (n_edges, 1).

        `species` (n_atoms,) is the position of each atom's element in `elements`. A pair's energy is that of one of
        its two edges.
        """
        pairs = species.index_select(0, edge_index[0]) * self.n_elements + species.index_select(0, edge_index[1])
        strength, rate, end, core_start, core_end = self.table.index_select(0, pairs).unsqueeze(-1).unbind(1)
        screening = torch.exp(distances * rate * -self.rates) @ self.weights.unsqueeze(-1)
        energy = strength / distances * screening * cutoff_envelope(distances / end, 1.0)
        return energy, soft_core(distances, core_start, core_end)
