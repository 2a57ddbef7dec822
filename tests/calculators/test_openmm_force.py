"""The OpenMM force: the physics of the ASE calculator on every platform, saved and loaded, alone and in company."""

from __future__ import annotations

import sys
import threading
import types

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from openmm import app
from openmm_systems import (
    DIPEPTIDE,
    PLATFORMS,
    STRUCTURES,
    bits,
    context,
    droplet,
    energy_and_forces,
    ethanol,
    in_a_fresh_process,
    topology_of,
)

from egnn_md.calculators import EGNNCalculator, ExtrapolationWarning, create_openmm_force, create_system
from egnn_md.calculators.openmm_force import TorchComputation
from egnn_md.checkpoint import CheckpointError
from egnn_md.chemistry.elements import UnsupportedElement
from egnn_md.models.potential import Potential

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


def assert_same(found, expected, tolerance):
    """(energy, forces) equal, forces relative to the largest."""
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert np.abs(found[1] - expected[1]).max() <= tolerance * np.abs(expected[1]).max()


def in_ase(atoms, model, dtype="float64"):
    copy = atoms.copy()
    copy.calc = EGNNCalculator(model, dtype=dtype)
    return copy.get_potential_energy(), copy.get_forces()


# Against ASE


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", STRUCTURES)
def test_energy_and_forces_are_those_of_ase(name, dtype, platform, familiar_potential):
    atoms, model = STRUCTURES[name](), familiar_potential()
    system = create_system(topology_of(atoms), model, dtype=dtype)
    found = energy_and_forces(context(system, atoms.positions, platform))
    assert np.abs(found[1]).max() > 0.1
    assert_same(found, in_ase(atoms, model, dtype), TOLERANCE[dtype])


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("make", [droplet, STRUCTURES["triclinic"]])
def test_subset_in_any_order(make, platform, familiar_potential):
    atoms, model = make(), familiar_potential()
    chosen = [7, 6, 8, 0, 1, 2]
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    if atoms.pbc.all():
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / 10))
    system.addForce(create_openmm_force(model, topology_of(atoms), (index for index in chosen)))
    energy, forces = energy_and_forces(context(system, atoms.positions, platform))
    expected = in_ase(atoms[chosen], model)
    assert_same((energy, forces[chosen]), expected, 1e-10)
    others = [k for k in range(len(atoms)) if k not in chosen]
    assert np.abs(forces[others]).max() == 0.0


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_box_may_change(platform, familiar_potential):
    atoms, model = STRUCTURES["triclinic"](), familiar_potential()
    made = context(create_system(topology_of(atoms), model), atoms.positions, platform)
    energy_and_forces(made)
    for strain in (1.01, 1.2, 0.9):
        strained = atoms.copy()
        strained.set_cell(strained.cell.array * [[1, 1, 1], [1, strain, 1], [1, 1, strain]], scale_atoms=True)
        made.setPeriodicBoxVectors(*(strained.cell.array / 10))
        made.setPositions(strained.positions / 10)
        assert_same(energy_and_forces(made), in_ase(strained, model), 1e-10)


def test_barostat_in_a_triclinic_box(familiar_potential):
    atoms, model = STRUCTURES["triclinic"](), familiar_potential()
    system = create_system(topology_of(atoms), model)
    system.addForce(openmm.MonteCarloBarostat(1.0, 300.0, 2))
    made = context(system, atoms.positions)
    made.setVelocitiesToTemperature(300.0, 1)
    made.getIntegrator().step(30)
    state = made.getState(positions=True, enforcePeriodicBox=True)
    box = state.getPeriodicBoxVectors(asNumpy=True)._value * 10
    assert np.abs(box - atoms.cell.array).max() > 1e-4
    after = Atoms(atoms.numbers, state.getPositions(asNumpy=True)._value * 10, cell=box, pbc=True)
    assert_same(energy_and_forces(made), in_ase(after, model), 1e-10)


# Laws


@pytest.fixture
def reference(familiar_potential):
    """(energy, forces) of atoms through OpenMM."""
    model = familiar_potential()

    def evaluate(atoms: Atoms):
        return energy_and_forces(context(create_system(topology_of(atoms), model), atoms.positions))

    return evaluate


