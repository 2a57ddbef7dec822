"""What a training run leaves on disk: resumable state, the best model, a log. Everything is replaced whole.

config.toml       the configuration, as given
run.json          where the data was found, and the SHA-256 of its bytes
last.ckpt         weights, average, optimizer, step: `egnn-md train --resume` goes on from here
best.safetensors  averaged weights with the lowest validation error so far (at the end the last, if these are kept); a
                  complete model
log.csv           losses and validation errors
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from egnn_md.storage import write_whole


class TrainingDiverged(ValueError):
    """The loss is no number any more."""


def check_finite(trainer: Trainer, name: str) -> None:
    """Raise TrainingDiverged if the last value logged under `name` is NaN or infinite."""
    if name in trainer.callback_metrics and not bool(trainer.callback_metrics[name].isfinite()):
        raise TrainingDiverged(
            f"the training diverged: {name} is {float(trainer.callback_metrics[name])} at step {trainer.global_step}. "
            "Lower learning_rate, or choose another optimizer; best.safetensors, if it is there, is the best so far"
        )


class Resumable(Callback):
    """Writes last.ckpt every `every` steps and at the end, unless the training has diverged.

    In a step that is validated (every `validate_every`), only after the validation: a resume does not repeat it. It has
    to be the last of the callbacks, or what others learn from a validation is not in the file.
    """

    def __init__(self, folder: Path, every: int, validate_every: int) -> None:
        self.path, self.every, self.validate_every = folder / "last.ckpt", every, validate_every

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            check_finite(trainer, "loss")
            if trainer.global_step % self.validate_every:
                self.save(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step % self.every == 0 and not trainer.sanity_checking:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """All processes take part; one writes, to a file of another name that then takes the place of the old."""
        temporary = self.path.with_suffix(".partial")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            os.replace(temporary, self.path)
        trainer.strategy.barrier()


class KeepBest(Callback):
    """Calls `save` whenever the validation score is the lowest so far; remembers it across resumes."""

    def __init__(self, save: Callable[[dict[str, float]], None]) -> None:
        self.save_model = save
        self.score = float("inf")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        check_finite(trainer, "valid_score")
        score = float(trainer.callback_metrics["valid_score"])
        if score < self.score:
            self.score = score
            if trainer.is_global_zero:
                self.save_model({"step": trainer.global_step, "valid_score": score})

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score = state_dict["score"]


class CsvLog(Callback):
    """Appends a line to log.csv every `every` steps; a resumed run drops the lines beyond its checkpoint.

    `losses` and `errors` name what the module logs in steps and in validations, each a column.
    """

    def __init__(self, folder: Path, every: int, losses: tuple[str, ...], errors: tuple[str, ...]) -> None:
        self.path, self.every = folder / "log.csv", every
        self.losses, self.errors = losses, errors
        self.columns = ("step", "time_s", "learning_rate", *losses, *errors)
        self._seconds, self._since = 0.0, time.monotonic()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._since = time.monotonic()
        if not trainer.is_global_zero:
            return
        kept = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= trainer.global_step]
        if kept:
            self._seconds = float(kept[-1]["time_s"])
        with write_whole(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            self._write(trainer, self.losses)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write(trainer, self.errors)

    def _write(self, trainer: Trainer, names: tuple[str, ...]) -> None:
        if not trainer.is_global_zero:
            return
        row: dict[str, float | int] = {
            "step": trainer.global_step,
            "time_s": round(self._seconds + time.monotonic() - self._since, 2),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
        }
        row |= {name: float(trainer.callback_metrics[name]) for name in names if name in trainer.callback_metrics}
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)
