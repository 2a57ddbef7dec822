"""How far a potential is from the labels of structures: forces per component, energies per atom."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from egnn_md.data.frame_batches import Batch, FrameBatches, PairTable
from egnn_md.data.frame_files import read_frames
from egnn_md.data.frames import DataError, Frames
from egnn_md.data.labels import LabelKeys
from egnn_md.data.split import assign_split, split_in_time
from egnn_md.evaluation.evaluate import Evaluation, EvaluationError, Request, Sample, Samples
from egnn_md.evaluation.figures import figure
from egnn_md.models.potential import Potential

FloatArray = NDArray[np.float64]
BATCH_SIZE = 32


@dataclass(frozen=True)
class Metrics:
    """Errors over a set of structures. NaN where no structure has the label."""

    n_structures: int
    force_mae: float
    """meV/Å, mean over components of all atoms with forces."""
    force_rmse: float
    """meV/Å."""
    energy_mae: float
    """meV/atom, mean over structures."""
    energy_rmse: float
    """meV/atom."""
    by_tag: dict[str, Metrics] = field(default_factory=dict)
    """The same for each tag of the data, if it has several."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: None for NaN."""
        names = ("force_mae", "force_rmse", "energy_mae", "energy_rmse")
        errors = {name: None if math.isnan(getattr(self, name)) else getattr(self, name) for name in names}
        rows = {tag: metrics.to_dict() for tag, metrics in self.by_tag.items()}
        for row in rows.values():
            del row["by_tag"]
        return {"n_structures": self.n_structures, **errors, "by_tag": rows}


def evaluate(
    model: Potential,
    frames: Frames,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], None] | None = None,
) -> Metrics:
    """Errors of `model` on `frames`. Labels that are missing (NaN) do not count.

    `progress` is called with the number of structures done. Raises UnsupportedElement, naming the elements the model
    does not know, and ValueError if there are no structures.
    """
    if len(frames) == 0:
        raise ValueError("there are no structures to evaluate")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    model.check_elements(torch.from_numpy(np.unique(frames.atomic_numbers)))
    sums = _sums(model, frames, batch_size, progress)
    tags = np.unique(frames.tag)
    by_tag = {str(tag): _reduce(sums[frames.tag == tag]) for tag in tags} if len(tags) > 1 else {}
    return _reduce(sums, by_tag)


def _sums(model: Potential, frames: Frames, batch_size: int, progress: Callable[[int], None] | None) -> FloatArray:
    """(n_frames, 5): Σ|ΔF|, ΣΔF² (eV/Å) and number of known components; |ΔE| per atom (eV) and 1 if it is known."""
    batches = FrameBatches(frames, PairTable.build(frames, model.config.cutoff), model.dtype)
    # Structures of a like size side by side: the largest batch decides the memory, and it is known at once.
    order = np.argsort(-frames.n_atoms, kind="stable")
    sums = np.empty((len(frames), 5))
    for start in range(0, len(frames), batch_size):
        chosen = order[start : start + batch_size]
        sums[chosen] = _batch_sums(model, batches[chosen.tolist()].to(model.device))
        if progress is not None:
            progress(min(start + batch_size, len(frames)))
    return sums


def _batch_sums(model: Potential, batch: Batch) -> FloatArray:
    prediction, graph = model(batch.graph), batch.graph
    known = torch.isfinite(batch.forces)  # of the labels alone: a NaN that the model predicts has to show
    error = torch.where(known, prediction.forces.detach() - batch.forces, 0.0).double()
    per_frame = torch.zeros(graph.n_graphs, 3, dtype=torch.float64, device=error.device)
    columns = torch.stack([error.abs().sum(1), error.square().sum(1), known.sum(1).double()], dim=1)
    per_frame.index_add_(0, graph.batch, columns)
    n_atoms = torch.bincount(graph.batch, minlength=graph.n_graphs)
    labelled = torch.isfinite(batch.energy)
    energy = torch.where(labelled, (prediction.energy.detach() - batch.energy).abs() / n_atoms, 0.0)
    result: FloatArray = torch.cat([per_frame, energy[:, None], labelled[:, None].double()], dim=1).cpu().numpy()
    return result


def _reduce(sums: FloatArray, by_tag: dict[str, Metrics] | None = None) -> Metrics:
    absolute, squared, components, energy, structures = (float(total) for total in sums.sum(0))
    energy_squared = float((sums[:, 3] ** 2).sum())
    return Metrics(
        n_structures=len(sums),
        force_mae=1e3 * absolute / components if components else math.nan,
        force_rmse=1e3 * math.sqrt(squared / components) if components else math.nan,
        energy_mae=1e3 * energy / structures if structures else math.nan,
        energy_rmse=1e3 * math.sqrt(energy_squared / structures) if structures else math.nan,
        by_tag=by_tag or {},
    )


def evaluate_file(model: Potential, header: Mapping[str, Any], request: Request) -> Evaluation:
    """`egnn-md evaluate` of a potential. Raises DataError and EvaluationError."""
    trained = header.get("training_config", {}).get("data", {})
    keys = LabelKeys(*(trained.get(f"{label}_key") for label in ("energy", "forces", "stress")))
    try:
        frames = read_frames(request.file, keys)
    except DataError:  # another file than the training's may have other names
        frames = read_frames(request.file)
    frames = _side(frames, header, request.split or "all")
    frames.check_closed_shells(ions=model.config.long_range)
    result = evaluate(model, frames, request.batch_size, lambda done: request.progress(done, len(frames)))
    rows = [_row("all", result), *(_row(tag or "(no tag)", part) for tag, part in result.by_tag.items())]
    return Evaluation(
        values=result.to_dict(),
        columns=("kind", "structures", "force MAE", "force RMSE", "energy MAE", "energy RMSE"),
        rows=rows,
        note="forces in meV/Å, energies in meV/atom",
        plot=None if frames.forces is None else partial(plot_parity, model, frames),
        samples=partial(samples_of, model, frames),
    )