def test_translation_rotation_permutation(reference):
    rng = np.random.default_rng(0)
    for atoms in (ethanol(), droplet(8)):
        energy, forces = reference(atoms)
        moved = atoms.copy()
        moved.positions += rng.normal(0, 5, 3)
        assert_same(reference(moved), (energy, forces), 1e-10)
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        moved.positions = atoms.positions @ turn.T
        assert_same(reference(moved), (energy, forces @ turn.T), 1e-10)
        order = rng.permutation(len(atoms))
        assert_same(reference(atoms[order]), (energy, forces[order]), 1e-10)


@pytest.mark.parametrize("name", ["periodic", "triclinic", "cell below the cutoff"])
def test_translation_and_box_images(name, reference):
    """The ways in which positions may be wrapped do not matter, of each atom by itself."""
    rng, atoms = np.random.default_rng(1), STRUCTURES[name]()
    energy, forces = reference(atoms)
    moved = atoms.copy()
    moved.positions += rng.normal(0, 5, 3)
    assert_same(reference(moved), (energy, forces), 1e-10)
    moved.positions = atoms.positions + rng.integers(-3, 4, (len(atoms), 3)) @ atoms.cell.array
    assert_same(reference(moved), (energy, forces), 1e-10)


def test_forces_are_minus_the_gradient(familiar_potential):
    atoms = STRUCTURES["triclinic"]()
    made = context(create_system(topology_of(atoms), familiar_potential()), atoms.positions)
    _, forces = energy_and_forces(made)
    rng, step = np.random.default_rng(0), 1e-4
    for _ in range(5):
        way = rng.normal(size=atoms.positions.shape)
        energies = []
        for sign in (1, -1):
            made.setPositions((atoms.positions + sign * step * way) / 10)
            energies.append(energy_and_forces(made)[0])
        assert (energies[1] - energies[0]) / (2 * step) == pytest.approx(np.vdot(forces, way), rel=1e-6)


# Particles


def test_sites_without_element_are_left_out_and_massless_hydrogens_are_not(familiar_potential):
    model = familiar_potential()
    atoms = molecule("H2O") + Atoms("X", [[0.0, 0.0, -0.1]])
    system = create_system(topology_of(atoms, ["O", "H", "H", None]), model)
    assert system.getParticleMass(3)._value == 0.0
    system.setParticleMass(2, 0.0)
    energy, forces = energy_and_forces(context(system, atoms.positions))
    expected = in_ase(molecule("H2O"), model)
    assert_same((energy, forces[:3]), expected, 1e-10)
    assert np.abs(forces[3]).max() == 0.0


