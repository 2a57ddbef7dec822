"""How far a property model is from labels, whether its uncertainties mean something, and pictures of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from egnn_md.chemistry.structures import Structure, batches
from egnn_md.chemistry.targets import BY_NAME, NAMES, unit_of
from egnn_md.data.frames import DataError
from egnn_md.data.qm9 import NO_SIDE, Molecules, read_qm9
from egnn_md.evaluation.evaluate import Evaluation, Request, Sample, Samples
from egnn_md.evaluation.figures import figure as new_figure
from egnn_md.models.property import PropertyModel
from egnn_md.models.property_networks import MoleculeBatch
from egnn_md.neighbors import molecules_graph

FloatArray = NDArray[np.float64]
STATISTICS_MOLECULES = 8000
COVERAGES = np.linspace(0.05, 0.95, 19)


@dataclass(frozen=True)
class Compared:
    """Predictions beside labels, (n_molecules, n_targets) each, in the units of `egnn_md.chemistry.targets`."""

    labels: FloatArray
    values: FloatArray
    uncertainty: FloatArray


@torch.no_grad()
def compare(
    model: PropertyModel, molecules: Molecules, progress: Callable[[int, int], None] = lambda done, total: None
) -> Compared:
    """Predict for all molecules; those of a like size side by side, so that batches are full."""
    order = np.argsort(molecules.n_atoms, kind="stable")
    structures = as_structures(molecules.select(order))
    names = model.config.targets
    values, uncertainty, done = [], [], 0
    for batch in batches(structures):
        part = model.predict_batch(batch)
        values.append(torch.stack([part[name] for name in names], 1).numpy())
        uncertainty.append(torch.stack([part[f"{name}_uncertainty"] for name in names], 1).numpy())
        done += len(batch)
        progress(done, len(molecules))
    back = np.argsort(order)
    labels = molecules.labels()[:, [NAMES.index(name) for name in names]]
    return Compared(labels, np.concatenate(values)[back], np.concatenate(uncertainty)[back])


def as_structures(molecules: Molecules) -> list[Structure]:
    """Each of them alone."""
    parts = (np.split(values, molecules.starts[1:-1]) for values in (molecules.atomic_numbers, molecules.positions))
    return [Structure(numbers, positions.astype(np.float64)) for numbers, positions in zip(*parts, strict=True)]


def check_molecules(molecules: Molecules, elements: Sequence[int]) -> None:
    """Raises DataError, naming the molecule, for one that no model of these elements takes; see `Structure.problem`."""
    for index, structure in zip(molecules.index, as_structures(molecules), strict=True):
        if (problem := structure.problem(elements)) is not None:
            raise DataError(f"molecule {index}: {problem}")


def errors_of(names: tuple[str, ...], compared: Compared) -> dict[str, dict[str, Any]]:
    """{"alpha": {"mae", "unit", "n"}, …}; the mae of a target without labels is None."""
    result = {}
    for k, name in enumerate(names):
        known = not np.isnan(compared.values[:, k]).all()  # the model has learned it
        labelled = np.isfinite(compared.labels[:, k]) & known
        errors = np.abs(compared.values[labelled, k] - compared.labels[labelled, k])
        mae = float(errors.mean()) if len(errors) else None
        result[name] = {"mae": mae, "unit": BY_NAME[name].unit, "n": len(errors)}
    return result


def calibrate(model: PropertyModel, compared: Compared) -> None:
    """Scale each target's uncertainty so that, over these molecules, the mean of |error| / uncertainty is 1."""
    if model.error_model is None:
        return
    ratio = np.abs(compared.values - compared.labels) / compared.uncertainty
    factors = [np.nanmean(column) if np.isfinite(column).any() else 1.0 for column in ratio.T]
    model.calibration.mul_(torch.tensor(factors).to(model.calibration))


def fit_statistics(model: PropertyModel, molecules: Molecules) -> None:
    """Take the statistics of the extrapolation signal: bonds from all training molecules, features from a sample."""
    _fit_familiarity(model, molecules)
    _fit_bond_lengths(model, molecules)


@torch.no_grad()
def _fit_familiarity(model: PropertyModel, molecules: Molecules) -> None:
    chosen = np.random.default_rng(0).permutation(len(molecules))[:STATISTICS_MOLECULES]
    features, species = [], []
    for start in range(0, len(chosen), 64):
        prepared = _prepared(model, molecules.select(chosen[start : start + 64]))
        features.append(model.network(prepared).features)
        species.append(prepared.species)
    model.familiarity.fit(torch.cat(features), torch.cat(species))


