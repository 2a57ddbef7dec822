"""Gather and segment sum: the two moves between atoms and pairs, each the other's gradient.

Eagerly they are plain `index_select` and `index_add`. While a function is traced for torch.compile
(`opaque_sums`), the sum over pairs becomes one operator that the compiler leaves alone: its own code for a scatter
on the CPU is a loop of atomic additions, several times slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

_opaque: ContextVar[bool] = ContextVar("egnn_md_opaque_sums", default=False)


@contextmanager
def opaque_sums() -> Iterator[None]:
    """Within this context, traced code calls the sum over pairs as one opaque operator."""
    token = _opaque.set(True)
    try:
        yield
    finally:
        _opaque.reset(token)


def gather(values: Tensor, index: Tensor) -> Tensor:
    """values[index] along the first dimension: (n, ...), (m,) -> (m, ...)."""
    if _opaque.get():
        out: Tensor = _Gather.apply(values, index)  # type: ignore[no-untyped-call]
        return out
    return values.index_select(0, index)


def segment_sum(values: Tensor, index: Tensor, n_segments: int) -> Tensor:
    """Sum of the rows of `values` that share an index: (m, ...), (m,) -> (n_segments, ...)."""
    if _opaque.get():
        summed: Tensor = _segment_sum(values, index, n_segments)
        return summed
    return values.new_zeros((n_segments, *values.shape[1:])).index_add_(0, index, values)


def add_rows(onto: Tensor | None, index: Tensor, values: Tensor, n_rows: int) -> Tensor:
    """onto (n_rows, ...), None for zero, plus, in row k, the sum of the rows of `values` (m, ...) whose index is k."""
    if onto is None:
        return segment_sum(values, index, n_rows)
    if _opaque.get():
        return onto + segment_sum(values, index, n_rows)
    return onto.index_add(0, index, values)


def add_rows_(onto: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """`add_rows` in place: for what is nobody else's."""
    if _opaque.get():
        return onto + segment_sum(values, index, onto.shape[0])
    return onto.index_add_(0, index, values)


def sum_over_space(values: Tensor) -> Tensor:
    """Σ over the second last dimension, (..., n_dim, k) -> (..., k). Row by row in an eager force call: torch's own sum
    takes twice the time of these additions.
    """
    if not op_by_op(values):
        return values.sum(-2)
    total, *others = values.unbind(-2)
    for row in others:
        total = total + row
    return total


def plus_product(x: Tensor, rows: Tensor, matrix: Tensor) -> Tensor:
    """x + rows @ matrix, rows (..., k), matrix (k, l).

    Where rows are a list x is overwritten: it must be nobody else's, nor what autograd needs again (sums and gathers
    are not).
    """
    return x.addmm_(rows, matrix) if rows.dim() == 2 and x.dim() == 2 else x + rows @ matrix


def ahead_of_time(values: Tensor) -> bool:
    """Whether this is a trace of a force call, to be compiled for any number of atoms and pairs: the first dimension is
    a symbol, and no gradients are tracked.
    """
    return isinstance(values.shape[0], torch.SymInt) and not torch.is_grad_enabled()


def op_by_op(values: Tensor) -> bool:
    """Whether this is an eager force call: no gradients are tracked, and nothing is traced for any size."""
    return not (torch.is_grad_enabled() or isinstance(values.shape[0], torch.SymInt))


def kept(values: Tensor) -> Tensor:
    """The same values (dense, and nobody else's); in a trace `ahead_of_time` they are stored, where the compiler would
    make them again in every loop that reads them: per channel instead of per pair, per pair instead of per atom.
    """
    return values.as_strided(values.shape, values.stride()) if ahead_of_time(values) else values


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows @ matrixᵀ for many rows; `ahead_of_time` with a dense transpose, which makes it a quarter faster."""
    return rows @ matrix.mT.contiguous() if ahead_of_time(rows) else linear(rows, matrix)


def silu_vjp(by: Tensor, x: Tensor) -> Tensor:
    """∂E by x from ∂E by SiLU(x)."""
    if not torch.is_grad_enabled():
        out: Tensor = _silu_backward(by, x)
        return out
    sigmoid = torch.sigmoid(x)  # torch cannot differentiate its own silu_backward
    return by * sigmoid * (1.0 + x * (1.0 - sigmoid))


_silu_backward = torch.ops.aten.silu_backward.default
torch.library.define("egnn_md::segment_sum", "(Tensor values, Tensor index, SymInt n_segments) -> Tensor")
_segment_sum = torch.ops.egnn_md.segment_sum.default


@torch.library.impl("egnn_md::segment_sum", "CompositeExplicitAutograd")
def _sum_rows(values: Tensor, index: Tensor, n_segments: int) -> Tensor:
    return values.new_zeros((n_segments, *values.shape[1:])).index_add_(0, index, values)


@torch.library.register_fake("egnn_md::segment_sum")  # type: ignore[untyped-decorator]
def _(values: Tensor, index: Tensor, n_segments: int) -> Tensor:
    return values.new_empty((n_segments, *values.shape[1:]))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.n = values.shape[0]
        return values.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _segment_sum(grad[0], index, ctx.n), None


def _save_index(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _segment_sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (index,) = ctx.saved_tensors
    out: Tensor = _Gather.apply(grad, index)  # type: ignore[no-untyped-call]
    return out, None, None


torch.library.register_autograd("egnn_md::segment_sum", _segment_sum_backward, setup_context=_save_index)
