"""The extrapolation signal in eV/Å: means of held-out errors, never falling."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from egnn_md.models.potential import Potential
from egnn_md.nn.expected_error import FEWEST, LARGEST, ExpectedError
from egnn_md.predict import ExtrapolationWarning, Predictor


def fitted(signals: np.ndarray, errors: np.ndarray) -> ExpectedError:
    model = ExpectedError().double()
    model.fit(signals, errors)
    return model


def test_means_of_the_errors_by_signal() -> None:
    signals = np.repeat([0.05, 0.55, 3.0], 100)
    model = fitted(signals, np.repeat([0.02, 0.06, 0.5], 100) * np.tile([0.5, 1.5], 150))
    assert [model(signal) for signal in (0.05, 0.55, 3.0)] == pytest.approx([0.02, 0.06, 0.5])
    assert model(0.3) == pytest.approx(0.04)
    assert [model(signal) for signal in (0.0, 99.0)] == pytest.approx([0.02, 0.5])


def test_errors_never_fall_with_the_signal_and_few_atoms_join_others() -> None:
    rng = np.random.default_rng(0)
    signals = rng.uniform(0.0, 5.0, 4000)
    model = fitted(signals, rng.exponential(0.1, 4000) * np.exp(-signals))
    found = [model(signal) for signal in np.linspace(0.0, 6.0, 50)]
    assert (np.diff(found) >= 0).all()
    few = fitted(np.append(np.full(100, 0.05), 3.0), np.append(np.full(100, 0.02), 50.0))
    assert few(3.0) == pytest.approx((100 * 0.02 + LARGEST) / 101)


def test_without_atoms_it_does_not_know() -> None:
    assert math.isnan(ExpectedError()(1.0))
    assert math.isnan(fitted(np.full(FEWEST, np.nan), np.ones(FEWEST))(1.0))
    assert math.isnan(fitted(np.ones(FEWEST - 1), np.ones(FEWEST - 1))(1.0))


def test_the_warning_says_it(random_potential: Callable[..., Potential]) -> None:
    model = random_potential()
    model.familiarity.unit.fill_(1e-3)
    model.expected_error.fit(np.full(99, 1.0), np.full(99, 0.123))
    predictor = Predictor(model)
    with pytest.warns(ExtrapolationWarning, match="in its tests forces of such atoms were off by 123 meV/Å"):
        result = predictor(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), np.array([8, 1]))
    assert predictor.expected_force_error(result.extrapolation) == pytest.approx(0.123)
