"""Gather and segment sum, plain and opaque, with first and second derivatives."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from egnn_md.nn.ops import gather, opaque_sums, segment_sum

INDEX = torch.tensor([2, 0, 2, 3, 0, 2])
N = 5  # segments 1 and 4 stay empty


def values(rows: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, *shape, generator=generator, dtype=torch.float64, requires_grad=True)


modes = pytest.mark.parametrize("mode", [nullcontext, opaque_sums], ids=["plain", "opaque"])


@modes
@pytest.mark.parametrize("shape", [(), (3,), (3, 2)], ids=str)
def test_both_do_what_indexing_does(mode: type, shape: tuple[int, ...]) -> None:
    nodes, edges = values(N, *shape), values(len(INDEX), *shape)
    with mode():
        gathered, summed = gather(nodes, INDEX), segment_sum(edges, INDEX, N)
    assert torch.equal(gathered, torch.stack([nodes[i] for i in INDEX.tolist()]))
    for k in range(N):
        assert torch.allclose(summed[k], edges[k == INDEX].sum(0), rtol=1e-14, atol=1e-15)


@modes
def test_derivatives_are_exact_to_second_order(mode: type) -> None:
    """On a cubic function of each, so that second derivatives are not zero."""

    def through_gather(x: Tensor) -> Tensor:
        with mode():
            return gather(x**3, INDEX) ** 2

    def through_sum(x: Tensor) -> Tensor:
        with mode():
            return segment_sum(x**3, INDEX, N) ** 2

    for function, x in [(through_gather, values(N, 2)), (through_sum, values(len(INDEX), 2))]:
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)


@modes
def test_gradients_equal_those_of_plain_indexing(mode: type) -> None:
    x = values(N, 2)

    def second_gradient(opaque: bool) -> Tensor:
        with opaque_sums() if opaque else mode():
            energy = (segment_sum(gather(x, INDEX).sin() * 2, INDEX, N) ** 2).sum()
            (gradient,) = torch.autograd.grad(energy, x, create_graph=True)
            return torch.autograd.grad(gradient.square().sum(), x)[0]

    def plainly() -> Tensor:
        summed = torch.zeros(N, 2, dtype=torch.float64).index_add(0, INDEX, x[INDEX].sin() * 2)
        (gradient,) = torch.autograd.grad((summed**2).sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    assert torch.allclose(second_gradient(mode is opaque_sums), plainly(), rtol=1e-13)


def test_the_operator_keeps_torch_s_contract() -> None:
    """Schema, fake tensors and autograd registration, as torch itself checks a custom operator."""
    sample = (values(len(INDEX), 3), INDEX, N)
    torch.library.opcheck(torch.ops.egnn_md.segment_sum.default, sample)


def test_opaque_mode_ends_with_its_context() -> None:
    """Also after an error: later calls must be plain again."""
    with pytest.raises(RuntimeError, match="on purpose"), opaque_sums():
        raise RuntimeError("on purpose")
    summed = segment_sum(values(len(INDEX), 2), INDEX, N)
    assert summed.grad_fn is not None
    assert "IndexAdd" in summed.grad_fn.name()


def test_no_edges_sum_to_zero() -> None:
    empty = torch.empty(0, dtype=torch.int64)
    for mode in (nullcontext, opaque_sums):
        with mode():
            assert torch.equal(segment_sum(torch.empty(0, 3), empty, 2), torch.zeros(2, 3))
            assert gather(torch.ones(2, 3), empty).shape == (0, 3)
