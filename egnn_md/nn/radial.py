"""Functions of the distance: a radial basis, a smooth cutoff, a soft core."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

TINY_SQUARE = 1e-12
"""Å², added to squared distances: keeps d and its gradient finite where two points coincide."""


def distance(vectors: Tensor) -> Tensor:
    """Lengths of `vectors` (n_edges, n_dim) -> (n_edges, 1), with a finite gradient (zero) at zero length."""
    return (vectors.square().sum(-1, keepdim=True) + TINY_SQUARE).sqrt()


def cutoff_envelope(distances: Tensor, cutoff: float) -> Tensor:
    """1 at zero distance, 0 from `cutoff` (Å) on; value, slope and curvature vanish there.

    1 - 28 x⁶ + 48 x⁷ - 21 x⁸ with x = d / cutoff: the polynomial of Gasteiger et al. (arXiv 2003.03123, eq. 8),
    p = 6.
    """
    x = (distances / cutoff).clamp(max=1.0)
    x2 = x.square()
    x6 = x2 * x2 * x2
    return 1.0 - x6 * (28.0 - 48.0 * x + 21.0 * x2)


def soft_core(distances: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Distances that stop shrinking: d from `end` (Å) outwards, constant (start + end)/2 below `start` (Å).

    Twice continuously differentiable. A network that sees only this distance exerts no radial force below
    `start`, whatever it has learned, so that a repulsion added to it has the last word.
    """
    t = ((distances - start) / (end - start)).clamp(0.0, 1.0)
    t4 = t.square().square()
    inner = end - (end - start) * (0.5 - t4 * (t.square() - 3.0 * t + 2.5))
    return torch.where(distances < end, inner, distances)


class BesselBasis(nn.Module):
    """sin(k π d / cutoff) / d for k = 1 … n_basis, scaled to order one (Gasteiger et al., arXiv 2003.03123, eq. 7).

    Distances (n_edges, 1) in Å -> (n_edges, n_basis).
    """

    def __init__(self, n_basis: int, cutoff: float) -> None:
        super().__init__()
        self.scale = math.sqrt(2.0 / cutoff)
        self.register_buffer("frequencies", torch.arange(1, n_basis + 1) * (math.pi / cutoff), persistent=False)
        self.frequencies: Tensor

    def forward(self, distances: Tensor) -> Tensor:
        return torch.sin(distances * self.frequencies) * (self.scale / distances)
