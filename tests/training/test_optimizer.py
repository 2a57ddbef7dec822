"""Muon and Adam: against their definitions, and on a problem they must solve."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from egnn_md.training.optimizer import MuonAdam, build_optimizer, orthogonalize, schedule, split_parameters


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.SiLU(), nn.Linear(12, 12), nn.SiLU(), nn.Linear(12, 1)).double()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 6, generator=generator, dtype=torch.float64)
    return x, (x[:, :1] * x[:, 1:2]).sin()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> float:
    x, y = data()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    return float((model(x) - y).square().mean().detach())


def test_adam_is_adam() -> None:
    """torch's own but for where ε = 1e-8 stands, which gradients of order one do not notice."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = nn.Parameter(torch.zeros(50)), nn.Parameter(torch.zeros(50))
    optimizers = MuonAdam([], [ours], 1e-2, 0.5), torch.optim.Adam([theirs], 5e-3, betas=(0.9, 0.99))
    for _ in range(40):
        ours.grad = theirs.grad = torch.randn(50, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    assert theirs.detach().abs().max() > 0.01
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (64, 130)])
def test_orthogonalize_keeps_the_singular_vectors_and_levels_the_values(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(shape[0], shape[0], generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(shape[1], shape[0], generator=generator, dtype=torch.float64))
    spectrum = torch.logspace(0, -1.3, shape[0], dtype=torch.float64)
    found = orthogonalize(((u * spectrum) @ v.T * 37.0).unsqueeze(0))[0]
    values = u.T @ found @ v
    off_diagonal = values - torch.diag(values.diagonal())
    assert off_diagonal.abs().max() < 1e-10
    assert values.diagonal().min() > 0.4
    assert values.diagonal().max() < 1.3


def test_orthogonalize_treats_each_matrix_of_a_batch_alone() -> None:
    torch.manual_seed(0)
    batch = torch.randn(3, 5, 9, dtype=torch.float64)
    alone = torch.cat([orthogonalize(matrix.unsqueeze(0)) for matrix in batch])
    assert torch.allclose(orthogonalize(batch), alone, rtol=1e-12)
    assert torch.equal(orthogonalize(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_muon_updates_have_the_size_of_adam_s(shape: tuple[int, int]) -> None:
    """Root mean square 0.2 per unit of learning rate, whatever the gradient's scale and the matrix's shape."""
    torch.manual_seed(0)
    for scale in (1e-5, 1.0, 1e4):
        weight = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
        weight.grad = torch.randn(shape, dtype=torch.float64) * scale
        MuonAdam([weight], [], 0.1, 1.0).step()
        assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.02, rel=0.2)
        assert float((weight.detach() * weight.grad).sum()) < 0  # downhill


def test_muon_solves_what_adam_solves() -> None:
    start = train(network(), torch.optim.SGD(network().parameters(), 0.0), 1)
    for name in ("muon", "adam"):
        model = network()
        assert train(model, build_optimizer(model, name, 2e-2), 200) < 0.1 * start, name


def test_every_parameter_has_one_optimizer() -> None:
    model = nn.ModuleDict({"layers": network(), "embedding": nn.Embedding(9, 9)})
    matrices, others = split_parameters(model)
    assert {tuple(p.shape) for p in matrices} == {(12, 6), (12, 12)}
    assert {id(p) for p in matrices} | {id(p) for p in others} == {id(p) for p in model.parameters()}
    assert len(matrices) + len(others) == len(list(model.parameters()))
    assert any(p is model["embedding"].weight for p in others)


def test_resumed_is_uninterrupted() -> None:
    """State through state_dict, bit for bit."""
    whole = network()
    train(whole, build_optimizer(whole, "muon", 1e-2), 20)
    first = network()
    optimizer = build_optimizer(first, "muon", 1e-2)
    train(first, optimizer, 8)
    second = copy.deepcopy(first)
    resumed = build_optimizer(second, "muon", 1e-2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(second, resumed, 12)
    for mine, other in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_parameters_without_gradient_stay() -> None:
    model = network()
    kept = [p.detach().clone() for p in model.parameters()]
    build_optimizer(model, "muon", 1.0).step()
    assert all(torch.equal(p, before) for p, before in zip(model.parameters(), kept, strict=True))


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_schedules_rise_and_fall(kind: str) -> None:
    factor = schedule(kind, 10, lambda step: min(1.0, step / 100))
    values = [factor(step) for step in range(101)]
    assert values[0] == pytest.approx(1 / 11)
    assert all(late > early for early, late in pairwise(values[:10]))
    assert all(late <= early for early, late in pairwise(values[11:]))
    assert max(values) <= 1
    assert values[100] == pytest.approx(1.0 if kind == "constant" else 0.0, abs=1e-12)
    assert schedule("linear", 0, lambda step: step / 100)(50) == pytest.approx(0.5)
    assert schedule("cosine", 0, lambda step: step / 100)(25) == pytest.approx(0.5 + 0.5**1.5)