@torch.no_grad()
def _fit_bond_lengths(model: PropertyModel, molecules: Molecules) -> None:
    lengths, kinds = [], []
    for start in range(0, len(molecules), 1024):
        part = _prepared(model, molecules.select(np.arange(start, min(start + 1024, len(molecules)))))
        found = model.bond_lengths.bonds(part.vectors.norm(dim=-1), part.pairs, part.species)
        lengths.append(found[0].float().cpu().numpy())
        kinds.append(found[1].cpu().numpy())
    model.bond_lengths.fit(np.concatenate(lengths), np.concatenate(kinds))


def _prepared(model: PropertyModel, part: Molecules) -> MoleculeBatch:
    positions, numbers = torch.from_numpy(part.positions), torch.from_numpy(part.atomic_numbers)
    graph = molecules_graph(positions, numbers, torch.from_numpy(part.n_atoms), model.config.reach)
    return model.prepare(graph.to(model.device))


def coverage(compared: Compared, target: int) -> FloatArray:
    """Fraction of the labels inside the central interval of each of `COVERAGES`, for one target.

    The interval of probability p of a Laplace distribution of scale b is ± b ln(1 / (1 - p)).
    """
    labelled = np.isfinite(compared.labels[:, target])
    error = np.abs(compared.values - compared.labels)[labelled, target] / compared.uncertainty[labelled, target]
    return np.array([(error <= -math.log1p(-p)).mean() for p in COVERAGES])


def plot_calibration(names: tuple[str, ...], compared: Compared, picture: Path) -> None:
    """How often the truth lies within what the model promises, for each target; nothing if it promises nothing."""
    if np.isnan(compared.uncertainty).all():
        return
    figure, axes = new_figure(5.0)
    for k, name in enumerate(names):
        if np.isfinite(compared.labels[:, k]).any():
            axes.plot(COVERAGES, coverage(compared, k), lw=1, label=name)
    axes.plot([0, 1], [0, 1], "k--", lw=0.7)
    axes.set(xlabel="interval's probability, as the model says", ylabel="fraction of labels inside")
    axes.legend(ncols=2, fontsize="small")
    figure.savefig(picture, dpi=150)


def plot_parity(names: tuple[str, ...], compared: Compared, picture: Path) -> None:
    """Predicted against labelled values, a panel for each target."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    errors = errors_of(names, compared)
    n = len(names)
    figure = Figure(figsize=(3.2 * min(n, 4), 3.0 * math.ceil(n / 4)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subplots(math.ceil(n / 4), min(n, 4))).ravel()
    for k, (axes, name) in enumerate(zip(panels, names, strict=False)):
        labelled = np.isfinite(compared.labels[:, k])
        if not labelled.any():
            continue
        x, y = compared.labels[labelled, k], compared.values[labelled, k]
        axes.hexbin(x, y, gridsize=60, bins="log", mincnt=1, cmap="viridis")
        axes.plot([x.min(), x.max()], [x.min(), x.max()], "k", lw=0.5)
        axes.set_title(f"{name}: MAE {errors[name]['mae']:.3g} {errors[name]['unit']}", fontsize="small")
        axes.tick_params(labelsize="x-small")
    figure.supxlabel("labelled")
    figure.supylabel("predicted")
    figure.savefig(picture, dpi=150)


def evaluate_file(model: Any, header: Mapping[str, Any], request: Request) -> Evaluation:
    """`egnn-md evaluate` of a property model: {"alpha": {"mae", "unit", "n"}, …, "n_skipped"}.

    Labels that are NaN do not count; molecules with elements that the model does not know are skipped and counted.
    """
    molecules, split = read_qm9(request.file), request.split or "all"
    if split != "all":
        if (molecules.split == NO_SIDE).all():
            raise DataError(f"{request.file} has no split: only --split all is possible")
        molecules = molecules.side(split)
    known = molecules.having(model.config.elements)
    if len(known) == 0:
        raise DataError(f"{request.file} ({split}) has no molecules whose elements the model knows")
    names = model.config.targets
    if unknown := set(names) - set(NAMES):
        raise DataError(f"the model predicts {', '.join(unknown)}, not a property of QM9: convert it with --target")
    check_molecules(known, model.config.elements)
    compared = compare(model, known, request.progress)
    errors, n_skipped = errors_of(names, compared), len(molecules) - len(known)
    return Evaluation(
        values={**errors, "n_skipped": n_skipped},
        columns=["property", "MAE", "unit", "labels"],
        rows=[[name, _mae(entry["mae"]), entry["unit"], str(entry["n"])] for name, entry in errors.items()],
        note=f"{n_skipped} molecules skipped: the model does not know their elements" if n_skipped else "",
        plot=lambda path: plot_parity(names, compared, path),
        samples=lambda: _samples(names, compared),
    )


def _samples(names: tuple[str, ...], compared: Compared) -> Samples:
    columns = [(name, compared.labels[:, k], compared.values[:, k]) for k, name in enumerate(names)]
    return Samples([Sample(name, unit_of(name), labels, values) for name, labels, values in columns])


def _mae(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
