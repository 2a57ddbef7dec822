"""A periodic liquid at constant pressure. This shows the mechanics only: `organic-xtb` saw no periodic data, nothing in
it acts beyond 5 Å, and the density that comes out is no prediction.

python examples/openmm_liquid_npt.py CH3OH --per-edge 3 --picoseconds 2 --output liquid.pdb
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import openmm
from ase.build import molecule
from openmm import app, unit

from egnn_md.calculators import create_system


def box_of(name: str, per_edge: int, spacing: float) -> tuple[app.Topology, np.ndarray]:
    """per_edge³ molecules on a cubic lattice (spacing in Å); topology with bonds and box, positions in nm."""
    unit_cell, topology, positions = molecule(name), app.Topology(), []
    chain, rng = topology.addChain(), np.random.default_rng(0)
    reach = unit_cell.get_all_distances()
    bonded = [(i, j) for i, j in zip(*np.nonzero(np.triu(reach, 1)), strict=True) if reach[i, j] < 1.6]
    bonded = [(i, j) for i, j in bonded if {*unit_cell.symbols[[i, j]]} != {"H"}]
    for site in np.ndindex(per_edge, per_edge, per_edge):
        residue = topology.addResidue(name, chain)
        atoms = [topology.addAtom(s, app.Element.getBySymbol(s), residue) for s in unit_cell.symbols]
        for i, j in bonded:  # they carry no energy; they tell the barostat what a molecule is
            topology.addBond(atoms[i], atoms[j])
        turned = unit_cell.copy()
        turned.rotate(90 * rng.integers(4), "z", center="COM")
        positions.append(turned.positions - turned.get_center_of_mass() + spacing * np.array(site))
    topology.setPeriodicBoxVectors(per_edge * spacing / 10 * np.eye(3) * unit.nanometer)
    return topology, np.concatenate(positions) / 10


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="CH3OH", help="a molecule that ase.build knows")
    parser.add_argument("--model", default="organic-xtb", help="a shipped name, or a checkpoint")
    parser.add_argument("--per-edge", type=int, default=3, help="molecules along each edge of the box")
    parser.add_argument("--spacing", type=float, default=4.4, help="Å between them at the start")
    parser.add_argument("--picoseconds", type=float, default=2.0)
    parser.add_argument("--output", default="liquid.pdb")
    options = parser.parse_args(arguments)

    topology, positions = box_of(options.name, options.per_edge, options.spacing)
    system = create_system(topology, options.model, dtype="float32")
    system.addForce(openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin, 10))
    integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 5 / unit.picosecond, 0.5 * unit.femtosecond)
    simulation = app.Simulation(topology, system, integrator)
    simulation.context.setPositions(positions)
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
    simulation.reporters.append(app.StateDataReporter(sys.stdout, 20, time=True, temperature=True, density=True))
    simulation.step(round(options.picoseconds * 2000))
    state = simulation.context.getState(positions=True, enforcePeriodicBox=True)
    topology.setPeriodicBoxVectors(state.getPeriodicBoxVectors())
    with open(options.output, "w") as file:
        app.PDBFile.writeFile(topology, state.getPositions(), file)
    print(f"{topology.getNumAtoms()} atoms after {options.picoseconds:g} ps in {options.output}")


if __name__ == "__main__":
    main()
