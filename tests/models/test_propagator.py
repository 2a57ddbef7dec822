"""Laws of the propagators: symmetry, conservation, reversibility, the paper's equations, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from egnn_md.checkpoint import load, save
from egnn_md.models.propagator import (
    IntegratorConfig,
    IntegratorPropagator,
    Particles,
    VelocityEGNN,
    VelocityEGNNConfig,
    all_pairs,
)


def particles(n_dim: int = 3, n_systems: int = 2, n: int = 5, seed: int = 0) -> Particles:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    charges = normal(n_systems, n).sign()
    couplings = charges[:, :, None] * charges[:, None] * (1 - torch.eye(n, dtype=torch.float64))
    return Particles(normal(n_systems, n, n_dim), normal(n_systems, n, n_dim), couplings)


def models() -> list[torch.nn.Module]:
    """Both, with weights large enough for every term to matter."""
    torch.manual_seed(0)
    made: list[torch.nn.Module] = [
        VelocityEGNN(VelocityEGNNConfig(1.0, hidden_dim=8, n_layers=2)),
        IntegratorPropagator(IntegratorConfig(1.0, hidden_dim=8, substep=0.1)),
    ]
    for model in made:
        for p in model.parameters():
            p.data = torch.randn(p.shape, dtype=torch.float64) * max(p.shape[-1], 4) ** -0.5
    return [model.double() for model in made]


def run(model: torch.nn.Module, start: Particles) -> list[Tensor]:
    return [part for part in model(start, 1.0) if part is not None]


@pytest.mark.parametrize("n_dim", [2, 3, 5, 10])
@pytest.mark.parametrize("kind", [0, 1])
def test_rotations_translations_and_order(kind: int, n_dim: int) -> None:
    model, start = models()[kind], particles(n_dim)
    rotation = torch.linalg.qr(torch.randn(n_dim, n_dim, dtype=torch.float64))[0]
    shift, order = torch.randn(n_dim, dtype=torch.float64), torch.tensor([3, 0, 4, 1, 2])
    turned = Particles(
        (start.positions @ rotation + shift)[:, order],
        (start.velocities @ rotation)[:, order],
        start.couplings[:, order][:, :, order],
    )
    expected, found = run(model, start), run(model, turned)
    assert torch.allclose(found[0], (expected[0] @ rotation + shift)[:, order], atol=1e-9)
    assert (expected[0] - start.positions - start.velocities).abs().max() > 1e-3  # something acts
    if len(found) > 1:
        assert torch.allclose(found[1], (expected[1] @ rotation)[:, order], atol=1e-9)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_batch_is_a_loop_and_the_input_is_left_alone(kind: int) -> None:
    model, start = models()[kind], particles(n_systems=3)
    kept = Particles(*(part.clone() for part in start))
    together = run(model, start)[0]
    alone = [run(model, Particles(*(part[k : k + 1] for part in start)))[0] for k in range(3)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-12)
    assert all(torch.equal(part, before) for part, before in zip(start, kept, strict=True))


def test_integrator_conserves_momentum_and_angular_momentum() -> None:
    model, start = models()[1], particles()
    model.velocity_lag.data.zero_()
    x, v = model(start, 1.0)
    assert torch.allclose(v.sum(1), start.velocities.sum(1), atol=1e-10)
    before = torch.linalg.cross(start.positions, start.velocities).sum(1)
    assert torch.allclose(torch.linalg.cross(x, v).sum(1), before, atol=1e-10)


def test_integrator_goes_back_where_it_came_from() -> None:
    model, start = models()[1], particles()
    x, v = model(start, 1.0)
    back = model(Particles(x, v, start.couplings), -1.0)
    assert torch.allclose(back[0], start.positions, atol=1e-9)
    assert torch.allclose(back[1], start.velocities, atol=1e-9)
    assert (x - start.positions).abs().max() > 0.1


def test_integrator_converges_with_second_order() -> None:
    model, start = models()[1].requires_grad_(False), particles()
    fine = model(start, 1.0, n_substeps=1600)[0]
    errors = [float((model(start, 1.0, n_substeps=n)[0] - fine).abs().max()) for n in (50, 100)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)


def test_integrator_with_coulombs_law_is_velocity_verlet() -> None:
    """The acceleration is Σ (x_i - x_j) φ: set φ = c / d³ by hand and compare with the sum over pairs."""
    model, start = models()[1], particles()
    x = start.positions
    known = {}

    def coulomb(invariants: Tensor) -> Tensor:
        known["inputs"] = invariants
        return torch.cat([invariants[..., 2:], -3 * invariants[..., :1]], -1)

    model.acceleration.edge_model = torch.nn.Identity()
    model.acceleration.coordinate_model = _Function(coulomb)
    difference = x[:, :, None] - x[:, None]
    distance = difference.norm(dim=-1) + torch.eye(5)
    expected = (start.couplings / distance**3)[..., None] * difference
    assert torch.allclose(model.acceleration(start.couplings)(x), expected.sum(2), atol=1e-8)


class _Function(torch.nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator,no-any-return]


def test_bounded_gradients_are_the_true_ones_until_they_are_too_long() -> None:
    model, start = models()[1], particles()
    wanted = list(model.parameters())

    def gradients(bound: float | None) -> list[Tensor]:
        limit = None if bound is None else torch.tensor([bound], dtype=torch.float64)
        loss = model(start, 1.0, n_substeps=4, gradient_bound=limit)[0].square().sum()
        return list(torch.autograd.grad(loss, wanted))

    free, loose, tight = gradients(None), gradients(1e6), gradients(1e-3)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(free, loose, strict=True))
    assert sum(g.square().sum() for g in tight) < 1e-3 * sum(g.square().sum() for g in free)
    assert all(torch.isfinite(g).all() for g in tight)


def test_coincident_particles_stay_finite() -> None:
    model, start = models()[1], particles()
    start.positions[:, 1] = start.positions[:, 0]
    start.positions.requires_grad_(True)
    x, _ = model(start, 0.1)
    assert torch.isfinite(torch.autograd.grad(x.sum(), start.positions)[0]).all()


def test_paper_model_jumps_over_its_own_duration_only() -> None:
    with pytest.raises(ValueError, match=r"jumps over 1\.0 at once"):
        models()[0](particles(), 0.5)
    for duration in (0.0, float("nan"), float("inf"), True, "1"):
        with pytest.raises(ValueError, match="must be a positive number"):
            IntegratorConfig(duration)  # type: ignore[arg-type]


def test_pairs_are_all_and_stay_within_their_system() -> None:
    pairs = all_pairs(2, 3).T.tolist()
    inside = [[i, j] for i in range(3) for j in range(3) if i != j]
    assert pairs == inside + [[i + 3, j + 3] for i, j in inside]


@pytest.mark.parametrize("kind", [0, 1])
def test_checkpoints_hold_the_whole_model(kind: int, tmp_path: Path) -> None:
    model, start = models()[kind], particles()
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    for one, other in zip(run(model, start), run(again, start), strict=True):
        assert torch.equal(one, other)
