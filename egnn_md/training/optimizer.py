"""Muon for matrices, Adam for the rest, in one optimizer.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces the momentum of a weight matrix by the nearest
orthogonal matrix, found with five Newton-Schulz steps. torch.optim.Muon iterates in bfloat16, matrix by matrix; on a
CPU that costs more than the training step. Here equal shapes go through in one batch, in the weights' own precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_UPDATE_RMS = 0.2
"""Root mean square of an update at learning rate 1, as Adam's (Liu et al., arXiv 2502.16982)."""


class MuonAdam(torch.optim.Optimizer):
    """Muon on the matrices of linear layers, Adam (β 0.9, 0.99) on embeddings, biases and vectors.

    Parameters
    ----------
    matrices, others: the weights of each kind (see `split_parameters`). learning_rate: Muon's.
    adam_scale: Adam's learning rate in units of `learning_rate`.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], others: Iterable[nn.Parameter], learning_rate: float, adam_scale: float
    ) -> None:
        groups = [
            {"params": list(matrices), "lr": learning_rate, "muon": True},
            {"params": list(others), "lr": learning_rate * adam_scale, "muon": False},
        ]
        super().__init__([group for group in groups if group["params"]], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if with_grad := [p for p in group["params"] if p.grad is not None]:
                (self._muon if group["muon"] else self._adam)(with_grad, group["lr"])
        return loss

    def _muon(self, parameters: list[Tensor], learning_rate: float) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        gradients, momenta = _gradients(parameters), [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 0.05)
        updates = torch._foreach_lerp(gradients, momenta, 0.95)  # Nesterov
        by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
        for p, update in zip(parameters, updates, strict=True):
            wide = update if p.shape[0] <= p.shape[1] else update.T
            by_shape.setdefault(tuple(wide.shape), []).append((p, wide))
        for shape, pairs in by_shape.items():
            found = orthogonalize(torch.stack([update for _, update in pairs])).unbind()
            turned = [
                update if p.shape[0] <= p.shape[1] else update.T for (p, _), update in zip(pairs, found, strict=True)
            ]
            torch._foreach_add_([p for p, _ in pairs], turned, alpha=-learning_rate * _UPDATE_RMS * max(shape) ** 0.5)

    def _adam(self, parameters: list[Tensor], learning_rate: float) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p].update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
            self.state[p]["step"] += 1
        states, gradients = [self.state[p] for p in parameters], _gradients(parameters)
        means, squares = [state["mean"] for state in states], [state["square"] for state in states]
        torch._foreach_lerp_(means, gradients, 0.1)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 0.01)
        lengths = torch._foreach_sqrt(squares)
        torch._foreach_add_(lengths, 1e-8)
        scales = [((1 - 0.99 ** state["step"]) ** 0.5) / (1 - 0.9 ** state["step"]) for state in states]
        torch._foreach_addcdiv_(parameters, means, lengths, [-learning_rate * scale for scale in scales])


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    found = [p.grad for p in parameters if p.grad is not None]
    assert len(found) == len(parameters)
    return found


def orthogonalize(matrices: Tensor) -> Tensor:
    """Nearly U Vᵀ of each matrix U S Vᵀ in a batch (n, rows <= columns): singular values end up in 0.7 … 1.2."""
    a, b, c = _NEWTON_SCHULZ
    x: Tensor = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-12)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices of linear layers wider than 4 on both sides, everything else)."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    for p in model.parameters():
        is_matrix = id(p) in linear and min(p.shape) > 4
        (matrices if is_matrix else others).append(p)
    return matrices, others


def build_optimizer(model: nn.Module, name: str, learning_rate: float) -> torch.optim.Optimizer:
    """ "muon" or "adam", with the learning rate on every group."""
    matrices, others = split_parameters(model)
    if name == "adam":
        return MuonAdam([], [*matrices, *others], learning_rate, 1.0)
    return MuonAdam(matrices, others, learning_rate, 2.0 / 3.0)


def schedule(kind: str, warmup_steps: int, progress: Callable[[int], float]) -> Callable[[int], float]:
    """Learning rate in units of its peak, as a function of the step; `progress` is the fraction of the training that is
    over before a step.
    """
    import math

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / (warmup_steps + 1))
        done = progress(step)
        falling: dict[str, Any] = {
            "linear": 1.0 - done,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * done)),
            "constant": 1.0,
        }
        return float(warm * falling[kind])

    return factor
