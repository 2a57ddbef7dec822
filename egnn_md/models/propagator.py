"""Propagators of particles: (positions, velocities) -> (positions, velocities) `duration` later, without forces given.

`VelocityEGNN` is the model of Satorras, Hoogeboom, Welling (arXiv 2102.09844, section 5.1): four layers that jump over
the whole duration. `IntegratorPropagator` takes one EGCL, eqs. 3 and 4, as the acceleration in velocity Verlet and
learns it through the many sub-steps of a duration.

Both work in any number of dimensions and for any number of particles. They know nothing of the law of force; the
units of length and time are those of their data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from egnn_md.models.bounds import check_positive, check_sizes
from egnn_md.nn.egnn import EGNN
from egnn_md.shown import Shown

UNITS: Final = {"length": "of the data", "time": "of the data"}


class Particles(NamedTuple):
    """Systems of equally many particles, side by side."""

    positions: Tensor
    """(n_systems, n_particles, n_dim)."""
    velocities: Tensor
    """(n_systems, n_particles, n_dim)."""
    couplings: Tensor
    """(n_systems, n_particles, n_particles), symmetric: what is known of each pair (q_i q_j, or 1 for a spring)."""

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Particles:
        """The same systems elsewhere, in another precision."""
        return Particles(*(value.to(device=device, dtype=dtype) for value in self))


@dataclass(frozen=True)
class VelocityEGNNConfig:
    """Settings of `VelocityEGNN`; defaults are the paper's."""

    duration: float
    """The one duration it is trained for."""
    hidden_dim: int = 64
    n_layers: int = 4
    soft_edges: bool = False
    """Infer which pairs matter, eq. 8."""

    def __post_init__(self) -> None:
        check_sizes(self)
        check_positive(self, "duration")


class VelocityEGNN(Shown, nn.Module):
    """The paper's model: node input |v|, edge inputs the coupling and the squared distance at the start, eq. 7."""

    units: Final = UNITS

    def __init__(self, config: VelocityEGNNConfig) -> None:
        super().__init__()
        self.config = config
        sizes = (config.hidden_dim, None, config.n_layers)
        self.network = EGNN(1, *sizes, edge_dim=2, velocities=True, soft_edges=config.soft_edges)

    def forward(self, particles: Particles, duration: float, **_: Any) -> tuple[Tensor, None]:
        """Positions (n_systems, n_particles, n_dim) after `duration`; it predicts no velocities.

        Raises ValueError for a duration that it was not trained for.
        """
        if not math.isclose(duration, self.config.duration, rel_tol=1e-6):
            raise ValueError(f"this model jumps over {self.config.duration} at once, not {duration}")
        positions, velocities, couplings = particles
        n_systems, n_particles, n_dim = positions.shape
        edges = all_pairs(n_systems, n_particles, positions.device)
        x, v = positions.reshape(-1, n_dim), velocities.reshape(-1, n_dim)
        squared = (x.index_select(0, edges[0]) - x.index_select(0, edges[1])).square().sum(-1)
        known = couplings.reshape(-1).index_select(0, edges[0] * n_particles + edges[1] % n_particles)
        state = self.network(
            v.norm(dim=-1, keepdim=True),
            x,
            edges,
            edge_attributes=torch.stack([known, squared], -1),
            velocities=v,
            batch=torch.arange(n_systems, device=x.device).repeat_interleave(n_particles),
        )
        return state.positions.reshape(positions.shape), None


def all_pairs(n_systems: int, n_particles: int, device: torch.device | None = None) -> Tensor:
    """(2, n_systems * n_particles * (n_particles - 1)): every ordered pair of each system, by its first particle."""
    index = torch.arange(n_particles, device=device)
    i, j = index.repeat_interleave(n_particles), index.repeat(n_particles)
    pairs = torch.stack([i, j])[:, i != j]
    offsets = n_particles * torch.arange(n_systems, device=device)
    return (pairs.unsqueeze(1) + offsets[:, None]).reshape(2, -1)


@dataclass(frozen=True)
class IntegratorConfig:
    """Settings of `IntegratorPropagator`."""

    duration: float
    """What it was trained for; it takes any other too."""
    hidden_dim: int = 32
    n_layers: int = 2
    """Hidden layers of φ_e."""
    substep: float = 5e-4
    """Longest sub-step unless the caller asks for a number of sub-steps."""

    def __post_init__(self) -> None:
        check_sizes(self)
        check_positive(self, "duration", "substep")


