"""The guess of a Hessian: its laws, and how near it comes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from egnn_md.chemistry.elements import COVALENT_RADII
from egnn_md.dynamics.model_hessian import FLOOR, STRETCH, STRETCH_DECAY, model_hessian


def guess(atoms: Atoms, padded: int = 0) -> np.ndarray:
    n = len(atoms) + padded
    positions, radii = torch.zeros(1, n, 3, dtype=torch.float64), torch.zeros(1, n, dtype=torch.float64)
    positions[0, : len(atoms)] = torch.from_numpy(atoms.positions)
    radii[0, : len(atoms)] = torch.tensor(COVALENT_RADII, dtype=torch.float64)[torch.from_numpy(atoms.numbers)]
    return model_hessian(positions[:, :, None] - positions[:, None], radii, radii > 0)[0].numpy()


def test_two_atoms_are_a_spring() -> None:
    atoms = Atoms("CO", [[0, 0, 0], [1.13, 0, 0]])
    relative = 1.13 / (COVALENT_RADII[6] + COVALENT_RADII[8])
    stiffness = STRETCH * np.exp(-STRETCH_DECAY * (relative - 1.0))
    spring = np.zeros((6, 6))
    spring[np.ix_([0, 3], [0, 3])] = stiffness * np.array([[1, -1], [-1, 1]])
    np.testing.assert_allclose(guess(atoms), spring + FLOOR * np.eye(6), rtol=1e-12)


@pytest.mark.parametrize("name", ["CH3CH2OH", "C6H6", "HCN", "C2H2", "bicyclobutane"])
def test_moving_or_turning_the_molecule_costs_nothing_but_the_floor(name: str) -> None:
    atoms = molecule(name)
    hessian, n = guess(atoms), len(atoms)
    assert np.linalg.eigvalsh(hessian).min() >= FLOOR - 1e-9
    for axis in np.eye(3):
        shift, turn = np.tile(axis, n), np.cross(axis, atoms.positions).ravel()
        np.testing.assert_allclose(hessian @ shift, FLOOR * shift, atol=1e-9)
        if name not in ("HCN", "C2H2"):  # the derivatives of their angles are damped
            np.testing.assert_allclose(hessian @ turn, FLOOR * turn, atol=1e-9)
    turned = atoms.copy()
    turned.rotate(40, (1, 2, 3), center=(1, 1, 1))
    np.testing.assert_allclose(np.linalg.eigvalsh(guess(turned)), np.linalg.eigvalsh(hessian), atol=1e-9)


def test_padding_and_atoms_upon_each_other_do_no_harm() -> None:
    atoms = molecule("CH3OH")
    hessian = guess(atoms, padded=2)
    np.testing.assert_array_equal(hessian[:18, :18], guess(atoms))
    np.testing.assert_array_equal(hessian[18:], FLOOR * np.eye(24)[18:])
    atoms.positions[1] = atoms.positions[0]
    assert np.isfinite(np.linalg.cholesky(guess(atoms))).all()


def test_it_is_nearer_to_the_hessian_of_a_potential_than_any_multiple_of_the_unit_matrix() -> None:
    from egnn_md.calculators import EGNNCalculator

    atoms = molecule("CH3CH2OH")
    atoms.calc = EGNNCalculator("organic-xtb")
    true = atoms.calc.get_hessian(atoms).reshape(27, 27)
    unit = np.trace(true) / 27 * np.eye(27)
    assert np.linalg.norm(guess(atoms) - true) < 0.3 * np.linalg.norm(unit - true)
