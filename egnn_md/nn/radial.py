"""Functions of the distance, each with its slope: a radial basis, a smooth cutoff, a soft core.

The slopes are written out, because they belong to no weight: a force call takes its gradient by the values of these
functions, and finishes the chain rule with the slopes, instead of tracing dozens of small operations back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from egnn_md.nn.constants import WithConstants

TINY_SQUARE = 1e-12
"""Å², added to squared distances: keeps d and its gradient finite where two points coincide."""


def distance(vectors: Tensor) -> Tensor:
    """Lengths of `vectors` (n_edges, n_dim) -> (n_edges, 1), with a finite gradient (zero) at zero length."""
    return (vectors.square().sum(-1, keepdim=True) + TINY_SQUARE).sqrt()


def cutoff_envelope(distances: Tensor, cutoff: Tensor | float) -> tuple[Tensor, Tensor]:
    """1 at zero distance, 0 from `cutoff` (Å) on; value, slope and curvature vanish there. Value and slope (1/Å).

    1 - 28 x⁶ + 48 x⁷ - 21 x⁸ with x = d / cutoff: the polynomial of Gasteiger et al. (arXiv 2003.03123, eq. 8),
    p = 6. Its slope is -168 x⁵ (1 - x)² / cutoff.
    """
    x = (distances / cutoff).clamp(max=1.0)
    x5 = x.square().square() * x
    value = 1.0 - x5 * x * (28.0 - x * (48.0 - 21.0 * x))
    return value, x5 * (1.0 - x).square() * (-168.0 / cutoff)


def cutoff_value(distances: Tensor, cutoff: Tensor | float) -> Tensor:
    """`cutoff_envelope` without the slope."""
    x = (distances / cutoff).clamp(max=1.0)
    return 1.0 - (x * x * x).square() * (28.0 - x * (48.0 - 21.0 * x))


def soft_core(distances: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Distances that stop shrinking: d from `end` (Å) outwards, constant (start + end)/2 below `start` (Å).

    Value and slope; the slope is the smooth step t³ (10 - 15 t + 6 t²), t = (d - start)/(end - start) in 0 … 1, so that
    the value is twice continuously differentiable. A network that sees only this distance exerts no radial force
    below `start`, whatever it has learned, so that a repulsion added to it has the last word.
    """
    width = end - start
    t = ((distances - start) / width).clamp(0.0, 1.0)
    t3 = t.pow(3)
    inner = end - width * (0.5 - t3 * t * (t * (t - 3.0) + 2.5))
    return torch.where(distances < end, inner, distances), t3 * (10.0 - t * (15.0 - 6.0 * t))


class BesselBasis(WithConstants):
    """sin(k π d / cutoff) / d for k = 1 … n_basis, scaled to order one (Gasteiger et al., arXiv 2003.03123, eq. 7).

    Distances (n_edges, 1) in Å -> values and slopes, each (n_edges, n_basis).
    """

    def __init__(self, n_basis: int, cutoff: float) -> None:
        super().__init__()
        self.scale = math.sqrt(2.0 / cutoff)
        self.constant("frequencies", torch.arange(1, n_basis + 1, dtype=torch.float32) * (math.pi / cutoff))
        self.frequencies: Tensor

    def value(self, distances: Tensor) -> Tensor:
        """Without the slopes."""
        return torch.sin(distances * self.frequencies) * (self.scale / distances)

    def forward(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        phase, inverse = distances * self.frequencies, 1.0 / distances
        value = torch.sin(phase) * (self.scale * inverse)
        return value, (torch.cos(phase) * self.frequencies * self.scale - value) * inverse
