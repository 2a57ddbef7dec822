"""The ASE calculator: the laws of physics through it, and ASE's rules of change, copying and refusal."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError, all_changes

from egnn_md.calculators import EGNNCalculator, ExtrapolationWarning, OpenShellWarning
from egnn_md.checkpoint import CheckpointError, save
from egnn_md.chemistry.elements import UnsupportedElement
from egnn_md.models.potential import Potential


@pytest.fixture
def potential(random_potential):
    """A random potential, its network as strong as its repulsion, to which nothing is unfamiliar."""

    def make(seed=0, **settings):
        model = random_potential(seed, **settings)
        model.familiarity.unit.fill_(1e6)
        model.network.readout[2].weight.mul_(30.0)
        return model

    return make


@pytest.fixture
def calculator(potential):
    return EGNNCalculator(potential())


@pytest.fixture
def calls(monkeypatch):
    """Every call of a network adds a line."""
    seen = []
    forward = Potential.forward

    def counting(self, graph, **options):
        seen.append(graph.n_atoms)
        return forward(self, graph, **options)

    monkeypatch.setattr(Potential, "forward", counting)
    return seen


def ethanol(seed=0):
    atoms = molecule("CH3CH2OH")
    atoms.positions += np.random.default_rng(seed).normal(0, 0.05, atoms.positions.shape)
    return atoms


def crystal(pbc=True):
    """Five atoms in a triclinic cell with edges shorter than the cutoff (4 Å)."""
    cell = np.array([[3.4, 0.0, 0.0], [0.6, 3.7, 0.0], [-0.5, 0.8, 3.9]])
    scaled = [[0.02, 0.05, 0.01], [0.31, 0.11, 0.28], [0.52, 0.55, 0.47], [0.8, 0.6, 0.68], [0.1, 0.62, 0.83]]
    return Atoms("CHOHO", scaled_positions=scaled, cell=cell, pbc=pbc)


def liquid():
    """Six waters, 18 atoms, in a triclinic cell wider than the cutoff, periodic in two directions."""
    rng = np.random.default_rng(3)
    atoms = Atoms(cell=[[6.5, 0, 0], [1.5, 6.2, 0], [0.4, -0.8, 9.0]], pbc=(True, True, False))
    for k in range(6):
        water = molecule("H2O")
        water.rotate(rng.uniform(0, 360), rng.normal(size=3))
        water.positions += np.array([(k % 2) * 3.2, (k // 2 % 2) * 3.1, (k // 4) * 3.3]) + rng.normal(0, 0.05, 3)
        atoms += water
    return atoms


STRUCTURES = {
    "isolated": ethanol,
    "crystal": crystal,
    "slab": lambda: crystal((True, False, True)),
    "mixed liquid": liquid,
    "one atom": lambda: Atoms("O", cell=[3.0, 3.1, 3.2], pbc=True),
}


def four_point(energy, step):
    """Derivative at 0 of a function of one variable, O(step⁴)."""
    return (8 * (energy(step) - energy(-step)) - (energy(2 * step) - energy(-2 * step))) / (12 * step)


def numerical_forces(atoms, step=2e-3):
    forces = np.zeros((len(atoms), 3))
    for k in range(len(atoms)):
        for axis in range(3):

            def energy(h, k=k, axis=axis):
                moved = atoms.copy()
                moved.calc = atoms.calc
                moved.positions[k, axis] += h
                return moved.get_potential_energy()

            forces[k, axis] = -four_point(energy, step)
    return forces


def numerical_stress(atoms, step=5e-4):
    stress = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):

            def energy(h, i=i, j=j):
                strain = np.eye(3)
                strain[i, j] += h / 2
                strain[j, i] += h / 2
                strained = atoms.copy()
                strained.calc = atoms.calc
                strained.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                return strained.get_potential_energy()

            stress[i, j] = four_point(energy, step) / atoms.get_volume()
    return stress.ravel()[[0, 4, 8, 5, 2, 1]]


def same(a, b, tolerance):
    """Relative to the largest value."""
    return np.abs(np.asarray(a) - b).max() <= tolerance * np.abs(b).max()


# The laws


@pytest.mark.parametrize("name", STRUCTURES)
def test_forces_are_minus_the_gradient(name, calculator):
    atoms = STRUCTURES[name]()
    atoms.calc = calculator
    scale = max(np.abs(atoms.get_forces()).max(), 1.0)
    assert np.abs(numerical_forces(atoms) - atoms.get_forces()).max() <= 1e-7 * scale
    if name != "one atom":
        assert np.abs(atoms.get_forces()).max() > 0.1


@pytest.mark.parametrize("make", [crystal, lambda: crystal().repeat((2, 2, 1)), STRUCTURES["one atom"]])
def test_stress_is_the_strain_derivative(make, calculator):
    atoms = make()
    atoms.calc = calculator
    stress = atoms.get_stress()
    assert np.abs(stress).max() > 1e-4
    assert same(numerical_stress(atoms), stress, 1e-6)
    assert np.array_equal(atoms.get_stress(voigt=False), atoms.get_stress(voigt=False).T)


@pytest.mark.parametrize("repeats", [(2, 1, 1), (1, 2, 2), (3, 1, 2)])
def test_supercell_is_extensive(repeats, calculator):
    atoms, supercell = crystal(), crystal().repeat(repeats)
    atoms.calc, supercell.calc = calculator, copy.deepcopy(calculator)
    n = np.prod(repeats)
    assert supercell.get_potential_energy() == pytest.approx(n * atoms.get_potential_energy(), rel=1e-13)
    assert same(supercell.get_forces(), np.tile(atoms.get_forces(), (n, 1)), 1e-10)
    assert same(supercell.get_stress(), atoms.get_stress(), 1e-10)


@pytest.mark.parametrize("make", [ethanol, crystal, liquid])
def test_rotation_translation_permutation_and_wrapping(make, calculator):
    rng = np.random.default_rng(1)
    atoms = make()
    atoms.calc = calculator
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    order = rng.permutation(len(atoms))
    moved = atoms[order]
    moved.positions += (rng.integers(-2, 3, (len(atoms), 3)) * atoms.pbc) @ atoms.cell.array + rng.normal(0, 5, 3)
    moved.set_cell(atoms.cell.array @ rotation)
    moved.positions = moved.positions @ rotation
    moved.calc = calculator
    assert moved.get_potential_energy() == pytest.approx(energy, rel=1e-13)
    assert same(moved.get_forces(), forces[order] @ rotation, 1e-10)


def test_energies_add_up(calculator):
    atoms = liquid()
    atoms.calc = calculator
    assert atoms.get_potential_energies().shape == (len(atoms),)
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy(), rel=1e-14)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()


def test_single_atom_has_no_force(potential):
    model = potential()
    atoms = Atoms("O")
    atoms.calc = EGNNCalculator(model)
    species = torch.tensor([model.config.elements.index(8)])
    lonely = model.force_call(torch.zeros(0, 3, dtype=torch.float64), species, torch.zeros(2, 0).long()).energies
    assert atoms.get_potential_energy() == pytest.approx(lonely.item(), rel=1e-14)
    assert np.array_equal(atoms.get_forces(), np.zeros((1, 3)))


def test_float32_is_close_and_does_not_care_where_the_structure_is(potential):
    model = potential()
    atoms = crystal()
    atoms.calc = EGNNCalculator(model)
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    atoms.calc = EGNNCalculator(model, dtype="float32")
    assert same(atoms.get_forces(), forces, 1e-4)
    assert not np.array_equal(atoms.get_forces(), forces)
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-4)
    assert same(atoms.get_stress(), stress, 1e-4)
    here = atoms.get_forces()
    atoms.positions += 4096.0
    assert same(atoms.get_forces(), here, 2e-5)
    assert atoms.get_forces().dtype == atoms.calc.results["energies"].dtype == np.float64


# ASE's rules of change


def test_nothing_is_computed_twice(calculator, calls):
    atoms = crystal()
    atoms.calc = calculator
    for _ in range(2):
        atoms.get_potential_energy()
        atoms.get_forces()
        atoms.get_stress()
        atoms.get_potential_energies()
    atoms.set_momenta(np.ones((5, 3)))
    atoms.info["note"] = "irrelevant"
    atoms.info.update(charge=0, spin=1.0)
    atoms.set_initial_charges(np.zeros(5))
    atoms.set_tags([1] * 5)
    atoms.positions = atoms.positions.copy()
    atoms.positions[0, 0] = atoms.positions[0, 0] * 1.0
    atoms.get_forces()
    other = atoms.copy()
    other.calc = calculator
    other.get_forces()
    assert not calculator.calculation_required(atoms, ["energy", "forces", "stress"])
    assert len(calls) == 1


def rotate_numbers(atoms):
    atoms.numbers[:] = np.roll(atoms.numbers, 1)


CHANGES = {
    "positions": lambda atoms: atoms.positions.__setitem__((2, 1), atoms.positions[2, 1] + 1e-9),
    "numbers": rotate_numbers,
    "cell": lambda atoms: atoms.set_cell(atoms.cell * 1.001),
    "scaled cell": lambda atoms: atoms.set_cell(atoms.cell * 1.02, scale_atoms=True),
    "pbc": lambda atoms: atoms.set_pbc((True, False, True)),
    "swap": lambda atoms: atoms.positions.__setitem__([0, 1], atoms.positions[[1, 0]]),
    "more atoms": lambda atoms: atoms.append("H"),
    "fewer atoms": lambda atoms: atoms.pop(3),
    "new element": lambda atoms: atoms.numbers.__setitem__(0, 9),
}


@pytest.mark.filterwarnings("ignore::egnn_md.calculators.OpenShellWarning")
@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_seen_and_nothing_is_stale(name, potential, calls):
    model = potential()
    atoms = crystal()
    atoms.calc = EGNNCalculator(model)
    before = atoms.get_potential_energy()
    CHANGES[name](atoms)
    if name == "more atoms":
        atoms.positions[-1] = [2.5, 0.5, 2.5]
    assert atoms.calc.calculation_required(atoms, ["energy"])
    after = atoms.get_potential_energy()
    assert len(calls) == 2
    fresh = atoms.copy()
    fresh.calc = EGNNCalculator(model)
    assert after != before
    assert after == pytest.approx(fresh.get_potential_energy(), rel=1e-14)
    assert same(atoms.get_forces(), fresh.get_forces(), 1e-11)
    if name != "pbc":
        assert same(atoms.get_stress(), fresh.get_stress(), 1e-11)


@pytest.mark.parametrize(
    "change", [{"charge": 1}, {"charge": "one"}, {"Total_charge": 1}, {"spin": 3}, {"spin": 0}, {"mult": 2}]
)
def test_charge_and_spin_in_info_are_watched(change, calculator, calls):
    atoms = ethanol()
    atoms.calc = calculator
    energy = atoms.get_potential_energy()
    atoms.info.update(change)
    for ask in (atoms.get_potential_energy, atoms.get_forces):
        with pytest.raises(ValueError, match=next(iter(change)).split("_")[-1]):
            ask()
    atoms.info.clear()
    assert atoms.get_potential_energy() == energy
    assert len(calls) == 2


def test_a_failure_leaves_nothing_behind(calculator):
    atoms = ethanol()
    atoms.calc = calculator
    atoms.get_forces()
    good = atoms.positions.copy()
    atoms.positions[4, 2] = np.nan
    for _ in range(2):
        with pytest.raises(ValueError, match=r"atom 4 .*NaN"):
            atoms.get_forces()
    assert calculator.results == {}
    atoms.positions = good
    assert np.isfinite(atoms.get_forces()).all()


def test_results_do_not_follow_the_arrays_handed_out(calculator):
    atoms = ethanol()
    atoms.calc = calculator
    forces = atoms.get_forces()
    kept = forces.copy()
    forces += 1.0
    assert np.array_equal(atoms.get_forces(), kept)
    first = calculator.atoms
    positions = atoms.positions.copy()
    atoms.positions[0] += 0.1
    atoms.set_momenta(np.ones((9, 3)))
    atoms.get_forces()
    assert np.array_equal(first.positions, positions)
    again = calculator.get_atoms()
    assert np.array_equal(again.positions, atoms.positions)
    assert np.array_equal(again.get_momenta(), atoms.get_momenta())


def test_one_calculator_for_two_structures(potential):
    shared, model = EGNNCalculator(potential()), potential()
    for _ in range(2):
        for make in (ethanol, crystal, liquid):
            atoms, alone = make(), make()
            atoms.calc, alone.calc = shared, EGNNCalculator(model)
            assert atoms.get_potential_energy() == alone.get_potential_energy()


def test_calculate_called_directly(calculator):
    calculator.calculate(ethanol(), ["energy"], all_changes)
    first = calculator.results["energy"]
    calculator.calculate(ethanol(1), ["energy"], [])  # whatever the caller says has changed
    assert calculator.results["energy"] != first
    assert calculator.get_property("energy") == calculator.results["energy"]
    calculator.reset()
    with pytest.raises(ValueError, match="without atoms"):
        calculator.get_property("energy")


def test_stress_needs_three_periodic_directions(calculator, calls):
    for make in (ethanol, liquid):
        atoms = make()
        atoms.calc = calculator
        with pytest.raises(PropertyNotImplementedError, match="three directions"):
            atoms.get_stress()
    assert not calls
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_dipole_moment()


# What is refused


def close_pair():
    atoms = ethanol()
    atoms.positions[5] = atoms.positions[2] + [0.05, 0.0, 0.0]
    return atoms


def with_charges(values):
    atoms = molecule("H2O")
    atoms.set_initial_charges(values)
    return atoms


REFUSED = {
    "empty": (Atoms(), "no atoms"),
    "element": (Atoms("HCl", [[0, 0, 0], [0, 0, 1.3]]), "H, C, N, O, F; the structure has Cl"),
    "placeholder": (Atoms("X"), "the structure has Z=0"),
    "ion by charges": (with_charges([1.0, 0.0, 0.0]), "initial charges add up to 1"),
    "triplet": (molecule("O2"), "magnetic moments"),
    "close pair": (close_pair(), "atoms 2 and 5 .* 0.050 Å"),
    "flat cell": (Atoms("CO", [[0, 0, 0], [0, 0, 1.2]], cell=[5, 5, 0], pbc=True), "no volume"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_structures_that_are_refused(name, calculator, calls):
    atoms, message = REFUSED[name]
    atoms.calc = calculator
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            atoms.get_potential_energy()
    assert not calls
    if name in ("element", "placeholder"):
        with pytest.raises(UnsupportedElement):
            atoms.get_forces()


def test_harmless_charges_and_moments_pass(calculator):
    atoms = with_charges([-0.834, 0.417, 0.4165])
    atoms.set_initial_magnetic_moments([0.0, 0.0, 0.0])
    atoms.info.update(charge=np.float64(0), spin=np.int64(1))
    atoms.calc = calculator
    assert np.isfinite(atoms.get_potential_energy())


def test_odd_electrons_warn_once(calculator):
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1.0]])
    atoms.calc = calculator
    with pytest.warns(OpenShellWarning, match="9 electrons"):
        atoms.get_potential_energy()
    atoms.positions[1, 2] = 1.1
    atoms.get_potential_energy()  # a second warning would be an error here
    assert np.isfinite(Atoms("N", calculator=calculator).get_potential_energy())


def test_extrapolation_is_reported_and_warns_once(potential):
    model = potential()
    atoms = ethanol()
    atoms.calc = EGNNCalculator(model)
    atoms.get_forces()
    signal = atoms.calc.results["extrapolation"]
    assert 0 < signal < 1
    model.familiarity.unit.mul_(signal / 2.5)
    atoms.calc = EGNNCalculator(model)
    with pytest.warns(ExtrapolationWarning, match="2.5, limit 2"):
        atoms.get_forces()
    atoms.positions[0] += 0.01
    atoms.get_forces()
    assert atoms.calc.results["extrapolation"] == pytest.approx(2.5, rel=0.1)


# Options and models


@pytest.mark.parametrize(
    ("options", "near"), [({"dytpe": "float32"}, "dtype"), ({"models": "x"}, "model"), ({"gpu": 0}, "'")]
)
def test_unknown_options_name_the_nearest(options, near, calculator, potential):
    with pytest.raises(TypeError, match=f"no option '{next(iter(options))}'; did you mean .*{near}"):
        EGNNCalculator(potential(), **options)
    with pytest.raises(TypeError, match="did you mean"):
        calculator.set(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "unknown dtype 'float16': use 'float64' or 'float32'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"skin": -1.0}, "skin not negative"),
    ],
)
def test_bad_values_are_refused(options, message, potential, calculator):
    with pytest.raises(ValueError, match=message):
        EGNNCalculator(potential(), **options)
    before = dict(calculator.parameters)
    with pytest.raises(ValueError, match=message):
        calculator.set(**options)
    assert calculator.parameters == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_absent_cuda_is_refused(potential):
    with pytest.raises(ValueError, match="no CUDA device here"):
        EGNNCalculator(potential(), device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_agrees_with_the_cpu(potential):
    model = potential()
    for make in (ethanol, crystal):
        atoms, there = make(), make()
        atoms.calc, there.calc = EGNNCalculator(model), EGNNCalculator(model, device="cuda")
        assert there.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), rel=1e-13)
        assert same(there.get_forces(), atoms.get_forces(), 1e-10)


def test_unknown_models_are_refused(tmp_path, potential):
    with pytest.raises(CheckpointError, match="no model 'organic-xbt'"):
        EGNNCalculator("organic-xbt")
    (tmp_path / "foreign.safetensors").write_bytes(b"not a checkpoint at all")
    with pytest.raises(CheckpointError, match="foreign"):
        EGNNCalculator(tmp_path / "foreign.safetensors")
    with pytest.raises(TypeError, match="not int"):
        EGNNCalculator(3)
    with pytest.raises(ValueError, match="at least one"):
        EGNNCalculator([])


def test_options_can_be_set_later(potential):
    atoms = ethanol()
    atoms.calc = EGNNCalculator(potential())
    forces = atoms.get_forces()
    atoms.calc.set(dtype="float32")
    single = atoms.get_forces()
    assert not np.array_equal(single, forces)
    atoms.calc.set(dtype=torch.float64)
    assert np.array_equal(atoms.get_forces(), forces)
    atoms.calc.set(model=potential(seed=1))
    assert not same(atoms.get_forces(), forces, 0.1)
    assert atoms.calc.todict()["model"] == "a Potential in memory"


def test_the_given_potential_stays_as_it_was(potential):
    model = potential(dtype=torch.float32)
    atoms = ethanol()
    atoms.calc = EGNNCalculator(model)
    before = atoms.get_potential_energy()
    assert model.dtype == torch.float32
    with torch.no_grad():
        model.network.readout[2].weight.mul_(2.0)  # its owner trains on
    atoms.calc.reset()
    assert atoms.get_potential_energy() == before


def test_committee_is_mean_and_spread_of_its_members(potential, tmp_path, calls):
    save(potential(seed=1), tmp_path / "one.safetensors")
    members = [potential(seed=0), tmp_path / "one.safetensors", str(tmp_path / "one.safetensors"), potential(seed=2)]
    alone = []
    for member in members:
        atoms = crystal()
        atoms.calc = EGNNCalculator(member)
        atoms.get_stress()
        alone.append(atoms.calc.results)
    calls.clear()
    atoms.calc = EGNNCalculator(members)
    atoms.get_potential_energy()
    results = atoms.calc.results
    assert len(calls) == 4
    for name in ("energy", "free_energy", "energies", "forces", "stress"):
        expected = np.mean([result[name] for result in alone], axis=0)
        assert np.allclose(results[name], expected, rtol=1e-13, atol=1e-13)
        assert np.shape(results[name]) == np.shape(expected)
    energies = [result["energy"] for result in alone]
    assert results["energy_std"] == pytest.approx(np.std(energies), rel=1e-9)
    assert np.ptp(energies) > 1e-3
    assert np.allclose(results["forces_std"], np.std([result["forces"] for result in alone], axis=0), atol=1e-12)
    assert results["forces_std"].shape == (5, 3)
    assert results["extrapolation"] == max(result["extrapolation"] for result in alone)
    assert atoms.get_properties(["energy", "forces"])["energy"] == results["energy"]
    assert np.abs(numerical_forces(atoms) - atoms.get_forces()).max() <= 1e-7 * np.abs(atoms.get_forces()).max()


def test_committee_of_equals_agrees(potential):
    atoms = ethanol()
    atoms.calc = EGNNCalculator([potential(), potential()])
    atoms.get_forces()
    assert atoms.calc.results["energy_std"] == 0.0
    assert not atoms.calc.results["forces_std"].any()
    atoms.calc = EGNNCalculator(potential())
    atoms.get_forces()
    assert "energy_std" not in atoms.calc.results


def test_committee_members_may_differ_in_cutoff(potential):
    short, long = potential(cutoff=2.5), potential(cutoff=5.0, seed=1)
    energies = []
    for model in (short, long, [short, long]):
        atoms = liquid()
        atoms.calc = EGNNCalculator(model)
        energies.append(atoms.get_potential_energy())
    assert energies[2] == pytest.approx((energies[0] + energies[1]) / 2, rel=1e-13)


# Copies


@pytest.mark.parametrize("how", [copy.deepcopy, lambda calc: pickle.loads(pickle.dumps(calc))])
def test_copies_are_whole_and_independent(how, potential, tmp_path, calls):
    path = tmp_path / "model.safetensors"
    save(potential(), path)
    atoms = crystal()
    for model in (path, [path, potential(seed=1)]):
        atoms.calc = EGNNCalculator(model, dtype="float32", skin=0.3)
        forces = atoms.get_forces()
        calls.clear()
        twin = crystal()
        twin.calc = how(atoms.calc)
        assert np.array_equal(twin.get_forces(), forces)
        assert not calls  # results came along
        twin.positions[0] += 0.1
        assert not same(twin.get_forces(), forces, 1e-3)
        assert np.array_equal(atoms.get_forces(), forces)
        assert len(calls) == len(twin.calc._predictor.models)
        assert twin.calc.parameters == atoms.calc.parameters


def test_pickle_holds_in_a_fresh_process_without_the_file(potential, tmp_path):
    path = tmp_path / "model.safetensors"
    save(potential(), path)
    atoms = ethanol()
    atoms.calc = EGNNCalculator(path)
    (tmp_path / "calc.pickle").write_bytes(pickle.dumps((ethanol(), atoms.calc)))
    path.unlink()
    script = (
        "import pickle, sys; atoms, calc = pickle.load(open(sys.argv[1], 'rb')); atoms.calc = calc; "
        "print(repr(float(atoms.get_potential_energy())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "calc.pickle")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert float(done.stdout) == pytest.approx(atoms.get_potential_energy(), rel=1e-14)


def test_a_shipped_model_is_pickled_by_name(shipped):
    atoms = molecule("CH3CH2OH")
    atoms.calc = EGNNCalculator(shipped)
    energy = atoms.get_potential_energy()
    data = pickle.dumps(atoms.calc)
    assert len(data) < 20_000
    atoms.calc = pickle.loads(data)
    assert atoms.get_potential_energy() == energy


def test_properties_that_there_are_not_say_why(potential):
    atoms = bulk("C", cubic=True)
    atoms.calc = EGNNCalculator(potential())
    for name, reason in (("stresses", "single atom is not defined uniquely"), ("magmoms", "closed shells")):
        with pytest.raises(PropertyNotImplementedError, match=f"{name} is not offered: .*{reason}.*gives energy, "):
            atoms.calc.get_property(name, atoms)
