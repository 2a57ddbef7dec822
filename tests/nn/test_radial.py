"""Cutoff envelope, soft core, basis: smoothness where pieces meet."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from egnn_md.nn.radial import BesselBasis, cutoff_envelope, cutoff_value, distance, soft_core

START, END = torch.tensor(0.7, dtype=torch.float64), torch.tensor(1.1, dtype=torch.float64)


def derivatives(function: Callable[[Tensor], Tensor], at: float, orders: int = 2) -> list[float]:
    """Value and derivatives by autograd."""
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    y = function(x)
    found = [y.item()]
    for _ in range(orders):
        (y,) = torch.autograd.grad(y, x, create_graph=True) if y.requires_grad else (torch.zeros_like(x),)
        found.append(y.item())
    return found


@pytest.mark.parametrize(
    ("function", "joint"),
    [
        (lambda d: cutoff_envelope(d, 4.0)[0], 4.0),
        (lambda d: soft_core(d, START, END)[0], 0.7),
        (lambda d: soft_core(d, START, END)[0], 1.1),
    ],
    ids=["envelope at the cutoff", "core's start", "core's end"],
)
def test_value_slope_and_curvature_meet(function: Callable[[Tensor], Tensor], joint: float) -> None:
    step = 1e-6
    for below, above in zip(derivatives(function, joint - step), derivatives(function, joint + step), strict=True):
        assert abs(above - below) < 1e-4  # a jump would stay, this shrinks with the step


def test_envelope_is_the_published_polynomial() -> None:
    p, x = 6, torch.linspace(0, 1, 50, dtype=torch.float64)
    published = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    assert torch.allclose(cutoff_envelope(x * 5.0, 5.0)[0], published, rtol=0, atol=1e-14)


def test_the_value_alone_is_the_same() -> None:
    d = torch.linspace(0, 6, 601, dtype=torch.float64)
    assert torch.allclose(cutoff_value(d, 5.0), cutoff_envelope(d, 5.0)[0], rtol=0, atol=1e-14)
    for dtype in (torch.float32, torch.float64):
        assert (cutoff_value(torch.tensor([5.0, 5.1, 80.0], dtype=dtype), 5.0) == 0).all()


def test_envelope_falls_from_one_to_exactly_zero() -> None:
    for dtype, rounding in [(torch.float32, 5e-6), (torch.float64, 5e-15)]:
        values, _ = cutoff_envelope(torch.linspace(0, 5, 1001, dtype=dtype), 5.0)
        assert values[0] == 1
        assert (values.diff() <= rounding).all()
        assert (cutoff_envelope(torch.tensor([5.0, 5.1, 80.0], dtype=dtype), 5.0)[0] == 0).all()


def test_soft_core_is_the_distance_outside_and_flat_inside() -> None:
    outside = torch.linspace(1.1, 6.0, 20, dtype=torch.float64)
    assert torch.equal(soft_core(outside, START, END)[0], outside)
    inside = torch.linspace(0.0, 0.7, 20, dtype=torch.float64)
    assert torch.allclose(soft_core(inside, START, END)[0], (START + END) / 2, rtol=1e-14)
    whole, _ = soft_core(torch.linspace(0, 2, 2001, dtype=torch.float64), START, END)
    assert (whole.diff() >= 0).all()


def test_distance_is_finite_with_all_derivatives_at_zero_length() -> None:
    for dtype in (torch.float32, torch.float64):
        vectors = torch.zeros(3, 3, dtype=dtype)
        vectors[1] = torch.tensor([3.0, 0.0, 4.0])
        vectors.requires_grad_()
        lengths = distance(vectors)
        (gradient,) = torch.autograd.grad(lengths.sum(), vectors, create_graph=True)
        (second,) = torch.autograd.grad(gradient.sum(), vectors)
        assert math.isclose(lengths[1].item(), 5.0, rel_tol=1e-6)
        assert torch.allclose(gradient[1], vectors[1] / 5, rtol=1e-6)
        assert (gradient[0] == 0).all()
        assert torch.isfinite(second).all()


def test_bessel_functions_are_orthonormal_on_the_sphere() -> None:
    """∫ b_k b_l d² dd = δ_kl up to the cutoff: eq. 7 of arXiv 2003.03123."""
    cutoff, n = 4.0, 20_000
    d = ((torch.arange(n, dtype=torch.float64) + 0.5) * (cutoff / n)).unsqueeze(-1)
    b = BesselBasis(6, cutoff).double()(d)[0] * d
    overlap = b.T @ b * (cutoff / n)
    assert torch.allclose(overlap, torch.eye(6, dtype=torch.float64), atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda d: cutoff_envelope(d, 4.0),
        lambda d: soft_core(d, START, END),
        BesselBasis(6, 4.0).double(),
    ],
    ids=["envelope", "core", "basis"],
)
def test_the_written_slope_is_the_slope(function: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    d = torch.linspace(0.3, 5.0, 200, dtype=torch.float64).unsqueeze(-1).requires_grad_()
    values, slopes = function(d)
    for value, slope in zip(values.unbind(-1), slopes.unbind(-1), strict=True):
        (expected,) = torch.autograd.grad(value.sum(), d, retain_graph=True)
        assert torch.allclose(slope, expected.squeeze(-1), rtol=1e-12, atol=1e-12)
