"""The end of a training run: held-out errors, pictures, one finished file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from egnn_md.checkpoint import load, read_header, save
from egnn_md.evaluation.figures import figure, without_failing

if TYPE_CHECKING:
    from egnn_md.training.task import LearningCurve, Task


def finish(folder: Path, task: Task) -> Path:
    """Turn best.safetensors into model.safetensors, with held-out errors, then draw pictures beside it; returns its
    path.
    """
    best = folder / "best.safetensors"
    model = load(best)
    held_out = task.finish(model)
    target = folder / "model.safetensors"
    save(model, target, _own_information(best) | {"held_out": held_out})
    with without_failing("the pictures of the errors"):
        task.draw(model, folder)
    with without_failing("the learning curve"):
        plot_learning_curve(task.curve, folder / "log.csv", folder / "learning_curve.png")
    return target


def _own_information(path: Path) -> dict[str, Any]:
    """What the training wrote into a checkpoint's header, without what `save` writes itself."""
    own = ("format_version", "library_version", "kind", "config", "units", "sha256")
    return {key: value for key, value in read_header(path).items() if key not in own}


def plot_learning_curve(curve: LearningCurve, log: Path, picture: Path) -> None:
    """Loss and validation error against the step, from log.csv."""
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    picture_figure, axes = figure(6.0)

    def column(name: str) -> tuple[list[float], list[float]]:
        known = [row for row in rows if row[name]]
        return [float(row["step"]) for row in known], [float(row[name]) for row in known]

    steps, losses = column(curve.loss)
    label = f"training: {curve.loss.replace('_', ' ')}"
    axes.plot(steps, np.array(losses) * curve.loss_factor, color="0.75", lw=0.8, label=label)
    steps, errors = column(f"valid_{curve.error}")
    axes.plot(steps, errors, "o-", ms=3, label=f"validation: {curve.error.replace('_', ' ')} (averaged weights)")
    axes.set(xlabel="step", ylabel=curve.unit, yscale="log")
    axes.legend()
    picture_figure.savefig(picture, dpi=150)
