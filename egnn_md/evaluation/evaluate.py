"""`egnn-md evaluate` for each kind of checkpoint: a model and a file with labels in, errors out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import nn

EVALUATIONS: Final[dict[str, str]] = {
    # kind of the checkpoint: module with a function evaluate_file(model, header, request) -> Evaluation
    "potential": "egnn_md.evaluation.potential",
    "velocity-egnn": "egnn_md.evaluation.nbody",
    "integrator": "egnn_md.evaluation.nbody",
    "property": "egnn_md.evaluation.property",
    "graph-autoencoder": "egnn_md.paper.autoencoder_metrics",
}


class EvaluationError(ValueError):
    """A model that cannot be evaluated as asked; the message says what to do."""


@dataclass(frozen=True)
class Request:
    """What to evaluate."""

    file: Path
    split: str | None
    """"train", "valid", "test", "all", or None: the kind's own default."""
    batch_size: int
    """Samples at once."""
    progress: Callable[[int, int], None] = lambda done, total: None
    """Called with the number of samples done and of all samples."""


@dataclass(frozen=True)
class Sample:
    """Values beside their labels, for a picture."""

    title: str
    unit: str
    labels: Any
    """Numpy array of any shape; NaN where there is no label."""
    predicted: Any
    """Of the same shape."""


@dataclass(frozen=True)
class Samples:
    """What a report of an evaluation shows."""

    samples: Sequence[Sample]
    structures: Sequence[tuple[Any, Any, float]] = ()
    """The worst ones: atomic numbers (n_atoms,), positions (n_atoms, 3) Å, mean error of the force components eV/Å."""


@dataclass(frozen=True)
class Evaluation:
    """What came out."""

    values: dict[str, Any]
    """JSON values; each kind of model has its own fixed keys."""
    columns: Sequence[str]
    rows: Sequence[list[str]]
    """The same as a table."""
    note: str = ""
    """Units, below the table."""
    plot: Callable[[Path], None] | None = None
    """Draws the picture of --plot; None if there is nothing to draw."""
    samples: Callable[[], Samples] | None = None
    """What --report shows besides the table; None for kinds that have nothing."""


def evaluate_file(kind: str, model: nn.Module, header: Mapping[str, Any], request: Request) -> Evaluation:
    """Errors of `model`, whose checkpoint has `header`, on labels in a file. Raises EvaluationError, DataError."""
    if kind not in EVALUATIONS:
        raise EvaluationError(f"a model of kind {kind!r} cannot be evaluated; known: {', '.join(EVALUATIONS)}")
    evaluation: Evaluation = importlib.import_module(EVALUATIONS[kind]).evaluate_file(model, header, request)
    return evaluation
