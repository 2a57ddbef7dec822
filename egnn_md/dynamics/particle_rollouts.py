"""Rollouts of particles: a propagator applied again and again to its own predictions.

A run folder holds trajectory.npz (arrays below), summary.json, errors.png and conserved.png, and animation.gif of the
first system; the command line leaves report.html too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from egnn_md.data import nbody
from egnn_md.data.frames import DataError
from egnn_md.dynamics.state import RunError
from egnn_md.evaluation.figures import without_failing
from egnn_md.models.propagator import IntegratorPropagator, Particles
from egnn_md.storage import Hold, refuse_links, write_json, write_npz

FloatArray = NDArray[np.floating[Any]]
FILES = ("trajectory.npz", "summary.json", "errors.png", "conserved.png", "animation.gif", "report.html")


@dataclass(frozen=True)
class Rollout:
    """Predicted trajectories beside the true ones, as far as those are known."""

    predicted: nbody.Trajectories
    """Its first frame is the start."""
    true: nbody.Trajectories
    """Of the same systems: those of its frames that the prediction has too."""

    def squared_errors(self) -> FloatArray:
        """(n_known_frames, n_systems), averaged over components."""
        at = self.true.frames - self.predicted.frames[0]
        error = (self.predicted.positions[:, at].astype(np.float64) - self.true.positions) ** 2
        means: FloatArray = error.mean((2, 3)).T
        return means

    def constant_velocity_errors(self) -> FloatArray:
        """(n_known_frames, n_systems): the same for particles that fly straight on."""
        times = nbody.FRAME_TIME * (self.true.frames - self.true.frames[0])[None, :, None, None]
        straight = self.true.positions[:, :1] + times * self.true.velocities[:, :1]
        means: FloatArray = ((straight - self.true.positions).astype(np.float64) ** 2).mean((2, 3)).T
        return means

    def conserved(self) -> dict[str, FloatArray]:
        """Of the prediction, (n_frames, n_systems): energy, and lengths of the changes of total and angular momentum.

        Angular momentum is the antisymmetric Σ x ∧ v, in any number of dimensions.
        """
        x, v = self.predicted.positions.astype(np.float64), self.predicted.velocities.astype(np.float64)
        energy = nbody.energies(self.predicted.law, x, v, self.predicted.couplings[:, None])
        momentum = v.sum(2)
        wedge = np.einsum("sfna,sfnb->sfab", x, v)
        angular = wedge - wedge.swapaxes(-1, -2)
        return {
            "energy": energy.T,
            "momentum_change": np.linalg.norm(momentum - momentum[:, :1], axis=-1).T,
            "angular_momentum_change": (np.linalg.norm(angular - angular[:, :1], axis=(-2, -1)) / 2**0.5).T,
        }


@torch.no_grad()
def roll_out(
    model: nn.Module,
    true: nbody.Trajectories,
    n_frames: int,
    start_frame: int = 0,
    n_substeps: int | None = None,
    batch_size: int = 500,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rollout:
    """`n_frames` further frames of all systems from a frame of `true`, one frame after another.

    n_substeps: of each frame; None: the model's own choice. Raises DataError if the model cannot go in steps of a
    frame or a prediction is no number.
    """
    if not isinstance(model, IntegratorPropagator):
        raise DataError(f"a {type(model).__name__} jumps over one duration and predicts no velocities: no rollout")
    first = true.column(start_frame)
    weight = next(model.parameters())
    arrays = (true.positions[:, first], true.velocities[:, first], true.couplings)
    start = Particles(*(torch.as_tensor(a, dtype=weight.dtype, device=weight.device) for a in arrays))
    n_systems = len(true)
    positions = np.empty((n_systems, n_frames + 1, *true.positions.shape[2:]), np.float32)
    velocities = np.empty_like(positions)
    for begin in range(0, n_systems, batch_size):
        rows = slice(begin, begin + batch_size)
        x, v, couplings = (part[rows] for part in start)
        positions[rows, 0], velocities[rows, 0] = x.cpu().numpy(), v.cpu().numpy()
        for frame in range(1, n_frames + 1):
            x, v = model(Particles(x, v, couplings), nbody.FRAME_TIME, n_substeps=n_substeps)
            positions[rows, frame], velocities[rows, frame] = x.cpu().numpy(), v.cpu().numpy()
            progress(begin * n_frames + len(x) * frame, n_systems * n_frames)
    if not (np.isfinite(positions).all() and np.isfinite(velocities).all()):
        raise DataError("a prediction is no number: the sub-steps may be too coarse, or the data unlike the training's")
    frames = start_frame + np.arange(n_frames + 1)
    predicted = nbody.Trajectories(true.law, frames, positions, velocities, true.couplings, true.charges)
    known = np.flatnonzero((true.frames >= frames[0]) & (true.frames <= frames[-1]))
    compared = nbody.Trajectories(
        true.law, true.frames[known], true.positions[:, known], true.velocities[:, known], true.couplings
    )
    return Rollout(predicted, compared)


def refuse_old_rollout(folder: Path, overwrite: bool) -> None:
    """Raise RunError if the folder holds a rollout already and is not to be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file: -o names a folder")
    if not overwrite and any((folder / name).exists() for name in FILES):
        raise RunError(f"{folder} already holds a run: --overwrite replaces it, -o names another")


