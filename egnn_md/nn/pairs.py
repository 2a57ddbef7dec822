"""What a network reads of a pair of atoms, with the derivatives by their vector written out.

The energy of a network reaches the positions only through these functions of r_ij: the direction r̂, the distance that
the network may see s(d), the radial basis b(s) and the cutoff envelope f(s). None holds a weight. So the gradient of
the energy by their values, g_r̂, g_b, g_f, gives the gradient by r_ij, in training as in simulation:

    ∂E/∂r_ij = r̂ (g_b·b' + g_f f') s' + (g_r̂ - r̂ (r̂·g_r̂)) / d
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from egnn_md.chemistry.elements import COVALENT_RADII
from egnn_md.nn.constants import WithConstants
from egnn_md.nn.ends import Ends
from egnn_md.nn.ops import kept
from egnn_md.nn.radial import BesselBasis, cutoff_envelope, soft_core
from egnn_md.nn.symmetric import SymmetricSquare
from egnn_md.nn.vector_layer import NEIGHBOR_SCALE, PairGradients, Pairs


@dataclass(frozen=True, eq=False)
class PairValues:
    """Functions of the vector of each pair of a block."""

    pairs: Pairs
    distances: Tensor
    """d, (n_pairs, 1) Å."""
    seen_slope: Tensor
    """s', (n_pairs, 1)."""
    radial_slope: Tensor
    """b', (n_pairs, n_radial)."""
    envelope_slope: Tensor
    """f', (n_pairs, 1)."""
    square: SymmetricSquare | None
    """What made the quadrupoles of `pairs`."""

    def gradient(self, by: PairGradients) -> Tensor:
        """∂E/∂r_ij, (n_pairs, n_dim) eV/Å, from the gradients by the values of `pairs`."""
        assert by.by_directions is not None
        assert by.by_radial is not None
        assert by.by_weight is not None
        direction, by_directions = self.pairs.directions.squeeze(-1), by.by_directions.sum(-1)
        if by.by_quadrupoles is not None and self.square is not None:
            by_directions = by_directions + self.square.vjp(by.by_quadrupoles, self.pairs.directions).squeeze(-1)
        by_seen = torch.addcmul(
            (by.by_radial * self.radial_slope).sum(-1, keepdim=True),
            by.by_weight.sum(-1, keepdim=True),
            self.envelope_slope,
            value=NEIGHBOR_SCALE,
        )
        across = by_directions / self.distances
        along = by_seen * self.seen_slope - (across * direction).sum(-1, keepdim=True)
        return torch.addcmul(across, direction, along)


class PairFunctions(WithConstants):
    """Vectors of pairs -> `PairValues`.

    `seen`, the distance that the network may see, stops shrinking between `core_end` and `core_start`, in sums of
    covalent radii, so that no learned radial force can beat a repulsion that is added to it.
    """

    def __init__(
        self,
        elements: Sequence[int],
        *,
        cutoff: float,
        n_radial: int,
        core_start: float,
        core_end: float,
        quadrupoles: bool = False,
    ) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.basis = BesselBasis(n_radial, cutoff)
        bonds = bond_lengths(elements)
        self.constant("core", torch.stack([core_start * bonds, core_end * bonds], -1).reshape(-1, 2))
        self.core: Tensor
        self.square = SymmetricSquare(3) if quadrupoles else None

    def forward(self, directions: Tensor, distances: Tensor, kinds: Tensor, ends: Ends) -> PairValues:
        """r̂_ij (n_pairs, n_dim), d_ij (n_pairs, 1) Å, elements of each pair (n_pairs,) as a row of `bond_lengths`."""
        start, end = self.core.index_select(0, kinds).chunk(2, 1)
        seen, seen_slope = soft_core(distances, start, end)
        radial, radial_slope = self.basis(seen)
        envelope, envelope_slope = cutoff_envelope(seen, self.cutoff)
        toward = directions.unsqueeze(-1)
        quadrupoles = None if self.square is None else self.square(toward) - self.square.trace
        pairs = Pairs(ends, toward, radial, kept(envelope * NEIGHBOR_SCALE), quadrupoles)
        return PairValues(pairs, distances, seen_slope, radial_slope, envelope_slope, self.square)


def bond_lengths(elements: Sequence[int]) -> Tensor:
    """Sum of the covalent radii of each pair of `elements`, (n_elements²,) Å, float64."""
    radii = torch.tensor([COVALENT_RADII[z] for z in elements], dtype=torch.float64)
    return (radii[:, None] + radii[None, :]).reshape(-1)
