"""Errors where labels are known: what is missing does not count, what a model predicts always does."""

from __future__ import annotations

import torch
from torch import Tensor


def absolute_errors(predicted: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(|predicted - label|, 1 where the label is known and 0 elsewhere), float64, of the shape of both.

    A label that is NaN is missing: its error is 0. A prediction that is NaN makes its error NaN, and with it every
    mean: a model that has diverged must not look better for it.
    """
    known = ~torch.isnan(labels)
    return torch.where(known, predicted - labels, 0.0).abs().double(), known.double()
