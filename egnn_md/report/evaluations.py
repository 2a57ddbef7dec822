"""The report of an evaluation: the table of errors, values beside their labels, structures with the worst forces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from egnn_md.evaluation.evaluate import Evaluation, Sample, Samples
from egnn_md.report.charts import histogram, parity
from egnn_md.report.page import Page, Table
from egnn_md.report.scene import Scene


def evaluation_page(result: Evaluation, model: str, file: Path, split: str | None) -> Page:
    """The page of an evaluation of `model` on `file`, as `egnn-md evaluate` was asked for it."""
    found = samples_of(result)
    return Page(
        title=f"{model} on {file.name}",
        subtitle=f"{split} side" if split is not None else "",
        scene=scene_of(found),
        charts=charts_of(found),
        tables=[Table("Errors", list(result.columns), [list(map(_number, row)) for row in result.rows], result.note)],
    )


def scene_of(found: Samples) -> Scene | None:
    """The structures with the worst forces; None if the model gives none."""
    from ase import Atoms

    frames = [Atoms(numbers, positions) for numbers, positions, _ in found.structures]
    labels = [
        f"{k + 1} of the worst {len(frames)}: {atoms.get_chemical_formula()}, forces off by {1e3 * error:.0f} meV/Å"
        for k, (atoms, (_, _, error)) in enumerate(zip(frames, found.structures, strict=True))
    ]
    return Scene(frames, labels) if frames else None


def charts_of(found: Samples) -> list[str]:
    """Values beside their labels, and how the errors are distributed."""
    return [chart for sample in found.samples for chart in _charts(sample)]


def samples_of(result: Evaluation) -> Samples:
    """What of an evaluation can be drawn; nothing for kinds of model without samples."""
    return result.samples() if result.samples is not None else Samples([])


def _charts(sample: Sample) -> list[str]:
    error = (np.asarray(sample.predicted, np.float64) - np.asarray(sample.labels, np.float64)).ravel()
    drawn = parity(sample.title, sample.labels, sample.predicted, sample.unit)
    known = error[np.isfinite(error)]
    if not len(known):
        return []
    low, high = np.percentile(known, [0.5, 99.5])
    note = "predicted minus reference; the outermost hundredth is left out"
    inside = known[(known >= low) & (known <= high)]
    return [drawn, histogram(f"{sample.title}: errors", inside, sample.unit, note)]


def _number(text: str) -> Any:
    """A cell that holds a number as one, so that it stands to the right."""
    try:
        return float(text) if "." in text else int(text)
    except ValueError:
        return text