def write_rollout(
    rollout: Rollout, folder: Path, animate: bool = True, information: dict[str, str] | None = None
) -> dict[str, Any]:
    """Write the run folder, each file whole, pictures last; returns the summary. Raises StorageError if another process
    has the folder or one of the files is a link. `information` goes into the summary: "model", "start".
    """
    folder.mkdir(parents=True, exist_ok=True)
    predicted, conserved = rollout.predicted, rollout.conserved()
    errors, straight = rollout.squared_errors(), rollout.constant_velocity_errors()
    with Hold(folder):
        refuse_links(folder / name for name in FILES)
        arrays = {name: getattr(predicted, name) for name in ("frames", "positions", "velocities", "couplings")}
        arrays |= {"true_frames": rollout.true.frames, "true_positions": rollout.true.positions}
        arrays |= {} if predicted.charges is None else {"charges": predicted.charges}
        write_npz(folder / "trajectory.npz", {**arrays, **conserved, "squared_errors": errors})
        summary = summarize(rollout, errors, straight, conserved) | (information or {})
        write_json(folder / "summary.json", summary)
        with without_failing("the pictures of the rollout"):
            _draw(rollout, errors, straight, conserved, folder, animate)
    return summary


def _draw(
    rollout: Rollout,
    errors: FloatArray,
    straight: FloatArray,
    conserved: dict[str, FloatArray],
    folder: Path,
    animate: bool,
) -> None:
    from egnn_md.dynamics import particle_plots

    particle_plots.plot_errors(rollout.true.frames, errors, straight, folder / "errors.png")
    particle_plots.plot_conserved(rollout.predicted.frames, conserved, folder / "conserved.png")
    if animate:
        particle_plots.animate(rollout.predicted, rollout.true, folder / "animation.gif")


def summarize(
    rollout: Rollout, errors: FloatArray, straight: FloatArray, conserved: dict[str, FloatArray]
) -> dict[str, Any]:
    """Medians over systems at each frame; errors are squared, per component."""

    def medians(values: FloatArray) -> list[float]:
        return [float(value) for value in np.median(values, axis=1)]

    return {
        "n_systems": len(rollout.predicted),
        "n_particles": rollout.predicted.positions.shape[2],
        "frames": rollout.predicted.frames.tolist(),
        "compared_frames": rollout.true.frames.tolist(),
        "median_se": medians(errors),
        "mse": [float(value) for value in errors.mean(1)],
        "median_se_constant_velocity": medians(straight),
        "median_energy_change": medians(np.abs(conserved["energy"] - conserved["energy"][0])),
        "median_momentum_change": medians(conserved["momentum_change"]),
        "median_angular_momentum_change": medians(conserved["angular_momentum_change"]),
    }
