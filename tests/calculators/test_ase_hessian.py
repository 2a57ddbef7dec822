"""The calculator's second derivatives: those of its energy, with the zero modes that invariance asks for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.optimize import BFGS
from ase.vibrations import Vibrations

from egnn_md.calculators import EGNNCalculator
from egnn_md.models.potential import Potential


def periodic_water() -> Atoms:
    atoms = molecule("H2O")
    atoms.set_cell([[3.5, 0, 0], [0.4, 3.6, 0], [-0.3, 0.5, 3.4]])
    atoms.pbc = True
    return atoms


@pytest.mark.parametrize("atoms", [molecule("CH3OH"), periodic_water()], ids=["molecule", "periodic"])
def test_second_derivatives_of_the_energy(atoms: Atoms, familiar_file: Path) -> None:
    calculator = EGNNCalculator(familiar_file)
    hessian = calculator.get_hessian(atoms)
    assert hessian.shape == (3 * len(atoms), 3 * len(atoms))
    assert (hessian == hessian.T).all()
    atoms.calc = calculator
    energy, start, step = atoms.get_potential_energy(), atoms.positions.copy(), 0.002
    rng = np.random.default_rng(0)
    for _ in range(3):
        way = rng.normal(size=start.shape)
        way /= np.linalg.norm(way)
        along = []
        for sign in (1, -1):
            atoms.positions = start + sign * step * way
            along.append(atoms.get_potential_energy())
        curvature = (along[0] + along[1] - 2 * energy) / step**2
        expected = way.reshape(-1) @ hessian @ way.reshape(-1)
        assert curvature == pytest.approx(expected, abs=1e-4 * np.abs(hessian).max())


def test_translations_cost_nothing_and_rotations_neither_at_a_minimum(shipped: str) -> None:
    atoms = molecule("CH3OH")
    atoms.calc = EGNNCalculator(shipped)
    BFGS(atoms, logfile=None).run(fmax=1e-5, steps=300)
    hessian = atoms.calc.get_hessian()
    translations = np.tile(np.eye(3), (len(atoms), 1))
    assert np.abs(hessian @ translations).max() < 1e-6
    rotations = np.stack([np.cross(axis, atoms.positions).reshape(-1) for axis in np.eye(3)], 1)
    assert np.abs(hessian @ rotations).max() < 1e-3
    assert np.linalg.eigvalsh(hessian)[6] > 1e-3


def test_frequencies_are_those_of_ase_vibrations(shipped: str, tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.calc = EGNNCalculator(shipped)
    BFGS(atoms, logfile=None).run(fmax=1e-4, steps=200)
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-3)
    vibrations.run()
    theirs = vibrations.get_vibrations().get_hessian_2d()
    np.testing.assert_allclose(atoms.calc.get_hessian(atoms), theirs, atol=1e-3)  # two-point differences err by h²


def test_a_committee_gives_the_mean(familiar_potential: Callable[..., Potential]) -> None:
    members = [familiar_potential(seed) for seed in (0, 1)]
    atoms = molecule("H2O")
    each = [EGNNCalculator(member).get_hessian(atoms) for member in members]
    np.testing.assert_allclose(EGNNCalculator(members).get_hessian(atoms), np.mean(each, axis=0), atol=1e-7)


def test_refusals_and_the_last_atoms(familiar_file: Path) -> None:
    calculator = EGNNCalculator(familiar_file)
    with pytest.raises(ValueError, match="there are no atoms"):
        calculator.get_hessian()
    charged = molecule("H2O")
    charged.info["charge"] = 1
    with pytest.raises(ValueError, match="charge"):
        calculator.get_hessian(charged)
    atoms = molecule("H2O")
    atoms.calc = calculator
    atoms.get_potential_energy()
    results = dict(calculator.results)
    assert (calculator.get_hessian() == calculator.get_hessian(atoms)).all()
    assert calculator.results.keys() == results.keys()
