"""Many structures at once are their structures one by one, and the integrators keep their laws."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from egnn_md.calculators import EGNNCalculator
from egnn_md.chemistry.elements import UnsupportedElement
from egnn_md.chemistry.units import BOLTZMANN
from egnn_md.dynamics.batched import Batch, Evaluation, State, Thermostat, run
from egnn_md.dynamics.batched_relax import relax_batched
from egnn_md.dynamics.bonds import BondWatch
from egnn_md.dynamics.relax import relax
from egnn_md.models.potential import Potential

Make = Callable[..., Potential]
pytestmark = pytest.mark.filterwarnings("ignore::egnn_md.predict.ExtrapolationWarning")


def structures() -> list[Atoms]:
    """Isolated and periodic, small and beyond the size that keeps every pair."""
    liquid = Atoms("OH2" * 2, np.random.default_rng(0).uniform(0, 5, (6, 3)) + 3 * np.eye(6)[:, :3])
    liquid.set_cell([6.0, 6.5, 7.0, 90, 90, 80])
    liquid.pbc = True
    large = molecule("C6H6")
    for k in range(1, 4):
        large += Atoms("C6H6", molecule("C6H6").positions + np.array([0, 0, 3.4 * k]))
    return [molecule("C6H6"), liquid, molecule("H2O"), large]


def alone(model: Potential, atoms: Atoms) -> Atoms:
    atoms = atoms.copy()
    atoms.calc = EGNNCalculator(model)
    return atoms


def test_a_batch_is_its_structures_one_by_one(random_potential: Make) -> None:
    model, parts = random_potential(), structures()
    batch = Batch(model, parts)
    found = batch.evaluate(batch.positions)
    singles = [alone(model, atoms) for atoms in parts]
    np.testing.assert_allclose(found.energy, [atoms.get_potential_energy() for atoms in singles], rtol=1e-12)
    np.testing.assert_allclose(found.forces, np.concatenate([atoms.get_forces() for atoms in singles]), atol=1e-10)
    np.testing.assert_allclose(found.extrapolation, [atoms.calc.results["extrapolation"] for atoms in singles])


def test_lists_are_renewed_when_atoms_have_moved(random_potential: Make) -> None:
    """A walk far beyond the skin, of structures that keep lists; one of them loses itself."""
    model, parts = random_potential(), structures()
    batch, rng = Batch(model, parts), np.random.default_rng(1)
    lists = [batch.neighbors(batch.positions)[0]]
    positions = batch.positions.clone()
    for _ in range(16):
        positions = positions + torch.tensor(0.04 * rng.normal(size=positions.shape))
        found = batch.evaluate(positions)
        lists.append(batch.neighbors(positions)[0])
        first = 0
        for k, atoms in enumerate(parts):
            moved = atoms.copy()
            moved.positions = positions[first : first + len(atoms)].numpy()
            first += len(atoms)
            assert float(found.energy[k]) == pytest.approx(alone(model, moved).get_potential_energy(), abs=1e-9)
    assert any(a is b for a, b in pairwise(lists))  # not anew each time
    assert not all(a is b for a, b in pairwise(lists))
    positions[0] = torch.nan
    lost = batch.evaluate(positions)
    assert torch.isfinite(lost.energy[1:]).all()
    torch.testing.assert_close(lost.energy[1:], found.energy[1:])


def test_unknown_elements_are_refused(random_potential: Make) -> None:
    with pytest.raises(UnsupportedElement, match="Ar"):
        Batch(random_potential(), [molecule("H2O"), Atoms("Ar")])


def test_verlet_conserves_energy_to_second_order(random_potential: Make) -> None:
    """Over the same time, half the time step leaves a quarter of the error."""
    batch = Batch(random_potential(), [molecule("C6H6"), molecule("CH3CH2OH")])
    start = batch.start(torch.full((2,), 300.0), torch.Generator().manual_seed(1))
    before = start.energy + batch.kinetic_energy(start)
    errors = []
    for timestep in (0.2, 0.1):
        end = run(batch, start, round(10.0 / timestep), timestep)
        errors.append(end.energy + batch.kinetic_energy(end) - before)
    assert errors[0].abs().min() > 1e-9
    np.testing.assert_allclose((errors[0] / errors[1]).numpy(), 4.0, rtol=0.2)


def test_langevin_samples_the_temperature_of_each_molecule(random_potential: Make) -> None:
    """In harmonic wells k <x²> = k_B T: BAOAB samples it without any error of the time step."""
    batch = Batch(random_potential(), [molecule("C6H6"), molecule("C6H6")])
    stiffness, temperature, nothing = 2.0, torch.tensor([200.0, 600.0]), torch.zeros(2, dtype=torch.float64)
    batch.evaluate = lambda x: Evaluation(nothing, -stiffness * x, nothing)  # type: ignore[method-assign]
    thermostat = Thermostat(temperature, 100.0, torch.Generator().manual_seed(2))
    batch.positions = torch.zeros_like(batch.positions)
    start = batch.start(temperature, thermostat.generator)
    squares, kinetic = [], []

    def observe(step: int, state: State) -> None:
        if step > 200:
            squares.append(stiffness * state.positions.square().reshape(2, -1).mean(1) / BOLTZMANN)
            kinetic.append(batch.temperature(state))

    run(batch, start, 2500, 2.0, thermostat=thermostat, observe=observe)
    np.testing.assert_allclose(torch.stack(squares).mean(0), temperature, rtol=0.08)
    np.testing.assert_allclose(torch.stack(kinetic).mean(0), temperature, rtol=0.08)


@pytest.fixture(scope="module")
def rattled() -> list[Atoms]:
    names, rng = ("H2O", "CH3OH", "C2H6", "CH3CH2OH", "C6H6", "NH3", "CH4"), np.random.default_rng(0)
    found = [molecule(name) for name in names]
    for atoms in found:
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
    return found


def test_a_batch_relaxes_to_the_minima_of_ase(rattled: list[Atoms], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order in which structures arrive and others take their places."""
    from egnn_md.checkpoint import load

    monkeypatch.setattr("egnn_md.dynamics.batched_relax.PAIRS_AT_ONCE", 3 * 12**2)
    ends = dict(relax_batched(load("organic-xtb", dtype=torch.float64), rattled, fmax=1e-3))
    assert sorted(ends) == list(range(len(rattled)))
    calculator, steps = EGNNCalculator("organic-xtb"), 0
    for k, start in enumerate(rattled):
        atoms, end = start.copy(), ends[k]
        atoms.calc = calculator
        assert end.energy_start == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        steps += relax(atoms, fmax=1e-3).steps
        assert end.converged
        assert end.fmax <= 1e-3
        assert end.energy == pytest.approx(atoms.get_potential_energy(), abs=2e-5)
        moved = start.copy()
        moved.positions = end.positions
        np.testing.assert_allclose(moved.get_all_distances(), atoms.get_all_distances(), atol=0.01)
    assert sum(end.steps for end in ends.values()) < 0.6 * steps
    few = dict(relax_batched(load("organic-xtb", dtype=torch.float64), rattled, fmax=1e-3, steps=2))
    assert not any(end.converged for end in few.values())
    assert {end.steps for end in few.values()} == {2}