def samples_of(model: Potential, frames: Frames, n_frames: int = 500, n_worst: int = 30) -> Samples:
    """Energies and forces beside their labels, of `n_frames` structures at most, and those with the worst forces."""
    frames = frames.select(np.arange(len(frames))[:: max(1, -(-len(frames) // n_frames))])
    batches = FrameBatches(frames, PairTable.build(frames, model.config.cutoff), model.dtype)
    forces, energies = [], []
    for start in range(0, len(frames), BATCH_SIZE):
        batch = batches[list(range(start, min(start + BATCH_SIZE, len(frames))))]
        prediction = model(batch.to(model.device).graph)
        forces.append(prediction.forces.cpu().numpy())
        energies.append(prediction.energy.cpu().numpy())
    energy = np.concatenate(energies) / frames.n_atoms
    samples = [Sample("Energies per atom", "eV", frames.energy / frames.n_atoms, energy)]
    if frames.forces is None:
        return Samples(samples)
    predicted = np.concatenate(forces)
    samples.append(Sample("Force components", "eV/Å", frames.forces, predicted))
    ends = np.cumsum(frames.n_atoms)
    parts = [slice(end - n, end) for end, n in zip(ends, frames.n_atoms, strict=True)]
    errors = np.array([np.abs(predicted[part] - frames.forces[part]).mean() for part in parts])
    worst = [k for k in np.argsort(-np.nan_to_num(errors))[:n_worst] if np.isfinite(errors[k])]
    return Samples(samples, [(frames.atomic_numbers[parts[k]], frames.positions[parts[k]], errors[k]) for k in worst])


def errors_by_atom(model: Potential, frames: Frames, n_frames: int = 4000) -> tuple[FloatArray, FloatArray]:
    """Extrapolation signals, and mean absolute errors of the components of the force, eV/Å, of all atoms of `n_frames`
    structures at most; NaN where there is no label.
    """
    frames = frames.select(np.arange(len(frames))[:: max(1, -(-len(frames) // n_frames))])
    batches = FrameBatches(frames, PairTable.build(frames, model.config.cutoff), model.dtype)
    signals, errors = [], []
    for start in range(0, len(frames), BATCH_SIZE):
        batch = batches[list(range(start, min(start + BATCH_SIZE, len(frames))))].to(model.device)
        prediction = model(batch.graph)
        signals.append(prediction.extrapolation.double().cpu().numpy())
        errors.append((prediction.forces - batch.forces).abs().mean(1).double().cpu().numpy())
    return np.concatenate(signals), np.concatenate(errors)


def _side(frames: Frames, header: Mapping[str, Any], split: str) -> Frames:
    """The structures of one side of the split that the model's training used."""
    if split == "all":
        return frames
    fractions = header.get("split")
    if not isinstance(fractions, dict) or not {"valid", "test"} <= fractions.keys():
        raise EvaluationError("the model does not record how its data was divided: only --split all is possible")
    divide, of_training = assign_split, fractions.get("blocks_of_time")
    if of_training is not None:
        divide = split_in_time
        if len(frames) != of_training:
            raise EvaluationError(
                f"the training divided its {of_training} structures by their order; this file has {len(frames)}: "
                "give the same structures, or --split all"
            )
    sides = divide(frames, float(fractions["valid"]), float(fractions["test"]))
    chosen = frames.select(np.flatnonzero(sides == split))
    if len(chosen) == 0:
        raise DataError(f"none of the {len(frames)} structures is on the {split} side of the split")
    return chosen


def _row(name: str, result: Metrics) -> list[str]:
    errors = (result.force_mae, result.force_rmse, result.energy_mae, result.energy_rmse)
    return [name, str(result.n_structures), *("-" if value != value else f"{value:.3f}" for value in errors)]


def plot_parity(model: Potential, frames: Frames, picture: Path, n_frames: int = 1000) -> None:
    """Predicted against labelled force components of held-out structures."""
    frames = frames.select(np.arange(len(frames))[:: max(1, len(frames) // n_frames)])
    if frames.forces is None:
        return
    batches = FrameBatches(frames, PairTable.build(frames, model.config.cutoff), model.dtype)
    predicted = []
    for start in range(0, len(frames), 64):
        batch = batches[list(range(start, min(start + 64, len(frames))))]
        predicted.append(model(batch.to(model.device).graph).forces.cpu().numpy())
    labels, values = frames.forces.ravel(), np.concatenate(predicted).ravel()
    known = np.isfinite(labels)
    if not known.any():  # a side without forces, in data that has some
        return
    picture_figure, axes = figure(5.0)
    axes.hexbin(labels[known], values[known], gridsize=120, bins="log", mincnt=1, cmap="viridis")
    limit = float(np.abs(labels[known]).max())
    axes.plot([-limit, limit], [-limit, limit], color="k", lw=0.7)
    axes.set(xlabel="labelled force component (eV/Å)", ylabel="predicted (eV/Å)", title=f"{len(frames)} structures")
    picture_figure.savefig(picture, dpi=150)
