"""Temperatures by kind of motion and by element."""

from __future__ import annotations

import numpy as np
import pytest

from egnn_md.chemistry.units import BOLTZMANN
from egnn_md.dynamics.motion import by_element, by_motion

MASSES = np.array([16.0, 1.0, 1.0, 12.0])
POSITIONS = np.array([[0.0, 0.0, 0.1], [0.9, 0.1, 0.0], [-0.3, 0.9, 0.2], [-0.5, -0.6, 1.0]])


def test_maxwells_momenta_have_one_temperature_in_every_kind() -> None:
    rng = np.random.default_rng(0)
    momenta = np.sqrt(BOLTZMANN * 300.0 * MASSES)[None, :, None] * rng.standard_normal((4000, 4, 3))
    kinds = [by_motion(MASSES, POSITIONS, p) for p in momenta]
    elements = [by_element(np.array([8, 1, 1, 6]), MASSES, p) for p in momenta]
    for name in ("translation", "rotation", "internal"):
        assert np.mean([found[name] for found in kinds]) == pytest.approx(300.0, rel=0.05)
    for name in ("H", "C", "O"):
        assert np.mean([found[name] for found in elements]) == pytest.approx(300.0, rel=0.05)


def test_a_rigid_motion_has_nothing_inside() -> None:
    velocities = np.cross([0.3, -0.2, 0.5], POSITIONS) + np.array([0.1, 0.0, 0.2])
    found = by_motion(MASSES, POSITIONS, MASSES[:, None] * velocities)
    assert found["translation"] > 1.0
    assert found["rotation"] > 1.0
    assert found["internal"] == pytest.approx(0.0, abs=1e-6)


def test_a_linear_molecule_turns_about_two_axes() -> None:
    masses, positions = np.array([16.0, 12.0, 16.0]), np.array([[-1.2, 0, 0], [0, 0, 0], [1.2, 0, 0.0]])
    rng = np.random.default_rng(1)
    momenta = np.sqrt(BOLTZMANN * 300.0 * masses)[None, :, None] * rng.standard_normal((4000, 3, 3))
    rotation = [by_motion(masses, positions, p)["rotation"] for p in momenta]
    assert np.mean(rotation) == pytest.approx(300.0, rel=0.05)
    assert np.isnan(by_motion(masses[:1], positions[:1], momenta[0, :1])["rotation"])
