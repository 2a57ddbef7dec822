"""torch.compile for functions that differentiate inside themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from egnn_md.nn.ops import opaque_sums


def compile_function(
    function: Callable[..., Any], example: tuple[Any, ...], *, inner_gradient: bool = True
) -> Callable[..., Any]:
    """Trace a function, for any sizes, and compile the trace.

    torch.compile alone cannot differentiate twice; traced first, the inner gradient is ordinary code to it.
    `inner_gradient` False: the function differentiates nothing inside itself, and every `detach` of it is meant.
    """
    import torch.fx.experimental._config as fx_config
    from torch.fx.experimental.proxy_tensor import make_fx

    with opaque_sums(), fx_config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
        traced = make_fx(lambda *inputs: function(*inputs), tracing_mode="symbolic", _allow_non_fake_inputs=True)(
            *example
        )
    if inner_gradient:
        _connect_saved_results(traced)
    compiled: Callable[..., Any] = torch.compile(traced, dynamic=True)
    return compiled


def compile_for(function: Callable[..., Any], example: tuple[Tensor, ...]) -> Callable[..., Any]:
    """Trace a function, without gradients, for the sizes of `example` alone, and compile the trace for one thread: with
    more, sums over pairs would be made of atomic additions.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        traced = make_fx(function)(*example)
    compiled: Callable[..., Any] = torch.compile(traced, dynamic=False, options={"cpp.threads": 1})
    return compiled


class CompiledModule:
    """`module(*inputs)`, traced and compiled at the first call; its weights may change between calls.

    Inputs are tensors or named tuples of them, of any sizes; the module differentiates nothing inside itself.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *inputs: Any) -> Any:
        weights = dict(self.module.named_parameters())
        if self._compiled is None:
            self._compiled = compile_function(self._call, (weights, *inputs), inner_gradient=False)
        return self._compiled(weights, *inputs)

    def _call(self, weights: dict[str, Tensor], *inputs: Any) -> Any:
        return torch.func.functional_call(self.module, weights, inputs)


def _connect_saved_results(traced: torch.fx.GraphModule) -> None:
    """Take out every `detach` of a trace: the inner gradient must depend on what it was made of.

    Autograd keeps the result of an operation (rsqrt, exp, sqrt) detached for its backward, and joins it to the graph
    again when a second derivative is asked for. The trace shows the first half only: without this, what the weights
    do to the forces through such results would be missing from the gradient of the loss.
    """
    for node in list(traced.graph.nodes):
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    traced.recompile()
