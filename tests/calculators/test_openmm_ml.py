"""The openmm-ml plugin, checked the way openmm-ml checks its own potentials."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import openmm
import pytest
from openmm import app, unit
from openmm_systems import (
    DIPEPTIDE,
    PLATFORMS,
    STRUCTURES,
    bits,
    context,
    energy_and_forces,
    in_a_fresh_process,
    topology_of,
)
from openmmml import MLPotential

from egnn_md.calculators import create_system
from egnn_md.checkpoint import read_header, shipped_models
from egnn_md.chemistry.elements import UnsupportedElement

LIGAND = list(range(22))


@pytest.fixture(scope="module")
def solvated():
    """(topology, positions in Å, Amber system) of alanine dipeptide in water, bonds with hydrogen constrained."""
    pdb, field = app.PDBFile(str(DIPEPTIDE)), app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
    model = app.Modeller(pdb.topology, pdb.positions)
    model.addSolvent(field, boxSize=openmm.Vec3(1.9, 1.9, 1.9) * unit.nanometer)
    options = {"nonbondedMethod": app.PME, "nonbondedCutoff": 0.8 * unit.nanometer, "constraints": app.HBonds}
    system = field.createSystem(model.topology, **options)
    return model.topology, np.array(model.positions.value_in_unit(unit.angstrom)), system


def without_constraints(system, atoms):
    """A copy of the system whose `atoms` have none among themselves."""
    copy, atoms = openmm.XmlSerializer.clone(system), set(atoms)
    for k in reversed(range(copy.getNumConstraints())):
        if set(copy.getConstraintParameters(k)[:2]) <= atoms:
            copy.removeConstraint(k)
    return copy


def constraints(system):
    return {tuple(system.getConstraintParameters(k)[:2]) for k in range(system.getNumConstraints())}


# The plugin


def test_entry_points_are_there_and_load_no_torch():
    script = """
import sys, openmmml
print("torch" in sys.modules, *sorted(openmmml.MLPotential._implFactories))
openmmml.MLPotential("egnn", model="organic-xtb")
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    torch_loaded, *names = done.stdout.splitlines()[0].split()
    potentials = {name for name in shipped_models() if read_header(name)["kind"] == "potential"}
    assert {"egnn", "egnn-xtb", *potentials} <= set(names)
    assert torch_loaded == done.stdout.splitlines()[1] == "False"


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("name", ["isolated", "triclinic"])
def test_create_system(name, platform, familiar_file):
    atoms = STRUCTURES[name]()
    system = MLPotential("egnn", model=str(familiar_file)).createSystem(topology_of(atoms))
    ours = create_system(topology_of(atoms), familiar_file)
    assert bits(context(system, atoms.positions, platform)) == bits(context(ours, atoms.positions, platform))
    assert system.usesPeriodicBoundaryConditions() == (name == "triclinic")


def test_precision_of_the_potential_and_of_the_system(familiar_file):
    atoms = STRUCTURES["isolated"]()

    def energy(at_start=None, later=None):
        potential = MLPotential("egnn", model=str(familiar_file), **(at_start or {}))
        system = potential.createSystem(topology_of(atoms), **(later or {}))
        return energy_and_forces(context(system, atoms.positions))[0]

    single, double = {"precision": "single"}, {"precision": "double"}
    assert energy(single) == energy({}, single) == energy(double, single) == energy({}, {"dtype": "float32"})
    assert energy() == energy(double) == energy(single, double) == energy({"dtype": "float64"}, double)
    assert energy() != energy(single)
    assert energy() == pytest.approx(energy(single), rel=1e-6)


