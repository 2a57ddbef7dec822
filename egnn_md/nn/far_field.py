"""What atoms do to each other at any distance: the potentials of Gaussian charges and of damped dispersion.

    φ(d) = e²/(4πε₀) erf(α d) / d                          of two unit charges, each spread to erf(α d) together
    ψ(d) = -[1 - exp(-x) (1 + x + x²/2)] / d⁶,   x = α² d²  of two unit strengths √C6

Both are finite and smooth at d = 0, so that a network can have all that is near, and both are short in reciprocal space
(Ewald; Karasawa and Goddard, J. Phys. Chem. 93, 7320 (1989)): with α as here, a periodic structure needs no sum in real
space at all. One over the width of `WIDTH` Å: at a distance of 5 Å charges are points to 4e-4.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

from egnn_md.chemistry.units import COULOMB

WIDTH: Final = 2.0
"""1/α, Å."""
CHARGE_AT_ZERO: Final = COULOMB * 2.0 / (math.sqrt(math.pi) * WIDTH)
"""φ(0), eV/e²: what a charge does to itself in a sum over waves."""
STRENGTH_AT_ZERO: Final = -1.0 / (6.0 * WIDTH**6)
"""ψ(0), 1/Å⁶."""
_SMALLEST: Final = 1e-6
"""Of what waves that are left out weigh, relative to the first."""
_SERIES: Final = 0.35
"""Below this x, ψ and its slope are cancellation in float32: their series has the digits."""


class Waves(NamedTuple):
    """Reciprocal vectors of a cell, half of them (k and -k do the same), and what each weighs: E = Σ_k w(k) |S(k)|²."""

    vectors: Tensor
    """k, (n_waves, 3) 1/Å, float64."""
    charges: Tensor
    """w for charges, (n_waves,) eV/e², float64."""
    strengths: Tensor
    """w for strengths, (n_waves,) 1/Å⁶, float64."""
    charges_slope: Tensor
    """∂w/∂k² at constant volume, (n_waves,)."""
    strengths_slope: Tensor
    uniform: Tensor
    """w of k = 0 for strengths, (): the mean density. That of charges is left out: a uniform background makes every
    cell neutral."""


def charge_potential(distances: Tensor) -> tuple[Tensor, Tensor]:
    """φ and its slope, eV/e² and eV/(e² Å), of distances above zero, Å."""
    scaled = distances / WIDTH
    value = torch.erf(scaled) / distances
    slope = (torch.exp(-scaled.square()) * (2.0 / (math.sqrt(math.pi) * WIDTH)) - value) / distances
    return COULOMB * value, COULOMB * slope


def dispersion_potential(distances: Tensor) -> tuple[Tensor, Tensor]:
    """ψ and its slope, 1/Å⁶ and 1/Å⁷, of distances above zero, Å."""
    x = (distances / WIDTH).square()
    decay = torch.exp(-x)
    # [1 - e^-x (1 + x + x²/2)] / x³ near zero, and its derivative by x
    series = 1 / 6 - x * (
        1 / 8 - x * (1 / 20 - x * (1 / 72 - x * (1 / 336 - x * (1 / 1920 - x * (1 / 12960 - x / 100800)))))
    )
    series_slope = -1 / 8 + x * (1 / 10 - x * (1 / 24 - x * (1 / 84 - x * (1 / 384 - x * (1 / 2160 - x / 14400)))))
    small = x < _SERIES
    safe = torch.where(small, 1.0, x)
    value = torch.where(small, series, (1.0 - decay * (1.0 + x + 0.5 * x * x)) / (safe * safe * safe))
    by_x = torch.where(small, series_slope, (0.5 * decay - 3.0 * value) / safe)
    scale = -1.0 / WIDTH**6
    return scale * value, scale * by_x * (2.0 * distances / WIDTH**2)


def waves_of(cell: Tensor) -> Waves:
    """Of a cell (3, 3), rows are vectors, Å."""
    cell = cell.detach().to(torch.float64)
    reciprocal = 2.0 * math.pi * torch.linalg.inv(cell).mT
    volume = torch.linalg.det(cell).abs()
    reach = 2.0 / WIDTH * math.sqrt(-math.log(_SMALLEST))
    most = (reach * torch.linalg.vector_norm(cell, dim=1) / (2.0 * math.pi)).floor().to(torch.int64).tolist()
    ranges = [torch.arange(-n, n + 1, dtype=torch.float64, device=cell.device) for n in most]
    integers = torch.cartesian_prod(*ranges)
    first, second, third = integers.unbind(1)
    half = (first > 0) | ((first == 0) & ((second > 0) | ((second == 0) & (third > 0))))
    vectors = integers[half] @ reciprocal
    squares = vectors.square().sum(1)
    inside = squares <= reach**2
    vectors, squares = vectors[inside], squares[inside]
    with torch.enable_grad():
        squares.requires_grad_(True)
        charges, strengths = _weights(squares)
        slopes = [torch.autograd.grad(w.sum(), squares, retain_graph=True)[0] for w in (charges, strengths)]
    charges, strengths, *slopes = ((w / volume).detach() for w in (charges, strengths, *slopes))
    uniform = -(math.pi**1.5) / (6.0 * WIDTH**3 * volume)
    return Waves(vectors, charges, strengths, slopes[0], slopes[1], uniform)


def _weights(squares: Tensor) -> tuple[Tensor, Tensor]:
    """Transforms of φ and ψ at k², eV Å³/e² and 1/Å³: ½ for each pair counted once, 2 for k and -k."""
    charges = 4.0 * math.pi * COULOMB * torch.exp(-squares * (WIDTH**2 / 4.0)) / squares
    k = squares.sqrt()
    b = k * (WIDTH / 2.0)
    inner = math.sqrt(math.pi) * torch.erfc(b) + (0.5 / b**3 - 1.0 / b) * torch.exp(-b * b)
    strengths = -(math.pi**1.5) / 12.0 * k**3 * inner
    return charges, strengths
