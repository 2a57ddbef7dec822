"""Any task's model as a LightningModule: one step, the running average of the weights, the validation."""

from __future__ import annotations

import logging
import math
from typing import Any, Final, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from egnn_md.training.budget import Budget
from egnn_md.training.config import TrainingConfig
from egnn_md.training.optimizer import build_optimizer, schedule
from egnn_md.training.run_folder import TrainingDiverged
from egnn_md.training.task import Task

_logger = logging.getLogger(__name__)
MOST_LEFT_OUT: Final = 20
"""Steps in a row without a finite gradient, after which a training ends."""
LOG_EVERY: Final = 10
"""Steps from one note of the losses to the next; fewer where validations or checkpoints, which look at them, fall
between."""


class MovingAverage(AveragedModel):
    """Exponential moving average of the weights, which follows more closely while training is young."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay
        self.requires_grad_(False)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """After a step."""
        n = float(self.n_averaged)
        weight = 1.0 if n == 0.0 else 1.0 - min(self.decay, (1.0 + n) / (10.0 + n))
        torch._foreach_lerp_(list(self.module.parameters()), list(model.parameters()), weight)
        for mine, current in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(current)
        self.n_averaged += 1


class TaskModule(LightningModule):
    """Trains `model` at `task`; `average` is the exponential moving average that is validated and kept."""

    def __init__(self, task: Task, model: nn.Module, config: TrainingConfig) -> None:
        super().__init__()
        self.task = task
        self.budget = Budget(config.max_steps, config.max_minutes)
        """A callback of the trainer."""
        self.model = model
        self.config = config
        self.average = MovingAverage(model, config.ema_decay)
        self.log_every = math.gcd(LOG_EVERY, config.validate_every, config.checkpoint_every)
        self._error_sums: list[Tensor] = []
        self._not_finite = 0

    @property
    def averaged_model(self) -> nn.Module:
        """The model with averaged weights."""
        return self.average.module

    def training_step(self, batch: Any, index: int) -> Tensor:
        """The loss of one step. Each term is this process's share times the number of processes, so that the mean
        over processes, of the terms as of their gradients, is the loss of the whole step.
        """
        terms = self.task.loss(self.model, batch, self.budget.scaled(self.global_step))
        if (self.global_step + 1) % self.log_every == 0:
            values = {name: terms[name].detach() for name in self.task.loss_names}
            several = self.trainer.world_size > 1
            self.log_dict(values, on_step=True, on_epoch=False, prog_bar=True, batch_size=1, sync_dist=several)
        return terms["loss"]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step, and the average after it: before any callback can save the state."""
        super().optimizer_step(*args, **kwargs)
        self.average.update_parameters(self.model)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """Clip; a step whose gradient is not finite moves nothing. Raises TrainingDiverged if many in a row are not."""
        weights = [p for p in self.model.parameters() if p.grad is not None]
        gradients = [p.grad for p in weights if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if bool(norm.isfinite()):
            self._not_finite = 0
            if gradient_clip_val is not None:
                torch.nn.utils.clip_grads_with_norm_(weights, gradient_clip_val, norm)
            return
        for gradient in gradients:
            gradient.zero_()
        self._not_finite += 1
        _logger.warning("step %d: the gradient is not finite, the step is left out", self.global_step)
        if self._not_finite >= MOST_LEFT_OUT:
            raise TrainingDiverged(
                f"the training diverged: {MOST_LEFT_OUT} steps in a row had no finite gradient (the last is "
                f"{self.global_step}). Lower learning_rate"
            )

    def validation_step(self, batch: Any, index: int) -> None:
        """Errors of the averaged model, as sums over this batch."""
        self._error_sums.append(self.task.error_sums(self.averaged_model, batch))

    def on_validation_epoch_end(self) -> None:
        """Errors over the validation samples of all processes."""
        sums = torch.stack(self._error_sums).sum(0)
        self._error_sums.clear()
        if self.trainer.world_size > 1:
            sums = cast(Tensor, self.all_gather(sums)).sum(0)
        self.log_dict({f"valid_{name}": value for name, value in self.task.errors(sums).items()}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule, stepped once per batch."""
        optimizer = build_optimizer(self.model, self.config.optimizer, self.config.learning_rate)
        factor = schedule(self.config.schedule, self.config.warmup_steps, self.budget.done)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
