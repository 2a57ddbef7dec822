"""Gather and segment sum: the two moves between nodes and edges, each the other's gradient.

Eagerly they are plain `index_select` and `index_add`. While a function is traced for torch.compile
(`opaque_sums`), the sum over edges becomes one operator that the compiler leaves alone: its own code for a scatter
on the CPU is a loop of atomic additions, several times slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_opaque: ContextVar[bool] = ContextVar("egnn_md_opaque_sums", default=False)


@contextmanager
def opaque_sums() -> Iterator[None]:
    """Within this context, traced code calls the sum over edges as one opaque operator."""
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
    return values.new_zeros((n_segments, *values.shape[1:])).index_add(0, index, values)


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