def test_a_hydrogen_that_is_a_virtual_site_hands_its_force_on(familiar_potential):
    """As openmm-ml's link atoms: forces are the gradient with the site following its parents."""
    model, atoms = familiar_potential(), molecule("H2O")
    system = openmm.System()
    for mass in (16.0, 1.0, 0.0):
        system.addParticle(mass)
    site = openmm.LocalCoordinatesSite([0, 1], [1.0, 0.0], [-1.0, 1.0], [0.0, 0.0], [-0.03, 0.09, 0.0])
    system.setVirtualSite(2, site)
    system.addForce(create_openmm_force(model, topology_of(atoms), range(3)))
    made = context(system, atoms.positions)

    def at(positions):
        made.setPositions(positions / 10)
        made.computeVirtualSites()
        return energy_and_forces(made)

    _, forces = at(atoms.positions)
    bond = atoms.positions[1] - atoms.positions[0]
    step = 1e-4 * np.array([np.zeros(3), bond, np.zeros(3)])
    slope = (at(atoms.positions + step)[0] - at(atoms.positions - step)[0]) / 2e-4
    assert slope == pytest.approx(-forces[1] @ bond, rel=1e-5)
    assert abs(slope) > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"atoms": [0, 1, 2, 2]}, "twice"),
        ({"atoms": [0, 1, 15]}, "does not exist"),
        ({"atoms": [-1]}, "does not exist"),
        ({"atoms": []}, "no atoms"),
        ({"atoms": [0, 1]}, "9 electrons"),
        ({"charge": 1}, "charge 1"),
        ({"multiplicity": 3}, "closed shells"),
        ({"device": "gpu"}, "device"),
        ({"dtype": "float16"}, "dtype"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_before_the_simulation(options, message, familiar_potential):
    with pytest.raises(ValueError, match=message):
        create_openmm_force(familiar_potential(), topology_of(droplet()), **options)


def test_elements_charges_and_options_are_refused(familiar_potential):
    model = familiar_potential()
    with pytest.raises(UnsupportedElement, match="Si"):
        create_openmm_force(model, topology_of(Atoms("SiH4", np.zeros((5, 3)))))
    topology = topology_of(molecule("H2O"))
    next(topology.atoms()).formalCharge = -2
    with pytest.raises(ValueError, match="add up to -2 e"):
        create_openmm_force(model, topology)
    topology = topology_of(molecule("H2O"))
    with pytest.raises(TypeError, match="presicion"):
        create_openmm_force(model, topology, presicion="double")
    with pytest.raises(CheckpointError, match="no model"):
        create_openmm_force("organic-xtc", topology)
    for ion in (Atoms("OH", [[0, 0, 0], [0, 0, 1]]), Atoms("H", [[0, 0, 0]])):
        with pytest.raises(ValueError, match="odd number"):
            create_system(topology_of(ion), model)


def test_what_is_wrong_while_running_is_said_and_can_be_mended(familiar_potential):
    atoms = molecule("H2O")
    made = context(create_system(topology_of(atoms), familiar_potential()), atoms.positions)
    good = energy_and_forces(made)
    positions = atoms.positions.copy()
    positions[1, 0] = np.nan
    made.setPositions(positions / 10)
    with pytest.raises(openmm.OpenMMException, match="NaN"):
        energy_and_forces(made)
    made.setPositions(atoms.positions / 10)
    again = energy_and_forces(made)
    assert again[0] == good[0]
    assert np.array_equal(again[1], good[1])


def test_a_minimizer_finds_its_way_back_from_a_close_pair(familiar_potential):
    """Line two of every OpenMM script: its line search oversteps, and atoms come closer than any structure has them."""
    atoms = molecule("H2O")
    made = context(create_system(topology_of(atoms), familiar_potential()), atoms.positions)
    good, _ = energy_and_forces(made)
    close = atoms.positions.copy()
    close[1] = close[0] + [0.03, 0.0, 0.0]
    made.setPositions(close / 10)
    energy, forces = energy_and_forces(made)
    assert good + 1e3 < energy < 1e9
    assert forces[1, 0] > 0 > forces[0, 0]
    openmm.LocalEnergyMinimizer.minimize(made, 10.0, 300)
    assert energy_and_forces(made)[0] < good + 100.0


@pytest.mark.parametrize("model", ["organic-xtb", "egnn-xtb-1"])
@pytest.mark.parametrize("shrunk", [1.0, 0.97])
@pytest.mark.filterwarnings("ignore::egnn_md.predict.ExtrapolationWarning")
def test_a_minimizer_finds_its_way_back_from_where_networks_fall_to_minus_infinity(model, shrunk):
    """The first step of its line search may take all atoms of benzene into one heap."""
    atoms = molecule("C6H6")
    made = context(create_system(topology_of(atoms), model), shrunk * atoms.positions)
    start, _ = energy_and_forces(made)
    openmm.LocalEnergyMinimizer.minimize(made, 10.0, 100)
    energy, forces = energy_and_forces(made)
    assert start - 10.0 < energy < start
    assert np.linalg.norm(forces, axis=1).max() < 0.5
    heap = 0.4 * atoms.positions
    made.setPositions(heap / 10)
    energy, forces = energy_and_forces(made)
    assert energy > start + 1e3
    assert (forces * heap).sum() > 0  # apart


def test_results_that_are_not_finite_raise(familiar_potential, monkeypatch):
    atoms, model = molecule("H2O"), familiar_potential()
    made = context(create_system(topology_of(atoms), model), atoms.positions)
    forward = Potential.forward

    def broken(self, graph, **options):
        prediction = forward(self, graph, **options)
        prediction.forces[0] = torch.nan
        return prediction

    monkeypatch.setattr(Potential, "forward", broken)
    with pytest.raises(openmm.OpenMMException, match="not finite"):
        energy_and_forces(made)


def test_a_system_of_other_atoms_is_noticed(familiar_potential):
    atoms = droplet(2)
    system = create_system(topology_of(atoms[:3]), familiar_potential())
    for _ in range(3):
        system.addParticle(1.0)
    with pytest.raises(openmm.OpenMMException, match="6 particles, but the EGNN force was made for 3"):
        energy_and_forces(context(system, atoms.positions))


def test_unlike_structures_are_warned_about_once(familiar_potential):
    model = familiar_potential()
    model.familiarity.unit.fill_(1e-3)
    atoms = molecule("H2O")
    made = context(create_system(topology_of(atoms), model), atoms.positions)
    with pytest.warns(ExtrapolationWarning, match="unlike the training data"):
        energy_and_forces(made)
    made.setPositions(1.1 * atoms.positions / 10)
    energy_and_forces(made)  # warnings are errors here: not a second one


def test_mdtraj_topology_and_molecules(familiar_potential):
    topology = mdtraj.load_topology(str(DIPEPTIDE))
    pdb = app.PDBFile(str(DIPEPTIDE))
    model = familiar_potential()
    systems = [create_system(known, model) for known in (topology, pdb.topology)]
    positions = pdb.getPositions(asNumpy=True)._value * 10
    one, other = (energy_and_forces(context(system, positions)) for system in systems)
    assert one[0] == other[0]
    assert context(systems[0], positions).getMolecules() == (tuple(range(22)),)


# In company


def test_force_groups_and_several_forces(familiar_potential):
    atoms = droplet(2)
    models = [familiar_potential(seed) for seed in (0, 1)]
    system = create_system(topology_of(atoms), models[0], force_group=3)
    system.addForce(create_openmm_force(models[1], topology_of(atoms), range(3), force_group=5))
    made = context(system, atoms.positions)
    whole, part = in_ase(atoms, models[0]), in_ase(atoms[:3], models[1])
    padded = part[0], np.vstack([part[1], np.zeros((3, 3))])
    assert_same(energy_and_forces(made, groups={3}), whole, 1e-10)
    assert_same(energy_and_forces(made, groups={5}), padded, 1e-10)
    assert_same(energy_and_forces(made), (whole[0] + padded[0], whole[1] + padded[1]), 1e-10)
    assert energy_and_forces(made, groups={0})[0] == 0.0


def trajectory(made, steps):
    made.setVelocitiesToTemperature(300.0, 1)
    frames = []
    for _ in range(steps):
        made.getIntegrator().step(1)
        frames.append(made.getState(positions=True).getPositions(asNumpy=True)._value)
    return np.array(frames)


def test_contexts_share_nothing(familiar_potential):
    """Two simulations of one force, in turn or in two threads, run as each would alone, to the last bit."""
    model, make = familiar_potential(), STRUCTURES["periodic"]
    atoms = [make(), make()]
    atoms[1].rattle(0.1, seed=5)

    def contexts():
        system = create_system(topology_of(atoms[0]), model)
        return [context(system, each.positions) for each in atoms]

    alone = [trajectory(context(create_system(topology_of(each), model), each.positions), 12) for each in atoms]
    made = contexts()
    for each in made:
        each.setVelocitiesToTemperature(300.0, 1)
    mixed = [[], []]
    for _ in range(12):
        for each, frames in zip(made, mixed, strict=True):
            each.getIntegrator().step(1)
            frames.append(each.getState(positions=True).getPositions(asNumpy=True)._value)
    assert np.array_equal(mixed, alone)
    found = {}
    threads = [
        threading.Thread(target=lambda k=k, each=each: found.update({k: trajectory(each, 12)}))
        for k, each in enumerate(contexts())
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(found[0], alone[0])
    assert np.array_equal(found[1], alone[1])


def test_the_same_structure_is_computed_once(familiar_potential, monkeypatch):
    calls = []
    forward = Potential.forward
    monkeypatch.setattr(Potential, "forward", lambda self, graph, **o: calls.append(1) or forward(self, graph, **o))
    atoms = molecule("H2O")
    made = context(create_system(topology_of(atoms), familiar_potential()), atoms.positions)
    made.getIntegrator().step(5)
    for _ in range(3):
        energy_and_forces(made)
    made.getIntegrator().step(5)
    assert len(calls) == 10
    made.setPositions(atoms.positions / 10)
    energy_and_forces(made)
    assert len(calls) == 11


# Saved and loaded


def test_xml_in_a_fresh_process_gives_the_same_bits(familiar_file, tmp_path):
    atoms = STRUCTURES["triclinic"]()
    systems = [
        create_system(topology_of(atoms), familiar_file, atoms=subset) for subset in (None, [3, 4, 5, 15, 16, 17])
    ]
    expected = [bits(context(system, atoms.positions)) for system in systems]
    familiar_file.unlink()  # the model travels inside
    assert in_a_fresh_process(systems, atoms.positions, tmp_path) == expected


def test_a_shipped_model_is_saved_as_its_name(shipped):
    atoms = molecule("H2O")
    force = create_openmm_force(shipped, topology_of(atoms))
    saved = openmm.XmlSerializer.serialize(force)
    assert len(saved) < 5000
    again = openmm.XmlSerializer.deserialize(saved)
    assert energy_of(again, atoms) == energy_of(force, atoms)
    assert energy_of(force, atoms) == pytest.approx(in_ase(atoms, shipped)[0], rel=1e-12)


def energy_of(force, atoms):
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    system.addForce(openmm.XmlSerializer.clone(force))
    return energy_and_forces(context(system, atoms.positions))[0]


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("kind", ["checkpoint", "state"])
def test_a_restored_simulation_goes_on_to_the_last_bit(kind, platform, familiar_potential, tmp_path):
    """Although its neighbour list starts anew, where the first one had been made some steps before."""
    atoms = STRUCTURES["periodic"]()
    topology, system = topology_of(atoms), create_system(topology_of(atoms), familiar_potential())

    def simulation():
        integrator = openmm.VerletIntegrator(0.0005)
        return app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName(platform))

    first = simulation()
    first.context.setPositions(atoms.positions / 10)
    first.context.setVelocitiesToTemperature(300.0, 1)
    first.step(25)
    path = str(tmp_path / kind)
    (first.saveCheckpoint if kind == "checkpoint" else first.saveState)(path)
    first.step(25)
    second = simulation()
    (second.loadCheckpoint if kind == "checkpoint" else second.loadState)(path)
    second.step(25)
    ends = [each.context.getState(positions=True, velocities=True) for each in (first, second)]
    assert np.array_equal(*(end.getPositions(asNumpy=True)._value for end in ends))
    assert np.array_equal(*(end.getVelocities(asNumpy=True)._value for end in ends))


# openmm-torch, which cannot be installed from pip with PythonTorchForce: a stand-in with its interface


class _Bridge:
    def __init__(self, computation):
        self.computation = computation

    def __call__(self, state):
        positions = torch.from_numpy(state.getPositions(asNumpy=True)._value)
        energy, forces = self.computation(state, positions)
        assert forces.dtype == positions.dtype
        return energy.item(), forces.numpy()


def test_openmm_torch_is_used_where_it_is_there(familiar_potential, monkeypatch):
    atoms, model = STRUCTURES["triclinic"](), familiar_potential()
    expected = energy_and_forces(context(create_system(topology_of(atoms), model), atoms.positions))
    made = []

    def python_torch_force(computation, parameters, particles):
        made.append(computation)
        return openmm.PythonForce(_Bridge(computation), parameters, particles)

    stand_in = types.ModuleType("openmmtorch")
    monkeypatch.setitem(sys.modules, "openmmtorch", stand_in)  # a release before it had that class
    create_openmm_force(model, topology_of(atoms))
    stand_in.PythonTorchForce = python_torch_force
    found = energy_and_forces(context(create_system(topology_of(atoms), model), atoms.positions))
    assert [type(computation) for computation in made] == [TorchComputation]
    assert_same(found, expected, 1e-14)