@pytest.mark.parametrize(
    ("at_start", "later", "error", "message"),
    [
        ({"modle": "x"}, {}, TypeError, "did you mean 'model'"),
        ({}, {"presicion": "single"}, TypeError, "did you mean 'precision'"),
        ({}, {"precision": "half"}, ValueError, "'single' or 'double'"),
        ({}, {"precision": "single", "dtype": "float64"}, ValueError, "contradict"),
        ({}, {"charge": -1}, ValueError, "charge -1"),
        ({"multiplicity": 2}, {}, ValueError, "closed shells"),
        ({"model": "organic-xtc"}, {}, ValueError, "no model"),
    ],
    ids=str,
)
def test_bad_options_are_refused(at_start, later, error, message, familiar_file):
    with pytest.raises(error, match=message):
        MLPotential("egnn", **{"model": str(familiar_file), **at_start}).createSystem(
            topology_of(STRUCTURES["isolated"]()), **later
        )


def test_shipped_models_by_name(shipped):
    atoms = STRUCTURES["isolated"]()
    one, other = (
        MLPotential(name, **options).createSystem(topology_of(atoms))
        for name, options in ((shipped, {}), ("egnn", {"model": shipped}))
    )
    assert bits(context(one, atoms.positions)) == bits(context(other, atoms.positions))
    with pytest.raises(TypeError, match="has its model already"):
        MLPotential(shipped, model="another")


# Mixed systems


@pytest.mark.parametrize("platform", PLATFORMS)
def test_mixed_system_and_interpolation(platform, solvated, familiar_file):
    topology, positions, force_field = solvated
    potential = MLPotential("egnn", model=str(familiar_file))
    mixed = potential.createMixedSystem(topology, force_field, LIGAND)
    between = potential.createMixedSystem(topology, force_field, LIGAND, interpolate=True)
    bare = without_constraints(force_field, LIGAND)
    assert constraints(mixed) == constraints(between) == constraints(bare)
    assert len(constraints(bare)) == len(constraints(force_field)) - 12  # its X-H bonds
    mixed, between, bare = (context(system, positions, platform) for system in (mixed, between, bare))
    energy, forces = energy_and_forces(mixed)
    at_zero, forces_at_zero = energy_and_forces(bare)
    found = {}
    for value in (1.0, 0.0, 0.25):
        between.setParameter("lambda_interpolate", value)
        found[value] = energy_and_forces(between)
    assert found[1.0][0] == pytest.approx(energy, rel=1e-10)
    kj_per_mol = 96.485 * abs(found[0.0][0] - at_zero)
    assert kj_per_mol < (1e-4 if platform == "Reference" else 0.1)
    assert found[0.25][0] == pytest.approx(0.75 * at_zero + 0.25 * energy, abs=1e-3)
    scale = np.abs(forces).max()
    assert np.abs(found[1.0][1] - forces).max() < 1e-5 * scale
    assert np.abs(found[0.0][1] - forces_at_zero).max() < 1e-5 * scale
    assert mixed.getMolecules()[0] == between.getMolecules()[0] == tuple(LIGAND)


def test_the_ligand_feels_the_potential_and_not_its_force_field(solvated, familiar_file):
    """What the mixed system adds to its potential does not depend on the ligand's own bonded terms."""
    topology, positions, force_field = solvated
    mixed = MLPotential("egnn", model=str(familiar_file)).createMixedSystem(topology, force_field, LIGAND)
    made = context(mixed, positions)
    alone = app.Modeller(topology, positions * unit.angstrom)
    alone.delete([atom for atom in topology.atoms() if atom.index >= 22])
    own = create_system(alone.topology, familiar_file, periodic=True)
    own = context(own, positions[:22])
    shift = np.zeros_like(positions)
    shift[10:14] = 0.15 * np.random.default_rng(0).normal(size=(4, 3))
    changes = []
    for made_context, n in ((made, len(positions)), (own, 22)):
        before, _ = energy_and_forces(made_context)
        made_context.setPositions((positions + shift)[:n] / 10)
        changes.append(energy_and_forces(made_context)[0] - before)
    assert abs(changes[1]) > 1.0
    assert changes[0] == pytest.approx(changes[1], abs=0.4)  # eV; what is left is with the water


