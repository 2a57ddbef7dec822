"""How far a propagator is from the N-body benchmark: squared errors of positions from one frame to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from egnn_md.data import nbody
from egnn_md.data.frames import DataError
from egnn_md.evaluation.evaluate import Evaluation, EvaluationError, Request
from egnn_md.evaluation.figures import figure
from egnn_md.models.propagator import Particles, VelocityEGNN

FRAMES = (30, 40)
"""Of the benchmark."""


@dataclass(frozen=True)
class NBodyMetrics:
    """Squared errors, averaged over the components of all particles, then over trajectories. NaN counts as NaN."""

    mse: float
    median_se: float
    mse_p80: float
    """Mean of the lowest 80 %: what remains without the rare close encounters."""
    n: int
    """Trajectories."""

    @staticmethod
    def of(squared_errors: NDArray[np.float64]) -> NBodyMetrics:
        """From the squared error of each trajectory, (n,)."""
        ordered, n = np.sort(squared_errors), len(squared_errors)
        lowest = ordered[: max(1, int(0.8 * n))]
        return NBodyMetrics(float(ordered.mean()), float(np.median(ordered)), float(lowest.mean()), n)


def particles_at(trajectories: nbody.Trajectories, frame: int, dtype: torch.dtype = torch.float32) -> Particles:
    """The systems as they are in a frame. Raises DataError if the frame is not there."""
    column = trajectories.column(frame)
    parts = (trajectories.positions[:, column], trajectories.velocities[:, column], trajectories.couplings)
    return Particles(*(torch.from_numpy(np.ascontiguousarray(part)).to(dtype) for part in parts))


@torch.no_grad()
def squared_errors(
    model: nn.Module,
    trajectories: nbody.Trajectories,
    frames: tuple[int, int] = FRAMES,
    batch_size: int = 500,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **options: Any,
) -> NDArray[np.float64]:
    """(n_systems,): squared error of the predicted positions, averaged over components.

    `options` go to the model (n_substeps). Raises DataError if a frame is missing.
    """
    weight = next(model.parameters())
    start = particles_at(trajectories, frames[0], weight.dtype).to(weight.device)
    target = particles_at(trajectories, frames[1]).positions.double()
    errors = []
    for first in range(0, len(target), batch_size):
        rows = slice(first, first + batch_size)
        here = Particles(*(part[rows] for part in start))
        positions, _ = model(here, nbody.duration(*frames), **options)
        errors.append((positions.cpu().double() - target[rows]).square().mean((1, 2)))
        progress(min(first + batch_size, len(target)), len(target))
    return torch.cat(errors).numpy()


def evaluate_file(model: nn.Module, header: Mapping[str, Any], request: Request) -> Evaluation:
    """`egnn-md evaluate` of a propagator: frame 30 to 40 of the test side unless another is asked for."""
    side = request.split or "test"
    if side == "all":
        raise EvaluationError("particles are divided into sides: --split train, valid or test")
    trajectories = nbody.read(request.file, side)
    trajectories.check_law(header)
    if isinstance(model, VelocityEGNN) and not np.isclose(model.config.duration, nbody.duration(*FRAMES)):
        raise EvaluationError(f"this model jumps over {model.config.duration}; the two frames are 1.0 apart")
    errors = squared_errors(model, trajectories, batch_size=max(request.batch_size, 500), progress=request.progress)
    if not np.isfinite(errors).all():
        raise DataError(f"{int((~np.isfinite(errors)).sum())} trajectories of {request.file} come out as no number")
    found = NBodyMetrics.of(errors)
    values = {"mse": found.mse, "median_se": found.median_se, "mse_p80": found.mse_p80, "n": found.n}
    return Evaluation(
        values=values,
        columns=("side", "trajectories", "MSE", "median", "mean of the lowest 80 %"),
        rows=[[side, str(found.n), *(f"{values[name]:.3g}" for name in ("mse", "median_se", "mse_p80"))]],
        note=f"squared error of positions per component, frame {FRAMES[0]} to {FRAMES[1]}",
        plot=partial(plot_errors, errors),
    )


def plot_errors(errors: NDArray[np.float64], picture: Path) -> None:
    """The squared errors in order: how many trajectories are how far off."""
    drawn, axes = figure(6.0)
    axes.plot(np.arange(1, len(errors) + 1) / len(errors), np.sort(errors), lw=1.5)
    axes.axhline(errors.mean(), color="0.5", lw=0.8, ls="--", label=f"mean {errors.mean():.2g}")
    axes.set(xlabel="fraction of the trajectories", ylabel="squared error below", yscale="log")
    axes.legend()
    drawn.savefig(picture, dpi=150)