class PairAcceleration(nn.Module):
    """a_i = Σ_j (x_i - x_j) φ_x(φ_e(ln d, d, c_ij)): eqs. 3 and 4 of the paper with C = 1, on unordered pairs.

    A pair's message is the same for both, so total momentum is conserved exactly. φ_x gives sign and size apart, u
    exp(s): laws that span decades are within reach of a small network, whatever their form.
    """

    def __init__(self, hidden_dim: int, n_layers: int) -> None:
        super().__init__()
        widths = [3] + [hidden_dim] * n_layers
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.SiLU()]
        self.edge_model = nn.Sequential(*layers)  # φ_e
        self.coordinate_model = nn.Linear(hidden_dim, 2)  # φ_x
        nn.init.normal_(self.coordinate_model.weight, std=0.01)  # free flight at the start
        nn.init.zeros_(self.coordinate_model.bias)

    def forward(self, couplings: Tensor) -> Callable[[Tensor], Tensor]:
        """The acceleration as a function of the positions, both (n_systems, n_particles, n_dim), for these pairs."""
        n = couplings.shape[-1]
        i, j = torch.triu_indices(n, n, 1, device=couplings.device)
        pair = torch.arange(len(i), device=couplings.device)
        signs = couplings.new_zeros(n, len(i))  # (n_particles, n_pairs): +1 for i, -1 for j
        signs[i, pair], signs[j, pair] = 1.0, -1.0
        known = couplings[:, i, j].unsqueeze(-1)

        def acceleration(positions: Tensor) -> Tensor:
            difference = signs.T @ positions
            squared = difference.square().sum(-1, keepdim=True) + 1e-12
            invariants = torch.cat([0.5 * squared.log(), 0.3 * squared.sqrt(), known], -1)
            sign, size = self.coordinate_model(self.edge_model(invariants)).split(1, -1)
            pushed: Tensor = signs @ (difference * sign * size.clamp(max=12.0).exp())
            return pushed

        return acceleration


class IntegratorPropagator(Shown, nn.Module):
    """Velocity Verlet with a learned acceleration: time-reversible, any duration, momentum exactly conserved.

    `velocity_lag` is learned too: the time by which the data's velocities are recorded before their positions (half a
    time step for data from a leapfrog).
    """

    units: Final = UNITS

    def __init__(self, config: IntegratorConfig) -> None:
        super().__init__()
        self.config = config
        self.acceleration = PairAcceleration(config.hidden_dim, config.n_layers)
        self.velocity_lag = nn.Parameter(torch.zeros(1))  # in thousandths of the duration: one learning rate suits all

    def forward(
        self,
        particles: Particles,
        duration: float,
        n_substeps: int | None = None,
        gradient_bound: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Positions and velocities (n_systems, n_particles, n_dim) after `duration`.

        n_substeps: as many as `config.substep` asks for if None. gradient_bound: for training, the longest gradient
        that flows back through a system's trajectory; see `_BoundGradient`.
        """
        if n_substeps is None:
            n_substeps = max(1, math.ceil(abs(duration) / self.config.substep - 1e-6))
        positions, velocities, couplings = particles
        acceleration = self.acceleration(couplings)
        step, lag = duration / n_substeps, 1e-3 * self.config.duration * self.velocity_lag
        a = acceleration(positions)
        velocities = velocities + lag * a
        for _ in range(n_substeps):
            half_way = velocities + 0.5 * step * a
            positions = positions + step * half_way
            a = acceleration(positions)
            velocities = half_way + 0.5 * step * a
            if gradient_bound is not None:
                positions, velocities = _BoundGradient.apply(positions, velocities, gradient_bound)  # type: ignore[no-untyped-call]
        return positions, velocities - lag * a


class _BoundGradient(torch.autograd.Function):
    """Passes (x, v) on; on the way back shortens the gradient of a system where it is longer than the bound.

    Through a close encounter gradients grow without limit, and one such trajectory would drown the whole batch.
    """

    @staticmethod
    def forward(ctx: Any, positions: Tensor, velocities: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(bound)
        return positions.view_as(positions), velocities.view_as(velocities)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (bound,) = ctx.saved_tensors
        length = torch.cat(gradients, -1).square().sum((1, 2), keepdim=True).sqrt()
        scale = (bound / (length + 1e-30)).clamp(max=1.0)
        return gradients[0] * scale, gradients[1] * scale, None
