"""What the training of one kind of model does its own way. All else (`loop.py`) is the same for every task.

A new task is a module with a class like this `Task` and a line in `TASKS` (`tasks.py`); for `egnn-md evaluate` it adds
an evaluation (`evaluation/evaluate.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from egnn_md.training.config import RunConfig
from egnn_md.training.sampling import Batches


@dataclass(frozen=True)
class LearningCurve:
    """Which columns of log.csv the picture of a training shows, and in which unit."""

    loss: str
    error: str
    unit: str
    loss_factor: float = 1.0
    """Brings the loss to the unit of the error."""


class Task(Protocol):
    """One run's task: its configuration and its data. `Model` below is the task's own class of model."""

    config_class: ClassVar[type[RunConfig]]
    loss_names: ClassVar[tuple[str, ...]]
    """Keys of `loss`, "loss" first: columns of log.csv."""
    error_names: ClassVar[tuple[str, ...]]
    """Keys of `errors` that go into log.csv, there with "valid_" before them."""
    curve: ClassVar[LearningCurve]

    def __init__(self, config: Any, files: list[Path]) -> None:
        """Read and divide the data. Raises DataError if it cannot be used, ConfigError if it does not fit."""

    def build_model(self) -> nn.Module:
        """The model to train, in the precision of the configuration; torch's seed is set already."""
        ...

    def batches(self, model: Any) -> tuple[Batches, Batches]:
        """The training and the validation samples, prepared for `model`."""
        ...

    def loss(self, model: Any, batch: Any, step: int) -> dict[str, Tensor]:
        """ "loss", a mean over the whole step by means of `batch.share`, and its parts, detached, to log."""
        ...

    def error_sums(self, model: Any, batch: Any) -> Tensor:
        """Errors of one validation batch as a vector of sums, which are added up over batches and processes."""
        ...

    def errors(self, sums: Tensor) -> dict[str, Tensor]:
        """Validation errors from those sums; "score" is the one that chooses the best model, lower is better."""
        ...

    def information(self) -> dict[str, Any]:
        """For the checkpoint's header: "split" (how the data was divided) and "training_data"."""
        ...

    def finish(self, model: Any) -> dict[str, Any]:
        """Complete the best model in place; returns the errors on held-out data by side."""
        ...

    def draw(self, model: Any, folder: Path) -> None:
        """The task's pictures of the finished model, drawn after it is saved: nothing that they raise is lost on it."""
        ...
