"""What a label lacks does not count; what a model predicts always does."""

from __future__ import annotations

import math

import pytest
import torch

from egnn_md.evaluation.labels import absolute_errors

NAN = math.nan


def test_missing_labels_do_not_count_and_predictions_do() -> None:
    errors, known = absolute_errors(torch.tensor([1.0, NAN, 3.0]), torch.tensor([1.5, NAN, NAN]))
    assert errors.tolist() == [0.5, 0.0, 0.0]
    assert known.tolist() == [1.0, 0.0, 0.0]
    assert errors.dtype == known.dtype == torch.float64
    errors, known = absolute_errors(torch.tensor([NAN, 1.0]), torch.tensor([2.0, 2.0]))
    assert errors.isnan().tolist() == [True, False]
    assert known.sum() == 2


@pytest.mark.parametrize("wrong", [NAN, math.inf])
def test_a_mean_with_a_broken_prediction_is_no_good_score(wrong: float) -> None:
    errors, known = absolute_errors(torch.tensor([wrong, 0.0]), torch.zeros(2))
    assert not (errors.sum() / known.sum() < 1e9)
