"""Temperatures by kind of motion and by element."""

from __future__ import annotations

import numpy as np
import pytest

from egnn_md.chemistry.units import BOLTZMANN
from egnn_md.dynamics.motion import autocorrelation, by_element, by_motion, rigid_motion, spectrum

MASSES = np.array([16.0, 1.0, 1.0, 12.0])
POSITIONS = np.array([[0.0, 0.0, 0.1], [0.9, 0.1, 0.0], [-0.3, 0.9, 0.2], [-0.5, -0.6, 1.0]])


def test_maxwells_momenta_have_one_temperature_in_every_kind() -> None:
    rng = np.random.default_rng(0)
    momenta = np.sqrt(BOLTZMANN * 300.0 * MASSES)[None, :, None] * rng.standard_normal((4000, 4, 3))
    kinds = [by_motion(MASSES, POSITIONS, p) for p in momenta]
    elements = [by_element(np.array([8, 1, 1, 6]), MASSES, POSITIONS, p) for p in momenta]
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


def test_elements_are_as_warm_whether_the_whole_moves_or_not() -> None:
    rng, numbers = np.random.default_rng(2), np.array([8, 1, 1, 6])
    momenta = 1.0 + rng.standard_normal((4, 3))
    rigid = rigid_motion(MASSES, POSITIONS, momenta)
    still = momenta - MASSES[:, None] * (rigid.drift + rigid.turning)
    assert still.sum(0) == pytest.approx(np.zeros(3), abs=1e-12)
    assert np.cross(POSITIONS, still).sum(0) == pytest.approx(np.zeros(3), abs=1e-12)
    assert rigid.freedom.sum() == pytest.approx(6.0)
    expected = by_element(numbers, MASSES, POSITIONS, momenta)
    assert by_element(numbers, MASSES, POSITIONS, still) == pytest.approx(expected)
    assert np.isnan(by_element(numbers[:1], MASSES[:1], POSITIONS[:1], momenta[:1])["O"])


def test_a_vibration_stands_where_it_is_in_the_spectrum() -> None:
    time = 2.0 * np.arange(3000)  # fs
    masses, wavenumbers = np.array([1.0, 16.0]), (3700.0, 1200.0)
    velocities = np.zeros((2, len(time), 2, 3))
    for k, wavenumber in enumerate(wavenumbers):
        velocities[:, :, k, k] = np.cos(2 * np.pi * 2.99792458e-5 * wavenumber * time)
    axis, power = spectrum(velocities, masses, 2.0)
    assert power.sum() == pytest.approx(1.0)
    assert axis[-1] == pytest.approx(8339, rel=1e-3)
    assert axis[np.argmax(power)] == pytest.approx(1200, abs=2)  # the heavier atom has more energy at one amplitude
    fast = axis > 2000
    assert axis[fast][np.argmax(power[fast])] == pytest.approx(3700, abs=2)
    assert power[fast].sum() == pytest.approx(1 / 17, rel=0.02)


def test_velocities_remember_what_they_were() -> None:
    period = 40
    velocities = np.cos(2 * np.pi * np.arange(4000) / period)[:, None, None] * np.ones((1, 2, 3))
    found = autocorrelation(velocities, np.array([1.0, 3.0]), 100)
    assert len(found) == 100
    assert found[[0, period // 2, period]] == pytest.approx([1.0, -1.0, 1.0], abs=1e-3)
    assert len(autocorrelation(velocities[:30], np.array([1.0, 3.0]), 100)) == 30
