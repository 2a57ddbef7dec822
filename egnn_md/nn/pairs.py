"""Everything about a pair that depends on its edge vector alone, with derivatives written out.

The energy reaches the positions only through these functions of r_ij: the direction r̂, the distance the network may
see s(d), the radial basis b(s), the cutoff envelope f(s) and the repulsion E_ZBL(d). None holds a weight. So one
gradient of the energy by their values, g_r̂, g_s, g_b, g_f, gives the gradient by r_ij, in training as in simulation:

    ∂E/∂r_ij = r̂ [(g_s + g_b·b' + g_f f') s' + ½ E_ZBL'] + (g_r̂ - r̂ (r̂·g_r̂)) / d
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from egnn_md.nn.radial import BesselBasis, cutoff_envelope, distance
from egnn_md.nn.repulsion import ShortRange


@dataclass(frozen=True, eq=False)
class Pairs:
    """Functions of each edge vector. `values` are what a network reads."""

    index: Tensor
    """(2, n_edges): centre i, neighbour j."""
    directions: Tensor
    """r̂_ij, (n_edges, n_dim, 1)."""
    seen: Tensor
    """s(d), (n_edges, 1) Å."""
    radial: Tensor
    """b(s), (n_edges, n_radial)."""
    envelope: Tensor
    """f(s), (n_edges, 1)."""
    repulsion: Tensor
    """E_ZBL(d) of the pair, (n_edges, 1) eV."""
    distances: Tensor
    """d, (n_edges, 1) Å."""
    slopes: tuple[Tensor, Tensor, Tensor, Tensor]
    """s', b', f' and E_ZBL', shaped as what they belong to."""

    @property
    def values(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """By which the energy is to be differentiated for `gradient`."""
        return self.directions, self.seen, self.radial, self.envelope

    def gradient(self, by_values: Sequence[Tensor | None]) -> Tensor:
        """∂E/∂r_ij, (n_edges, n_dim) eV/Å, from the gradients by `values` (None: not used)."""
        by_direction, by_seen, by_radial, by_envelope = by_values
        seen_slope, radial_slope, envelope_slope, repulsion_slope = self.slopes
        direction = self.directions.detach().squeeze(-1)
        along = 0.5 * repulsion_slope
        if by_radial is not None:
            along = torch.addcmul(along, (by_radial * radial_slope).sum(-1, keepdim=True), seen_slope)
        if by_envelope is not None:
            along = torch.addcmul(along, by_envelope, envelope_slope * seen_slope)
        if by_seen is not None:
            along = torch.addcmul(along, by_seen, seen_slope)
        if by_direction is None:
            return along * direction
        by_direction = by_direction.squeeze(-1) / self.distances
        return by_direction + direction * (along - (by_direction * direction).sum(-1, keepdim=True))


class PairFunctions(nn.Module):
    """Edge vectors -> `Pairs`; see the functions in `radial` and `repulsion`."""

    def __init__(
        self,
        elements: Sequence[int],
        *,
        cutoff: float,
        n_radial: int,
        repulsion_reach: float,
        core_start: float,
        core_end: float,
    ) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.basis = BesselBasis(n_radial, cutoff)
        self.short_range = ShortRange(elements, reach=repulsion_reach, core_start=core_start, core_end=core_end)

    @torch.no_grad()
    def forward(self, vectors: Tensor, species: Tensor, edge_index: Tensor) -> Pairs:
        """r_ij (n_edges, n_dim) in Å, species (n_atoms,) positions in `elements`, edge_index (2, n_edges).

        The values come ready to be differentiated by, and have no history.
        """
        distances = distance(vectors)
        repulsion, repulsion_slope, seen, seen_slope = self.short_range(distances, species, edge_index)
        radial, radial_slope = self.basis(seen)
        envelope, envelope_slope = cutoff_envelope(seen, self.cutoff)
        return Pairs(
            index=edge_index,
            directions=(vectors / distances).unsqueeze(-1).requires_grad_(),
            seen=seen.requires_grad_(),
            radial=radial.requires_grad_(),
            envelope=envelope.requires_grad_(),
            repulsion=repulsion,
            distances=distances,
            slopes=(seen_slope, radial_slope, envelope_slope, repulsion_slope),
        )
