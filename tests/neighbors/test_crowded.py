"""The repulsion of crowded structures is an energy with its forces and stress, and sane structures have none."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import molecule

from egnn_md.neighbors.crowded import CROWDED, PLATEAU, repulsion_of

NOWHERE = np.zeros((3, 3)), np.zeros(3, bool)
CELL = np.diag([4.0, 4.5, 5.0]) + 0.3


def test_forces_and_stress_are_derivatives_of_the_energy() -> None:
    rng = np.random.default_rng(0)
    numbers, positions, pbc = np.array([6, 1, 8, 1, 6]), rng.uniform(0, 1.5, (5, 3)), np.ones(3, bool)

    def energy(x: np.ndarray, cell: np.ndarray) -> float:
        found = repulsion_of(x, numbers, cell, pbc)
        assert found is not None
        return float(found.energies.sum())

    found = repulsion_of(positions, numbers, CELL, pbc)
    assert found is not None
    assert found.stress is not None
    assert energy(positions, CELL) > PLATEAU
    h = 1e-5
    for k in np.ndindex(5, 3):
        step = np.zeros((5, 3))
        step[k] = h
        slope = (energy(positions + step, CELL) - energy(positions - step, CELL)) / (2 * h)
        assert found.forces[k] == pytest.approx(-slope, abs=1e-3)
    for k in np.ndindex(3, 3):
        strain = np.zeros((3, 3))
        strain[k] = h
        up, down = np.eye(3) + strain, np.eye(3) - strain
        slope = (energy(positions @ up, CELL @ up) - energy(positions @ down, CELL @ down)) / (2 * h)
        assert found.stress[k] == pytest.approx(slope / abs(np.linalg.det(CELL)), abs=1e-4)


def test_sane_structures_have_none_and_one_place_is_finite() -> None:
    atoms = molecule("C6H6")
    assert repulsion_of(atoms.positions, atoms.numbers, *NOWHERE) is None
    assert repulsion_of(CROWDED * 1.01 * atoms.positions, atoms.numbers, *NOWHERE) is not None  # C-C are shorter than 1
    atoms.positions[1] = atoms.positions[0]
    found = repulsion_of(atoms.positions, atoms.numbers, *NOWHERE)
    assert found is not None
    assert np.isfinite(found.forces).all()
    assert found.stress is None
