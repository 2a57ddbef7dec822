"""A ligand in water through openmm-ml: the ligand is EGNN, the water and their interaction are Amber. NVT.

With --interpolate the system has the parameter lambda_interpolate: 0 is Amber, 1 the mixed system; the energies at both
ends and between are printed first. Needs: pip install 'egnn-md[openmm]'

python examples/openmm_ligand_in_water.py --picoseconds 10 --output ligand.dcd
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import openmm
from openmm import app, unit
from openmmml import MLPotential

DIPEPTIDE = Path(__file__).with_name("alanine_dipeptide.pdb")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pdb", nargs="?", default=str(DIPEPTIDE), help="a molecule whose residues Amber knows")
    parser.add_argument("--model", default="organic-xtb", help="a shipped name, or a checkpoint")
    parser.add_argument("--picoseconds", type=float, default=10.0)
    parser.add_argument("--box", type=float, default=2.2, help="edge of the water box, nm")
    parser.add_argument("--interpolate", action="store_true")
    parser.add_argument("--output", default="ligand.dcd", help="and, beside it, .pdb: the topology")
    options = parser.parse_args(arguments)

    pdb = app.PDBFile(options.pdb)
    ligand = list(range(pdb.topology.getNumAtoms()))
    field = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
    model = app.Modeller(pdb.topology, pdb.positions)
    model.addSolvent(field, boxSize=openmm.Vec3(1, 1, 1) * options.box * unit.nanometer)
    cutoff = min(0.9, 0.45 * options.box) * unit.nanometer
    amber = field.createSystem(model.topology, nonbondedMethod=app.PME, nonbondedCutoff=cutoff, constraints=app.HBonds)
    potential = MLPotential("egnn", model=options.model, precision="single")
    # Constraints within the ligand go; its bonds with hydrogen vibrate: 1 fs at most.
    system = potential.createMixedSystem(model.topology, amber, ligand, interpolate=options.interpolate)

    integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 1 * unit.femtosecond)
    simulation = app.Simulation(model.topology, system, integrator)
    simulation.context.setPositions(model.positions)
    if options.interpolate:
        for value in (0.0, 0.5, 1.0):
            simulation.context.setParameter("lambda_interpolate", value)
            energy = simulation.context.getState(energy=True).getPotentialEnergy()
            print(f"lambda {value:g}: {energy}")
    simulation.minimizeEnergy(maxIterations=50)
    simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
    with open(Path(options.output).with_suffix(".pdb"), "w") as file:
        app.PDBFile.writeFile(model.topology, model.positions, file)
    simulation.reporters += [
        app.DCDReporter(options.output, 20),
        app.StateDataReporter(sys.stdout, 100, time=True, potentialEnergy=True, temperature=True, speed=True),
    ]
    simulation.step(round(options.picoseconds * 1000))
    print(f"{options.picoseconds:g} ps of {model.topology.getNumAtoms()} atoms, {len(ligand)} of them EGNN")


if __name__ == "__main__":
    main()