@pytest.mark.parametrize("interpolate", [False, True])
def test_link_atoms(interpolate, solvated, familiar_file):
    """The side chain alone: openmm-ml caps the cut bond with a massless hydrogen. Forces are the energy's gradient."""
    topology, positions, force_field = solvated
    side_chain = [10, 11, 12, 13]
    potential = MLPotential("egnn", model=str(familiar_file))
    info = potential.createMixedSystem(
        topology, force_field, side_chain, interpolate=interpolate, returnInfo=True,
        linkAtomDistances=[(8, 10, 1.1 * unit.angstrom)],
    )  # fmt: skip
    system = info["system"]
    assert system.isVirtualSite(len(positions))
    made = context(system, np.vstack([positions, positions[8:9]]))
    made.computeVirtualSites()
    state = made.getState(positions=True).getPositions(asNumpy=True)._value * 10
    assert np.linalg.norm(state[-1] - state[10]) == pytest.approx(1.1, abs=1e-6)
    _, forces = energy_and_forces(made)
    rng, way = np.random.default_rng(0), np.zeros_like(state)
    way[[8, 10, 11, 12, 13]] = rng.normal(size=(5, 3))
    energies = []
    for sign in (1, -1):
        made.setPositions((state + sign * 1e-4 * way) / 10)
        made.computeVirtualSites()
        energies.append(energy_and_forces(made)[0])
    assert (energies[1] - energies[0]) / 2e-4 == pytest.approx(np.vdot(forces[: len(way)], way), rel=1e-4)


def test_xml_in_a_fresh_process_gives_the_same_bits(solvated, familiar_file, tmp_path):
    topology, positions, force_field = solvated
    potential = MLPotential("egnn", model=str(familiar_file))
    systems = [
        potential.createMixedSystem(topology, force_field, LIGAND, interpolate=interpolate)
        for interpolate in (False, True)
    ]
    expected = [bits(context(system, positions)) for system in systems]
    familiar_file.unlink()
    assert in_a_fresh_process(systems, positions, tmp_path) == expected


def test_charged_regions_are_refused(familiar_file):
    """An ion by its electrons; one with an even number of them by the force field's charges."""
    topology = app.Topology()
    residue = topology.addResidue("OXA", topology.addChain())
    for symbol in "CCOOOO":
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    system, nonbonded = openmm.System(), openmm.NonbondedForce()
    for charge in (0.8, 0.8, -0.9, -0.9, -0.9, -0.9):
        system.addParticle(12.0)
        nonbonded.addParticle(charge, 0.3, 0.1)
    system.addForce(nonbonded)
    potential = MLPotential("egnn", model=str(familiar_file))
    with pytest.raises(ValueError, match=r"charge of -2\.00 e"):
        potential.createMixedSystem(topology, system, range(6))
    water = app.Topology()
    residue = water.addResidue("H3O", water.addChain())
    for symbol in "OHHH":
        water.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    with pytest.raises(ValueError, match="odd number"):
        potential.createSystem(water)
    next(water.atoms()).element = app.element.sodium
    with pytest.raises(UnsupportedElement, match="Na"):
        potential.createSystem(water)  # NaH3, 14 electrons


def test_four_site_water_is_refused_in_words(familiar_file):
    """openmm-ml 1.8 would say: 'NoneType' object has no attribute 'atomic_number'."""
    pdb, field = app.PDBFile(str(DIPEPTIDE)), app.ForceField("amber14-all.xml", "amber14/tip4pew.xml")
    model = app.Modeller(pdb.topology, pdb.positions)
    model.addSolvent(field, model="tip4pew", boxSize=openmm.Vec3(1.9, 1.9, 1.9) * unit.nanometer)
    system = field.createSystem(model.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.8 * unit.nanometer)
    potential = MLPotential("egnn", model=str(familiar_file))
    for interpolate in (False, True):
        with pytest.raises(ValueError, match=r"\(M of HOH\) and \d+ more have no element: .* TIP3P"):
            potential.createMixedSystem(model.topology, system, LIGAND, interpolate=interpolate)
