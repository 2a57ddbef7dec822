"""Rollouts: exact sampling with the energy filter, conservation without, and an ase.md object in every other way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.units import fs
from flow_maps import moving, random_flow
from model_systems import Springs

from egnn_md.chemistry.elements import UnsupportedElement
from egnn_md.chemistry.molecules import bond_pattern
from egnn_md.chemistry.units import BOLTZMANN
from egnn_md.dynamics import FlowDynamics
from egnn_md.dynamics import flow_rollouts as rollout
from egnn_md.dynamics.ase_flow import FlowEnergy
from egnn_md.dynamics.flow_strides import Strider
from egnn_md.dynamics.settings import MDSettings, SettingsError
from egnn_md.dynamics.state import RestartState
from egnn_md.models.flow import UnknownMolecule


def test_a_stride_is_its_substeps() -> None:
    atoms, model = moving(), random_flow()
    strides = {stride: Strider(model, atoms.numbers, atoms.get_masses(), stride) for stride in (5.0, 10.0)}
    half = strides[5.0](*strides[5.0](atoms.positions, atoms.get_momenta()))
    whole = strides[10.0](atoms.positions, atoms.get_momenta())
    np.testing.assert_allclose(half[0], whole[0], atol=1e-12)
    np.testing.assert_allclose(half[1], whole[1], atol=1e-12)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_stride_is_the_same_in_one_piece() -> None:
    """Nothing in it may keep the compiler from making one function of it."""
    atoms, model = moving(), random_flow()
    eager, compiled = (Strider(model, atoms.numbers, atoms.get_masses(), 5.0, compile=c) for c in (False, True))
    torch._dynamo.utils.counters.clear()
    start = atoms.positions, atoms.get_momenta()
    for found, expected in zip(compiled(*start), eager(*start), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-10)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_constant_energy_rollouts_conserve_momenta_and_are_reversible() -> None:
    atoms, start = moving(), moving()
    dynamics = FlowDynamics(atoms, random_flow(strength=0.2, dtype=torch.float32), stride=8.0)
    assert not dynamics.energy_filter
    dynamics.run(20)
    np.testing.assert_allclose(atoms.get_momenta().sum(0), start.get_momenta().sum(0), atol=1e-11)
    turning = [np.cross(a.positions, a.get_momenta()).sum(0) for a in (atoms, start)]
    np.testing.assert_allclose(*turning, atol=1e-10)
    atoms.set_momenta(-atoms.get_momenta())
    dynamics.run(20)
    np.testing.assert_allclose(atoms.positions, start.positions, atol=1e-4)


class FreeFlight:
    """The poorest flow that is reversible and preserves volume: nothing but free flight."""

    def __init__(self, masses: np.ndarray, stride: float) -> None:
        self.per_momentum = stride * fs / masses[:, None]

    def __call__(self, positions: np.ndarray, momenta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return positions + self.per_momentum * momenta, momenta


def test_the_filter_samples_the_calculators_ensemble_with_a_poor_flow() -> None:
    """A spring between two atoms, of which the flow knows nothing: <E> by its partition function, <E_kin> = 3 kT."""
    atoms, steps = Atoms("H2", [[0, 0, 0], [0, 0, 0.9]]), 15000
    atoms.calc = Springs(atoms, k=4.0)
    dynamics = FlowDynamics(atoms, random_flow(), stride=5.0, temperature_K=400.0, friction=100.0, rng=0)
    dynamics.strider = FreeFlight(atoms.get_masses(), 5.0)  # type: ignore[assignment]
    energies, kinetic = [], []
    for _ in range(steps):
        dynamics.step()
        energies.append(atoms.get_potential_energy())
        kinetic.append(atoms.get_kinetic_energy())
    kt, d = BOLTZMANN * 400.0, np.linspace(0.3, 1.5, 2001)
    weight = d**2 * np.exp(-2.0 * (d - 0.9) ** 2 / kt)
    expected = float((weight * 2.0 * (d - 0.9) ** 2).sum() / weight.sum())
    assert 0.2 < dynamics.accepted / steps < 0.95, "the filter must have something to do"
    assert np.mean(energies) == pytest.approx(expected, rel=0.06)
    assert np.mean(kinetic) == pytest.approx(3.0 * kt, rel=0.03)


def test_energies_are_the_models_own_without_a_calculator() -> None:
    atoms, model = moving(), random_flow(strength=0.2)
    FlowDynamics(atoms, model, stride=5.0, temperature_K=300.0, rng=0).run(5)
    assert isinstance(atoms.calc, FlowEnergy)
    fresh = Strider(model, atoms.numbers, atoms.get_masses(), 5.0)
    assert atoms.get_potential_energy() == pytest.approx(fresh.energy(atoms.positions), abs=1e-9)
    atoms.positions[0] += 0.1
    assert atoms.get_potential_energy() == pytest.approx(fresh.energy(atoms.positions), abs=1e-9)
    with pytest.raises(NotImplementedError, match="a flow map gives no forces"):
        atoms.get_forces()


def test_observers_trajectories_and_logs_as_in_ase(tmp_path: Path) -> None:
    atoms, seen = moving(), []
    dynamics = FlowDynamics(
        atoms,
        random_flow(strength=0.2),
        stride=2.0,
        temperature_K=300.0,
        rng=1,
        trajectory=str(tmp_path / "a.traj"),
        logfile=str(tmp_path / "a.log"),
        loginterval=2,
    )
    dynamics.attach(lambda: seen.append(dynamics.get_time() / fs), interval=3)
    dynamics.run(6)
    dynamics.close()
    assert seen == pytest.approx([0.0, 6.0, 12.0], rel=1e-6)
    frames = ase.io.read(tmp_path / "a.traj", ":")
    assert len(frames) == 4
    np.testing.assert_allclose(frames[-1].positions, atoms.positions)
    assert frames[-1].get_potential_energy() == pytest.approx(atoms.get_potential_energy())
    assert len((tmp_path / "a.log").read_text().splitlines()) == 5


def test_the_same_seed_gives_the_same_rollout() -> None:
    ends = []
    for seed in (1, 1, 2):
        atoms = moving()
        FlowDynamics(atoms, random_flow(strength=0.003), 10.0, temperature_K=300.0, rng=seed).run(5)
        ends.append(atoms.positions)
    assert np.array_equal(ends[0], ends[1])
    assert not np.allclose(ends[0], ends[2])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"pbc": True, "cell": [9, 9, 9]}, {}, "isolated molecules"),
        ({"info": {"charge": 1}}, {}, "charged"),
        ({"info": {"spin": 3}}, {}, "multiplicity"),
        ({}, {"stride": 0.0}, "stride must be at least"),
        ({}, {"stride": float("nan")}, "stride must be at least"),
        ({}, {"temperature_K": -1.0}, "temperature_K must be above 0"),
        ({}, {"temperature_K": 300.0, "friction": 0.0}, "friction must be above 0"),
        ({}, {"energy_filter": True}, "energy_filter needs a thermostat"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    atoms = moving()
    for name, value in change.items():
        setattr(atoms, name, value)
    with pytest.raises(SettingsError, match=message):
        FlowDynamics(atoms, random_flow(), **options)


def test_unknown_elements_and_models_of_another_kind_are_refused(checkpoint_file: Path) -> None:
    with pytest.raises(UnsupportedElement, match="the structure has N"):
        FlowDynamics(moving("NH3"), random_flow())
    with pytest.raises(SettingsError, match="is a Potential"):
        FlowDynamics(moving(), checkpoint_file)


def test_only_the_molecules_of_the_training_are_moved() -> None:
    ethanol = moving()
    model = random_flow(strength=0.003, molecules=(bond_pattern(ethanol.numbers, ethanol.positions),))
    FlowDynamics(ethanol[::-1], model)  # whatever the order of the atoms
    for other, message in (("CH3OCH3", "C2H6O, with other bonds"), ("H2O", "the structure is H2O")):
        with pytest.raises(UnknownMolecule, match=message):
            FlowDynamics(moving(other), model)


def test_the_bond_pattern_tells_isomers_apart_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    names = ("CH3CH2OH", "CH3OCH3", "trans-butane", "isobutane", "C6H6", "CH3CHO", "C2H6CHOH", "cyclobutane", "C4H4O")
    patterns = set()
    for atoms in map(molecule, names):
        first = bond_pattern(atoms.numbers, atoms.positions)
        shuffled = atoms[rng.permutation(len(atoms))]
        moved = -shuffled.positions + 0.05 * rng.standard_normal(shuffled.positions.shape)  # mirrored, vibrating
        assert bond_pattern(shuffled.numbers, moved) == first
        patterns.add(first)
    assert len(patterns) == len(names)


def test_an_interrupted_rollout_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    model = random_flow(strength=0.003)
    settings = MDSettings(timestep=7.0, steps=12, interval=2, seed=3, format="extxyz")
    whole = rollout.start(moving(), model, settings, tmp_path / "whole")
    summary = whole.run()
    assert summary["status"] == "finished"
    assert 0.0 < summary["accepted_fraction"] <= 1.0
    parts = rollout.start(moving(), model, MDSettings(**{**settings.to_dict(), "steps": 5}), tmp_path / "parts")
    parts.run()
    state = RestartState.load(tmp_path / "parts" / "state.npz")
    again = rollout.resume(state, tmp_path / "parts", model, steps=12)
    assert again.run()["accepted_fraction"] == summary["accepted_fraction"]
    np.testing.assert_array_equal(again.atoms.positions, whole.atoms.positions)
    assert (tmp_path / "parts" / "log.csv").read_text() == (tmp_path / "whole" / "log.csv").read_text()
    assert len(ase.io.read(tmp_path / "parts" / "trajectory.extxyz", ":")) == 7
