"""The potential as a LightningModule: one step, the running average of the weights, the validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from egnn_md.models.potential import Potential
from egnn_md.training.batches import Batch
from egnn_md.training.config import TrainingConfig
from egnn_md.training.loss import PotentialLoss
from egnn_md.training.optimizer import build_optimizer, schedule


def _moving_average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Exponential moving average that follows more closely while training is young."""

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], n_averaged: Tensor | int) -> None:
        n = float(n_averaged)
        torch._foreach_lerp_(list(averaged), list(current), 1.0 - min(decay, (1.0 + n) / (10.0 + n)))

    return update


class PotentialModule(LightningModule):
    """Trains `model`; `average` is the exponential moving average that is validated and kept."""

    def __init__(self, model: Potential, config: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.average = AveragedModel(model, multi_avg_fn=_moving_average(config.ema_decay))
        self.average.requires_grad_(False)
        self._loss = PotentialLoss(model, config)
        self._errors: list[Tensor] = []

    @property
    def averaged_model(self) -> Potential:
        """The model with averaged weights."""
        model = self.average.module
        assert isinstance(model, Potential)
        return model

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss of one step. Each term is this process's share times the number of processes, so that the mean
        over processes, of the terms as of their gradients, is the loss of the whole step.
        """
        terms = self._loss(batch)
        values = {"loss": terms.total.detach(), "force_loss": terms.force, "energy_loss": terms.energy}
        several = self.trainer.world_size > 1
        self.log_dict(values, on_step=True, on_epoch=False, prog_bar=True, batch_size=1, sync_dist=several)
        return terms.total

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """One step, and the average after it: before any callback can save the state."""
        super().optimizer_step(*args, **kwargs)
        self.average.update_parameters(self.model)

    def validation_step(self, batch: Batch, index: int) -> None:
        """Errors of the averaged model, as sums over this batch."""
        with torch.enable_grad():
            prediction = self.averaged_model(batch.graph)
        force_error = (prediction.forces - batch.forces).abs().double()
        counts = torch.bincount(batch.graph.batch, minlength=batch.graph.n_graphs)
        energy_error = ((prediction.energy - batch.energy) / counts).abs()
        self._errors.append(
            torch.stack(
                [
                    force_error.nansum(),
                    (~force_error.isnan()).sum(),
                    energy_error.nansum(),
                    (~energy_error.isnan()).sum(),
                ]
            )
        )

    def on_validation_epoch_end(self) -> None:
        """Mean absolute errors over the validation structures of all processes."""
        sums = torch.stack(self._errors).sum(0)
        self._errors.clear()
        if self.trainer.world_size > 1:
            sums = cast(Tensor, self.all_gather(sums)).sum(0)
        values = {"force_mae": 1e3 * sums[0] / sums[1].clamp(min=1), "energy_mae": 1e3 * sums[2] / sums[3].clamp(min=1)}
        values["score"] = values["force_mae"] if sums[1] > 0 else values["energy_mae"]
        self.log_dict({f"valid_{name}": value for name, value in values.items()}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule, stepped once per batch."""
        optimizer = build_optimizer(self.model, self.config.optimizer, self.config.learning_rate)
        factor = schedule(self.config.schedule, self.config.warmup_steps, self.config.max_steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
