"""How far a training is: in steps, or in minutes if these are what it has."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Budget(Callback):
    """Ends a training after so many minutes, validations and tracing included; a resume goes on with what is left.

    The last weights are validated. Without `minutes` it only counts.
    """

    def __init__(self, max_steps: int, minutes: float | None) -> None:
        self.max_steps, self.minutes = max_steps, minutes
        self.seconds = 0.0
        """Spent so far, the same in all processes."""
        self._before, self._since = 0.0, time.monotonic()

    def done(self, step: int) -> float:
        """The fraction of the training that is over, 0 to 1, before this step."""
        by_time = 0.0 if self.minutes is None else self.seconds / (60.0 * self.minutes)
        return min(1.0, max(step / self.max_steps, by_time))

    def scaled(self, step: int) -> int:
        """The step that stands as far from the end of `max_steps` as this one stands from the end of the training."""
        return step if self.minutes is None else min(self.max_steps - 1, int(self.done(step) * self.max_steps))

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._before, self._since = self.seconds, time.monotonic()
        if self.minutes is not None and self.done(0) >= 1.0:
            trainer.should_stop = True

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self.minutes is not None:
            now = self._before + time.monotonic() - self._since
            self.seconds = float(trainer.strategy.broadcast(now))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.minutes is not None and self.done(trainer.global_step) >= 1.0:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = float(state_dict["seconds"])
