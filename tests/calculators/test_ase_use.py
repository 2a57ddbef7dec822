"""The calculator in the tools that people drive it with: each of ase's that the documentation promises."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.fd import FiniteDifferenceCalculator
from ase.calculators.mixing import LinearCombinationCalculator
from ase.filters import FrechetCellFilter
from ase.io import Trajectory, read, write
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from ase.phonons import Phonons
from ase.vibrations import Vibrations

from egnn_md.calculators import EGNNCalculator


@pytest.fixture
def calculator(random_potential):
    model = random_potential()
    model.familiarity.unit.fill_(1e6)
    return EGNNCalculator(model)


def crystal():
    cell = np.array([[3.4, 0.0, 0.0], [0.6, 3.7, 0.0], [-0.5, 0.8, 3.9]])
    return Atoms("CO", scaled_positions=[[0.02, 0.05, 0.01], [0.2, 0.25, 0.28]], cell=cell, pbc=True)


@pytest.mark.parametrize("optimizer", [BFGS, FIRE])
def test_optimize(optimizer, calculator):
    atoms = molecule("CH3OH", calculator=calculator)
    start = atoms.get_potential_energy()
    assert optimizer(atoms, logfile=None).run(fmax=0.01, steps=500)
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() <= 0.01
    assert atoms.get_potential_energy() < start - 0.01


def test_cell_relaxation(calculator):
    atoms = crystal()
    atoms.calc = calculator
    start = np.abs(atoms.get_stress()).max()
    assert FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.02, steps=500)
    assert np.abs(atoms.get_stress()).max() < 0.1 * start


@pytest.mark.parametrize("make", [lambda: molecule("CH3OH"), crystal])
def test_md_conserves_energy_to_second_order(make, calculator):
    """The error of velocity Verlet falls with the square of the step: forces and energies belong together."""
    spread = []
    for timestep in (0.4, 0.2):
        atoms = make()
        thermal = np.sqrt(units.kB * 300 * atoms.get_masses()[:, None])
        atoms.set_momenta(thermal * np.random.default_rng(0).normal(size=(len(atoms), 3)))
        atoms.calc = calculator
        energies = []
        dynamics = VelocityVerlet(atoms, timestep=timestep * units.fs)
        dynamics.attach(lambda atoms=atoms, energies=energies: energies.append(atoms.get_total_energy()))
        dynamics.run(round(16 / timestep))
        spread.append(np.ptp(energies))
    assert 3.0 < spread[0] / spread[1] < 5.5
    assert spread[0] < 0.01 * atoms.get_kinetic_energy() + 0.02


def test_vibrations(calculator, tmp_path):
    """The Hessian is symmetric and knows no force against a translation."""
    atoms = molecule("H2O", calculator=calculator)
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-3)
    vibrations.run()
    hessian = vibrations.get_vibrations().get_hessian()
    scale = np.abs(hessian).max()
    assert np.abs(hessian.sum(axis=2)).max() < 1e-8 * scale
    assert np.abs(hessian - hessian.transpose(2, 3, 0, 1)).max() < 1e-8 * scale
    assert scale > 1.0


def test_phonons(calculator, tmp_path):
    """Acoustic modes at Γ are free."""
    atoms = crystal()
    phonons = Phonons(atoms, calculator, supercell=(3, 3, 3), delta=1e-3, name=str(tmp_path / "phonon"))
    phonons.run()
    phonons.read(acoustic=False)
    squared = np.sort(np.abs(phonons.band_structure([[0, 0, 0]], verbose=False).ravel()) ** 2)
    assert squared[2] < 1e-5 * squared[-1]
    assert squared[3] > 1e-3 * squared[-1]


def test_nudged_elastic_band(calculator):
    """Sharing one calculator changes nothing."""
    end = molecule("CH3OH")
    end.rattle(0.1, seed=1)
    forces = []
    for shared in (True, False):
        images = [molecule("CH3OH"), *(molecule("CH3OH") for _ in range(2)), end.copy()]
        band = NEB(images, allow_shared_calculator=shared, method="improvedtangent", climb=True)
        band.interpolate()
        for image in images:
            image.calc = calculator if shared else copy.deepcopy(calculator)
        forces.append(band.get_forces())
    assert np.abs(forces[0]).max() > 0.1
    assert np.allclose(forces[0], forces[1], rtol=0, atol=1e-9 * np.abs(forces[0]).max())


def test_calculators_of_calculators(calculator):
    atoms = crystal()
    atoms.calc = calculator
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    atoms.calc = LinearCombinationCalculator([calculator, copy.deepcopy(calculator)], [0.25, 0.5])
    assert atoms.get_potential_energy() == pytest.approx(0.75 * energy)
    assert np.allclose(atoms.get_stress(), 0.75 * stress)
    atoms.calc = FiniteDifferenceCalculator(calculator, eps_disp=1e-4, eps_strain=1e-5)
    assert np.allclose(atoms.get_forces(), forces, rtol=0, atol=1e-5 * np.abs(forces).max())
    assert np.allclose(atoms.get_stress(), stress, rtol=0, atol=1e-5 * np.abs(stress).max())


@pytest.mark.parametrize("make", [crystal, lambda: molecule("H2O")])
def test_files_keep_the_results(make, calculator, tmp_path):
    atoms = make()
    atoms.calc = calculator
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    with Trajectory(tmp_path / "run.traj", "w") as trajectory:
        trajectory.write(atoms)
    write(tmp_path / "run.extxyz", atoms)
    for name in ("run.traj", "run.extxyz"):
        back = read(tmp_path / name)
        assert back.get_potential_energy() == pytest.approx(energy)
        assert np.allclose(back.get_forces(), forces, atol=1e-7)
        if atoms.pbc.all():
            assert np.allclose(back.get_stress(), atoms.get_stress(), atol=1e-7)


def test_ase_names_all_results(calculator):
    atoms = crystal()
    atoms.calc = calculator
    properties = atoms.get_properties(["energy", "forces", "stress", "energies", "free_energy"])
    assert set(properties) >= {"energy", "forces", "stress", "energies", "free_energy", "natoms"}
    assert calculator.name == "egnncalculator"
    assert not calculator.get_spin_polarized()
