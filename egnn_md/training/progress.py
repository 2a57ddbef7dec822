"""The bar of a training."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch.callbacks import RichProgressBar


class Bar(RichProgressBar):
    """Steps and time, and of the losses and errors those that there are: not 0, not NaN."""

    def get_metrics(self, *arguments: Any) -> dict[str, Any]:
        """See Lightning."""
        values = super().get_metrics(*arguments)
        return {
            name: value for name, value in values.items() if isinstance(value, float) and value and math.isfinite(value)
        }

    def _get_train_description(self, current_epoch: int) -> str:
        return "training  "  # as long as "Validation"; steps are counted here, epochs mean nothing
