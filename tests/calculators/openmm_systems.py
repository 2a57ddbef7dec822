"""Structures as OpenMM sees them: topologies, contexts, and energies back in eV and Å."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import openmm
from ase import Atoms
from ase.build import molecule
from openmm import app
from openmm.unit import nanometer

from egnn_md.chemistry.units import KJ_PER_MOL_PER_EV

PLATFORMS = [openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())]
DIPEPTIDE = Path(__file__).parents[2] / "examples" / "alanine_dipeptide.pdb"


def droplet(n: int = 5, seed: int = 3, cell: object = None) -> Atoms:
    """n waters on a cubic grid, turned at random; periodic if given a cell (Å)."""
    rng = np.random.default_rng(seed)
    atoms = Atoms(cell=cell, pbc=cell is not None)
    for k in range(n):
        water = molecule("H2O")
        water.rotate(rng.uniform(0, 360), rng.normal(size=3))
        water.positions += 3.1 * np.array([k % 2, k // 2 % 2, k // 4]) + rng.normal(0, 0.05, 3)
        atoms += water
    return atoms


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


STRUCTURES = {
    "isolated": ethanol,
    "isolated, with a list": lambda: droplet(8),
    "periodic": lambda: droplet(8, cell=6.4 * np.eye(3)),
    "triclinic": lambda: droplet(8, cell=[[6.4, 0, 0], [1.5, 6.5, 0], [-0.8, 1.1, 6.6]]),
    "cell below the cutoff": lambda: droplet(1, cell=[[3.3, 0, 0], [0.9, 3.4, 0], [-0.7, 0.5, 3.6]]),
}


def topology_of(atoms: Atoms, elements: Iterable[str | None] | None = None) -> app.Topology:
    """One residue, no bonds; `elements` overrides the symbols, None for a site without one."""
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for symbol in atoms.get_chemical_symbols() if elements is None else elements:
        topology.addAtom(symbol or "M", symbol and app.Element.getBySymbol(symbol), residue)
    if atoms.pbc.all():
        topology.setPeriodicBoxVectors(atoms.cell.array / 10 * nanometer)
    return topology


def context(system: openmm.System, positions: np.ndarray, platform: str = "Reference") -> openmm.Context:
    """positions in Å."""
    made = openmm.Context(system, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName(platform))
    made.setPositions(positions / 10)
    return made


def energy_and_forces(made: openmm.Context, **which: object) -> tuple[float, np.ndarray]:
    """eV and eV/Å."""
    state = made.getState(energy=True, forces=True, **which)
    return state.getPotentialEnergy()._value / KJ_PER_MOL_PER_EV, state.getForces(asNumpy=True)._value / (
        10 * KJ_PER_MOL_PER_EV
    )


def bits(made: openmm.Context) -> str:
    """Energy and forces to the last bit."""
    state = made.getState(energy=True, forces=True)
    return f"{state.getPotentialEnergy()._value!r} {state.getForces(asNumpy=True)._value.tobytes().hex()}"


LOAD = """
import sys, numpy, openmm, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from openmm_systems import bits, context
positions = numpy.load(sys.argv[2] + "/positions.npy")
for k in range(int(sys.argv[3])):
    print(bits(context(openmm.XmlSerializer.deserialize(open(f"{sys.argv[2]}/{k}.xml").read()), positions)))
"""


def in_a_fresh_process(systems: list[openmm.System], positions: np.ndarray, folder: Path) -> list[str]:
    """`bits` of each system, at positions in Å, when a process of its own loads it from XML."""
    np.save(folder / "positions.npy", positions)
    for k, system in enumerate(systems):
        (folder / f"{k}.xml").write_text(openmm.XmlSerializer.serialize(system))
    command = [sys.executable, "-c", LOAD, str(Path(__file__).parent), str(folder), str(len(systems))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
