"""Molecular dynamics obeys the laws of its ensembles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.units
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms, FixBondLength
from ase.io import read
from model_systems import Springs, Wells, grid

from egnn_md.chemistry.units import BOLTZMANN, EV_PER_A3_PER_BAR, FS_PER_TIME_UNIT
from egnn_md.dynamics import md
from egnn_md.dynamics.integrators import degrees_of_freedom, set_velocities
from egnn_md.dynamics.observers import read_log
from egnn_md.dynamics.settings import ENGINES, MDSettings, SettingsError
from egnn_md.dynamics.starting_structures import StructureError


def run(atoms: Atoms, folder: Path, **settings: Any) -> dict[str, Any]:
    return md.start(atoms, MDSettings(**settings), folder).run()


both_engines = pytest.mark.parametrize("engine", ENGINES)


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.calc = Springs(atoms, k=5.0)
    return atoms


@both_engines
def test_period_of_a_diatomic_is_right_in_fs(engine: str, tmp_path: Path) -> None:
    k, reduced_mass = 30.0, 0.5 * 14.007
    atoms = Atoms("N2", [[0, 0, 0], [0, 0, 1.1]])
    atoms.calc = Springs(atoms, k)
    atoms.positions[1, 2] += 0.05
    atoms.set_velocities(np.full((2, 3), 1e-12))  # has velocities: none are drawn
    run(atoms, tmp_path, engine=engine, ensemble="nve", steps=1000, timestep=0.2, interval=1)
    energy = read_log(tmp_path / "log.csv")["epot_eV"]
    minima = np.flatnonzero((energy[1:-1] < energy[:-2]) & (energy[1:-1] < energy[2:])) + 1  # twice a period
    period = 2.0 * 0.2 * (minima[-1] - minima[0]) / (len(minima) - 1)
    expected = 2.0 * np.pi * np.sqrt(reduced_mass / k) * FS_PER_TIME_UNIT
    assert period == pytest.approx(expected, rel=2e-3)


def test_nve_error_falls_with_the_square_of_the_timestep(tmp_path: Path) -> None:
    spread = []
    for timestep in (1.0, 0.5):
        summary = run(ethanol(), tmp_path / str(timestep), ensemble="nve", timestep=timestep, seed=3, interval=4,
                      steps=int(500 / timestep))  # fmt: skip
        spread.append(read_log(tmp_path / str(timestep) / "log.csv")["etot_eV"].std())
        assert summary["status"] == "finished"
        assert abs(summary["energy_drift_meV_per_atom_per_ps"]) < 0.5
    assert spread[0] / spread[1] == pytest.approx(4.0, rel=0.15)


def test_velocities_have_no_total_momentum_and_the_temperature_asked_for() -> None:
    temperatures = []
    for seed in range(300):
        atoms = molecule("CH3CH2OH")
        atoms.rattle(0.05, seed=seed)
        set_velocities(atoms, 300.0, np.random.default_rng(seed))
        assert np.abs(atoms.get_momenta().sum(0)).max() < 1e-12
        assert np.abs(atoms.get_angular_momentum()).max() < 1e-11
        n = degrees_of_freedom(atoms, "nve")
        assert n == 21
        temperatures.append(2 * atoms.get_kinetic_energy() / (n * BOLTZMANN))
    # the mean of 300 samples of 21 degrees of freedom has a standard error of 1.8 %
    assert np.mean(temperatures) == pytest.approx(300.0, rel=0.06)


@pytest.mark.parametrize(
    ("atoms", "nve", "nvt"),
    [
        (molecule("CH4"), 9, 15),
        (molecule("CO2"), 4, 9),
        (molecule("H2"), 1, 6),
        (Atoms("Ar"), 0, 3),
        (grid(2, periodic=True), 21, 24),
    ],
    ids=["CH4", "CO2", "H2", "Ar", "crystal"],
)
def test_degrees_of_freedom(atoms: Atoms, nve: int, nvt: int) -> None:
    atoms = atoms.copy()
    set_velocities(atoms, 300.0, np.random.default_rng(0))
    assert degrees_of_freedom(atoms, "nve") == nve
    assert degrees_of_freedom(atoms, "nvt") == nvt
    atoms.set_momenta(atoms.get_momenta() + 1.0)  # velocities of a file that drift: nothing is conserved at zero
    assert degrees_of_freedom(atoms, "nve") == nvt
    atoms.set_constraint(FixAtoms([0]))
    assert degrees_of_freedom(atoms, "nvt") == nvt - 3


def test_velocities_of_the_structure_are_kept(tmp_path: Path) -> None:
    atoms = ethanol()
    momenta = np.random.default_rng(0).normal(size=(9, 3))
    atoms.set_momenta(momenta)
    md.start(atoms, MDSettings(steps=0), tmp_path)
    assert np.array_equal(read(tmp_path / "trajectory.traj", 0).get_momenta(), momenta)


@both_engines
def test_langevin_samples_the_canonical_ensemble(engine: str, tmp_path: Path) -> None:
    atoms, k, temperature, timestep = grid(4), 2.0, 300.0, 4.0
    atoms.calc = Wells(atoms.positions, k)
    centres = atoms.positions.copy()
    settings = {"temperature": temperature, "friction": 20.0, "timestep": timestep}
    run(atoms, tmp_path, engine=engine, ensemble="nvt", steps=4000, seed=1, **settings)
    frames = read(tmp_path / "trajectory.traj", ":")[60:]  # 2.4 ps to come to equilibrium
    # 340 frames of 192 degrees of freedom 40 fs apart, correlated over about 100 fs: standard error about 1 %
    spread = np.mean([(frame.positions - centres) ** 2 for frame in frames])
    assert spread == pytest.approx(BOLTZMANN * temperature / k, rel=0.05)  # exact for any timestep
    omega_dt = np.sqrt(k / atoms.get_masses()[0]) * timestep / FS_PER_TIME_UNIT
    kinetic = read_log(tmp_path / "log.csv")["temperature_K"][60:].mean()
    error = omega_dt**2 / 4 if engine == "ase" else 0.0  # BAOAB's full-step velocities; the half-step ones have none
    assert kinetic == pytest.approx(temperature * (1 - error), rel=0.05)


@both_engines
def test_friction_is_per_ps(engine: str, tmp_path: Path) -> None:
    """Without forces and at almost no temperature, velocities fall as exp(-γ t)."""
    atoms = grid(2)
    atoms.calc = Wells(atoms.positions, 0.0)
    atoms.set_velocities(np.full((8, 3), 0.05))
    settings = {"temperature": 1e-6, "friction": 4.0, "timestep": 1.0}
    run(atoms, tmp_path, engine=engine, ensemble="nvt", steps=500, interval=500, **settings)
    energies = read_log(tmp_path / "log.csv")["ekin_eV"]
    assert energies[1] / energies[0] == pytest.approx(np.exp(-2 * 4.0 * 0.5), rel=1e-3)


def test_npt_gives_the_volume_of_an_ideal_gas(tmp_path: Path) -> None:
    """<V> = (n + 1) k T / P for n free atoms; a triclinic cell keeps its shape."""
    atoms = grid(3, 3.5, periodic=True)
    atoms.set_cell(np.array([[10.0, 0, 0], [3.0, 11.0, 0], [-2.0, 1.0, 10.0]]), scale_atoms=True)
    shape = atoms.cell.array / atoms.get_volume() ** (1 / 3)
    atoms.calc = Wells(atoms.positions, 0.0)
    temperature, pressure = 300.0, 1000.0
    summary = run(
        atoms, tmp_path, ensemble="npt", temperature=temperature, pressure=pressure, timestep=20.0, steps=6000, seed=2
    )
    expected = (len(atoms) + 1) * BOLTZMANN * temperature / (pressure * EV_PER_A3_PER_BAR)
    # relative spread of V 0.19, correlated over about 2 ps of 120: standard error 2.5 %
    assert summary["mean_volume_A3"] == pytest.approx(expected, rel=0.1)
    assert summary["mean_temperature_K"] == pytest.approx(temperature, rel=0.04)
    last = read(tmp_path / "trajectory.traj", -1)
    assert last.cell.array / last.get_volume() ** (1 / 3) == pytest.approx(shape, abs=1e-9)
    log = read_log(tmp_path / "log.csv")
    kinetic_pressure = 2 * log["ekin_eV"] / (3 * log["volume_A3"]) / EV_PER_A3_PER_BAR
    assert log["pressure_bar"] == pytest.approx(kinetic_pressure, rel=1e-4)


@both_engines
def test_fixed_atoms_stay(engine: str, tmp_path: Path) -> None:
    atoms = grid(2)
    atoms.calc = Wells(atoms.positions + 0.1, 1.0)
    atoms.set_constraint(FixAtoms([0, 3]))
    start = atoms.positions.copy()
    run(atoms, tmp_path, engine=engine, ensemble="nvt", steps=50, seed=0)
    moved = np.abs(read(tmp_path / "trajectory.traj", -1).positions - start).max(1)
    assert moved[[0, 3]].max() < 1e-12  # nm and Å round differently
    assert moved[[1, 2, 4, 5, 6, 7]].min() > 1e-3


@both_engines
def test_log_says_what_ase_says(engine: str, tmp_path: Path) -> None:
    run(ethanol(), tmp_path, engine=engine, ensemble="nvt", steps=30, seed=0)
    log, frames = read_log(tmp_path / "log.csv"), read(tmp_path / "trajectory.traj", ":")
    assert log["time_fs"].tolist() == [0.0, 5.0, 10.0, 15.0]
    assert log["epot_eV"] == pytest.approx([frame.get_potential_energy() for frame in frames], abs=1e-6)
    assert log["temperature_K"] == pytest.approx([frame.get_temperature() for frame in frames], rel=1e-5)
    assert log["etot_eV"] == pytest.approx(log["epot_eV"] + log["ekin_eV"], abs=2e-7)
    assert pytest.approx(ase.units.fs, rel=1e-6) == 1 / FS_PER_TIME_UNIT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "gromacs"}, "ase, openmm"),
        ({"ensemble": "nvp"}, "nve, nvt, npt"),
        ({"timestep": 0.0}, "timestep"),
        ({"timestep": float("nan")}, "timestep"),
        ({"temperature": -1.0}, "temperature"),
        ({"friction": 0.0}, "friction"),
        ({"steps": -1}, "steps"),
        ({"interval": 0}, "interval"),
        ({"seed": -1}, "seed"),
        ({"pressure": float("inf")}, "pressure"),
        ({"format": "pdb"}, "traj, extxyz"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        MDSettings(**change)


def test_ensemble_and_structure_must_go_together(tmp_path: Path) -> None:
    slab = grid(2, periodic=True)
    slab.pbc = (True, True, False)
    slab.calc = Wells(slab.positions, 1.0)
    with pytest.raises(SettingsError, match="periodic in three directions"):
        md.start(slab, MDSettings(ensemble="npt"), tmp_path / "run")
    with pytest.raises(SettingsError, match="all three directions or in none"):
        md.start(slab, MDSettings(engine="openmm"), tmp_path / "run")
    bond = ethanol()
    bond.set_constraint(FixBondLength(0, 1))
    with pytest.raises(SettingsError, match="FixBondLength"):
        md.start(bond, MDSettings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_structure_that_the_calculator_refuses_leaves_no_folder(tmp_path: Path) -> None:
    atoms = grid(2)
    atoms.calc = Wells(atoms.positions[:3], 1.0)  # numpy raises ValueError
    with pytest.raises(StructureError):
        md.start(atoms, MDSettings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
