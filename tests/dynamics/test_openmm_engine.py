"""OpenMM as the engine of a run gives the physics that ase gives, in any cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read
from model_systems import Springs, Wells, grid

from egnn_md.chemistry.units import BOLTZMANN, EV_PER_A3_PER_BAR
from egnn_md.dynamics import md
from egnn_md.dynamics.observers import read_log
from egnn_md.dynamics.openmm_engine import OpenMMIntegrator, orient
from egnn_md.dynamics.settings import MDSettings
from egnn_md.dynamics.state import RestartState


def run(atoms: Atoms, folder: Path, **settings: Any) -> dict[str, Any]:
    return md.start(atoms, MDSettings(**settings), folder).run()


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.calc = Springs(atoms, k=5.0)
    return atoms


def test_nve_is_the_trajectory_of_ase(tmp_path: Path) -> None:
    for engine in ("ase", "openmm"):
        run(ethanol(), tmp_path / engine, engine=engine, ensemble="nve", steps=200, seed=3)
    one, other = (read(tmp_path / engine / "trajectory.traj", ":") for engine in ("ase", "openmm"))
    assert np.abs(one[-1].positions - one[0].positions).max() > 0.05
    for ase_frame, frame in zip(one, other, strict=True):
        assert frame.positions == pytest.approx(ase_frame.positions, abs=1e-7)
        assert frame.get_momenta() == pytest.approx(ase_frame.get_momenta(), abs=1e-7)
        assert frame.get_potential_energy() == pytest.approx(ase_frame.get_potential_energy(), abs=1e-7)


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_one_force_call_a_step(ensemble: Any, tmp_path: Path) -> None:
    atoms = grid(2)
    atoms.calc = Wells(atoms.positions, 1.0)
    simulation = md.start(atoms, MDSettings(engine="openmm", ensemble=ensemble, steps=20), tmp_path)
    before = atoms.calc.calls
    simulation.run()
    assert atoms.calc.calls - before == 20


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_npt_goes_towards_the_volume_of_an_ideal_gas(factor: float, tmp_path: Path) -> None:
    temperature, pressure = 300.0, 1000.0
    atoms = grid(3, 3.5, periodic=True)
    expected = (len(atoms) + 1) * BOLTZMANN * temperature / (pressure * EV_PER_A3_PER_BAR)
    atoms.set_cell(atoms.cell * (factor * expected / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    start = atoms.get_volume()
    atoms.calc = Wells(atoms.positions, 0.0)
    settings = {"ensemble": "npt", "temperature": temperature, "pressure": pressure, "steps": 4000, "seed": 1}
    run(atoms, tmp_path, engine="openmm", **settings)
    log = read_log(tmp_path / "log.csv")
    assert log["volume_A3"][0] == pytest.approx(start)
    assert abs(np.log(log["volume_A3"][-1] / expected)) < 0.85 * abs(
        np.log(factor)
    )  # each attempt moves it by a percent or two
    last = read(tmp_path / "trajectory.traj", -1)
    assert last.cell.array == pytest.approx(last.get_volume() ** (1 / 3) * np.eye(3), abs=1e-6)


def test_npt_goes_on_after_a_stop(tmp_path: Path) -> None:
    atoms = grid(2, 4.0, periodic=True)
    atoms.calc = Wells(atoms.positions, 0.0)
    run(atoms, tmp_path, engine="openmm", ensemble="npt", pressure=500.0, steps=100, seed=1)
    state = RestartState.load(tmp_path / "state.npz")
    gas = Wells(state.arrays["positions"], 0.0)
    assert md.resume(state, tmp_path, gas, 200).run()["status"] == "finished"
    volumes = read_log(tmp_path / "log.csv")["volume_A3"]
    assert len(volumes) == 21
    assert abs(volumes[11] / volumes[10] - 1) < 0.05
    assert len(set(volumes[10:])) > 1


@pytest.mark.filterwarnings("ignore::egnn_md.calculators.ExtrapolationWarning")
@pytest.mark.parametrize("seed", range(3))
def test_turned_cells_keep_their_physics(seed: int, checkpoint_file: Path) -> None:
    """Any orientation, handedness and choice of cell vectors: OpenMM takes it, and energy and forces turn along."""
    from egnn_md.calculators import EGNNCalculator

    rng = np.random.default_rng(seed)
    cell = (6 * np.eye(3) + rng.uniform(-1.5, 1.5, (3, 3))) @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    cell = np.array([[1, 0, 0], [1, 1, 0], [0, -1, -1]]) @ cell  # the same lattice by longer vectors
    atoms = Atoms(
        "CHOH", scaled_positions=0.2 * np.arange(4)[:, None] + rng.uniform(0, 0.1, (4, 3)), cell=cell, pbc=True
    )
    atoms.calc = EGNNCalculator(checkpoint_file)
    energy, sizes = atoms.get_potential_energy(), np.linalg.norm(atoms.get_forces(), axis=1)
    atoms.set_momenta(rng.normal(size=(4, 3)))
    kinetic, angle = atoms.get_kinetic_energy(), np.vdot(atoms.get_momenta(), atoms.get_forces())
    orient(atoms)
    assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-10)
    assert np.linalg.norm(atoms.get_forces(), axis=1) == pytest.approx(sizes, rel=1e-8)
    assert atoms.get_kinetic_energy() == pytest.approx(kinetic)
    assert np.vdot(atoms.get_momenta(), atoms.get_forces()) == pytest.approx(angle, rel=1e-8)
    OpenMMIntegrator(atoms, MDSettings(engine="openmm")).step()


def test_an_oriented_cell_is_left_alone() -> None:
    for atoms in (bulk("C", "fcc", a=3.6, cubic=True), bulk("C", "hcp", a=2.5, c=4.0), molecule("H2O")):
        atoms.calc = Wells(atoms.positions, 1.0)
        before = atoms.positions.copy()
        orient(atoms)
        assert np.array_equal(atoms.positions, before)
        OpenMMIntegrator(atoms, MDSettings(engine="openmm"))


def test_a_foreign_checkpoint_is_warned_about(tmp_path: Path) -> None:
    settings = MDSettings(engine="openmm", ensemble="nvt", steps=10, seed=1)
    md.start(ethanol(), settings, tmp_path).run()
    state = RestartState.load(tmp_path / "state.npz")
    state.memory["checkpoint"] = "AAAA"
    with pytest.warns(UserWarning, match="OpenMM does not take"):
        simulation = md.resume(state, tmp_path, ethanol().calc, 20)
    assert simulation.atoms.positions == pytest.approx(state.arrays["positions"], abs=1e-12)
    assert simulation.atoms.get_momenta() == pytest.approx(state.arrays["momenta"], abs=1e-12)
    assert simulation.run()["status"] == "finished"
