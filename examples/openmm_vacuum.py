"""A molecule in vacuum with OpenMM: all of it EGNN. Any PDB file with hydrogens will do.

python examples/openmm_vacuum.py molecule.pdb --picoseconds 5 --output vacuum.dcd
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import openmm
from openmm import app, unit

from egnn_md.calculators import create_system


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pdb", nargs="?", default=str(Path(__file__).with_name("alanine_dipeptide.pdb")))
    parser.add_argument("--model", default="organic-xtb", help="a shipped name, or a checkpoint")
    parser.add_argument("--picoseconds", type=float, default=5.0)
    parser.add_argument("--output", default="vacuum.dcd")
    options = parser.parse_args(arguments)

    pdb = app.PDBFile(options.pdb)
    system = create_system(pdb.topology, options.model, dtype="float32")  # float64, the default, for minimizations
    integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 5 / unit.picosecond, 0.5 * unit.femtosecond)
    simulation = app.Simulation(pdb.topology, system, integrator)
    simulation.context.setPositions(pdb.positions)
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
    simulation.reporters += [
        app.DCDReporter(options.output, 10),
        app.StateDataReporter(sys.stdout, 100, time=True, potentialEnergy=True, temperature=True, speed=True),
    ]
    simulation.step(round(options.picoseconds * 2000))
    print(f"{options.picoseconds:g} ps in {options.output}")


if __name__ == "__main__":
    main()