def test_nothing_to_relax_and_forces_that_are_no_numbers(random_potential: Make) -> None:
    model = random_potential()
    assert list(relax_batched(model, [])) == []
    bad = molecule("H2O")
    bad.positions[0] = np.nan
    ends = dict(relax_batched(model, [bad, molecule("H2O")], fmax=1e3))
    assert not ends[0].converged
    assert ends[1].converged


def test_the_bond_watch_sees_what_breaks_and_what_forms() -> None:
    ethanol = molecule("CH3CH2OH")
    places, numbers = torch.tensor(np.tile(ethanol.positions, (4, 1))), torch.tensor(np.tile(ethanol.numbers, 4))
    four = places, numbers, torch.full((4,), 9)
    positions = four[0].reshape(4, 9, 3).clone()
    watch = BondWatch(*four)
    assert int(watch.bound.sum()) == 4 * 8
    rattled = four[0] + 0.05 * torch.randn(36, 3, generator=torch.Generator().manual_seed(0))
    watch.look(0.5, rattled)
    assert watch.first == {}
    oxygen, hydrogen = 2, 3  # of ase's ethanol: O and the H bound to it
    positions[0, hydrogen] += 2.0 * (positions[0, hydrogen] - positions[0, oxygen])
    positions[1, 0] = positions[1, oxygen] + torch.tensor([0.0, 0.0, 1.2])  # the far carbon onto the oxygen
    positions[2, 5] = torch.nan
    watch.look(1.0, positions.reshape(-1, 3))
    assert set(watch.first) == {0, 1, 2}
    assert watch.first[0][1].startswith("O-H lost")
    assert watch.first[1][0] == 1.0
    formed = BondWatch(*four)
    closer = four[0].reshape(4, 9, 3).clone()
    both = closer[3, [0, 2]].mean(0)
    closer[3, 0] += 0.28 * (both - closer[3, 0])
    closer[3, 2] += 0.28 * (both - closer[3, 2])
    formed.look(2.0, closer.reshape(-1, 3))
    assert "formed" in formed.first[3][1]
