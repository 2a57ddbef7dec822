"""The end of a training run: statistics for the extrapolation signal, held-out errors, pictures, one finished file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from egnn_md.checkpoint import load, read_header, save
from egnn_md.data.structures import EdgeTable, Frames
from egnn_md.models.potential import Potential
from egnn_md.training.batches import FrameBatches
from egnn_md.training.metrics import evaluate

if TYPE_CHECKING:
    from egnn_md.training.loop import Splits

STATISTICS_FRAMES = 8000


def finish(folder: Path, splits: Splits) -> Path:
    """Turn best.safetensors into model.safetensors, with held-out errors and pictures beside it; returns its path."""
    best = folder / "best.safetensors"
    model = cast(Potential, load(best))
    fit_familiarity(model, splits.train)
    information = _own_information(best)
    held_out: dict[str, Any] = {}
    for side in ("valid", "test"):
        frames: Frames = getattr(splits, side)
        if len(frames):
            held_out[side] = evaluate(model, frames).to_dict()
    target = folder / "model.safetensors"
    save(model, target, information | {"held_out": held_out})
    plot_learning_curve(folder / "log.csv", folder / "learning_curve.png")
    plot_parity(model, splits.test if len(splits.test) else splits.valid, folder / "parity.png")
    return target


def _own_information(path: Path) -> dict[str, Any]:
    """What the training wrote into a checkpoint's header, without what `save` writes itself."""
    header = read_header(path)
    return {
        k: v for k, v in header.items() if k not in ("format_version", "library_version", "kind", "config", "units")
    }


@torch.no_grad()
def fit_familiarity(model: Potential, frames: Frames, n_frames: int = STATISTICS_FRAMES) -> None:
    """Take the statistics of the extrapolation signal from a sample of the training structures."""
    chosen = np.random.default_rng(0).permutation(len(frames))[:n_frames]
    sample = frames.select(np.sort(chosen))
    batches = FrameBatches(sample, EdgeTable.build(sample, model.config.cutoff), model.dtype)
    features, species = [], []
    for start in range(0, len(sample), 64):
        graph = batches[list(range(start, min(start + 64, len(sample))))].graph
        species.append(model.species_of[graph.atomic_numbers])
        features.append(model.energies_and_gradient(graph.edge_vectors(), species[-1], graph.edge_index)[2].detach())
    model.familiarity.fit(torch.cat(features), torch.cat(species))


def plot_learning_curve(log: Path, picture: Path) -> None:
    """Loss and validation error against the step, from log.csv."""
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure, axes = _figure(6.0)

    def curve(column: str) -> tuple[list[float], list[float]]:
        known = [row for row in rows if row[column]]
        return [float(row["step"]) for row in known], [float(row[column]) for row in known]

    steps, losses = curve("force_loss")
    axes.plot(steps, np.array(losses) * 1e3, color="0.75", lw=0.8, label="training: force loss")
    steps, errors = curve("valid_force_mae")
    axes.plot(steps, errors, "o-", ms=3, label="validation: force MAE (averaged weights)")
    axes.set(xlabel="step", ylabel="meV/Å", yscale="log")
    axes.legend()
    figure.savefig(picture, dpi=150)


def plot_parity(model: Potential, frames: Frames, picture: Path, n_frames: int = 1000) -> None:
    """Predicted against labelled force components of held-out structures."""
    frames = frames.select(np.arange(len(frames))[:: max(1, len(frames) // n_frames)])
    if frames.forces is None:
        return
    batches = FrameBatches(frames, EdgeTable.build(frames, model.config.cutoff), model.dtype)
    predicted = []
    for start in range(0, len(frames), 64):
        batch = batches[list(range(start, min(start + 64, len(frames))))]
        predicted.append(model(batch.graph).forces.numpy())
    labels, values = frames.forces.ravel(), np.concatenate(predicted).ravel()
    known = np.isfinite(labels)
    figure, axes = _figure(5.0)
    axes.hexbin(labels[known], values[known], gridsize=120, bins="log", mincnt=1, cmap="viridis")
    limit = float(np.abs(labels[known]).max())
    axes.plot([-limit, limit], [-limit, limit], color="k", lw=0.7)
    axes.set(xlabel="labelled force component (eV/Å)", ylabel="predicted (eV/Å)", title=f"{len(frames)} structures")
    figure.savefig(picture, dpi=150)


def _figure(width: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()
