"""Functions of the distance, each with its slope: a radial basis, a smooth cutoff, a soft core.

The slopes are written out, because they belong to no weight: a force call takes its gradient by the values of these
functions, and finishes the chain rule with the slopes, instead of tracing dozens of small operations back.

A call for a small molecule takes as long as it has operations, twice as long for those with a Python number: so
polynomials are sums of `addcmul`, whose `value` costs nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from egnn_md.nn.constants import WithConstants

TINY_SQUARE = 1e-12
"""Å², added to squared distances: keeps d and its gradient finite where two points coincide."""


def distance(vectors: Tensor) -> Tensor:
    """Lengths of `vectors` (n, n_dim) -> (n, 1), with a finite gradient (zero) at zero length."""
    return (vectors.square().sum(-1, keepdim=True) + TINY_SQUARE).sqrt()


def cutoff_envelope(distances: Tensor, cutoff: Tensor | float) -> tuple[Tensor, Tensor]:
    """1 at zero distance, 0 from `cutoff` (Å) on; value, slope and curvature vanish there. Value and slope (1/Å).

    1 - x⁶ - 6 x⁶ u - 21 x⁶ u² with x = d / cutoff, u = 1 - x: the polynomial of Gasteiger et al. (arXiv 2003.03123,
    eq. 8), p = 6. Its slope is -168 x⁵ u² / cutoff.
    """
    x = (distances / cutoff).clamp(max=1.0)
    u = 1.0 - x
    u2, x5 = u.square(), x.square().square() * x
    x6 = x5 * x
    value = torch.addcmul(torch.addcmul(1.0 - x6, x6, u, value=-6.0), x6, u2, value=-21.0)
    return value, x5 * u2 * (-168.0 / cutoff)


def cutoff_value(distances: Tensor, cutoff: Tensor | float) -> Tensor:
    """`cutoff_envelope` without the slope."""
    x = (distances / cutoff).clamp(max=1.0)
    return 1.0 - (x * x * x).square() * (28.0 - x * (48.0 - 21.0 * x))


def soft_core(distances: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Distances that stop shrinking: d from `end` (Å) outwards, constant (start + end)/2 below `start` (Å).

    Value and slope; the slope is the smooth step t³ (1 + 3 u + 6 u²), u = 1 - t, t = (d - start)/(end - start) in
    0 … 1, so that the value is twice continuously differentiable. A network that sees only this distance exerts no
    radial force below `start`, whatever it has learned, so that a repulsion added to it has the last word.
    """
    width = end - start
    t = ((distances - start) / width).clamp(0.0, 1.0)
    u = 1.0 - t
    u2, t3 = u.square(), t.pow(3)
    inner = torch.addcmul(end, width, t3 * t * (u2 + u + 0.5) - 0.5)
    slope = torch.addcmul(torch.addcmul(t3, t3, u, value=3.0), t3, u2, value=6.0)
    return torch.maximum(inner, distances), slope


class BesselBasis(WithConstants):
    """sin(k π d / cutoff) / d for k = 1 … n_basis, scaled to order one (Gasteiger et al., arXiv 2003.03123, eq. 7).

    Distances (n, 1) in Å -> values and slopes, each (n, n_basis).
    """

    def __init__(self, n_basis: int, cutoff: float) -> None:
        super().__init__()
        self.scale = math.sqrt(2.0 / cutoff)
        frequencies = torch.arange(1, n_basis + 1, dtype=torch.float32) * (math.pi / cutoff)
        self.constant("frequencies", frequencies)
        self.constant("scaled", frequencies.double() * self.scale, rounded=False)
        self.frequencies: Tensor
        self.scaled: Tensor
        """frequencies times scale."""

    def value(self, distances: Tensor) -> Tensor:
        """Without the slopes."""
        return torch.sin(distances * self.frequencies) * (self.scale / distances)

    def forward(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        phase, inverse = distances * self.frequencies, distances.reciprocal()
        value = torch.sin(phase) * (inverse * self.scale)
        return value, (torch.cos(phase) * self.scaled - value) * inverse
