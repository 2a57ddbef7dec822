"""Save a simulation, and go on with it in another process: the system as XML, the state as a checkpoint.

The XML holds the model's name (a shipped one) or the whole checkpoint (your own): no other file is needed. On one
machine and platform the continuation is exact; to move elsewhere, save the state as XML too (--portable).

python examples/openmm_restart.py --folder saved/ --steps 1000        # begin
python examples/openmm_restart.py --folder saved/ --steps 1000        # go on, as often as you like
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import openmm
from openmm import app, unit

from egnn_md.calculators import create_system

DIPEPTIDE = Path(__file__).with_name("alanine_dipeptide.pdb")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organic-xtb", help="a shipped name, or a checkpoint")
    parser.add_argument("--folder", type=Path, default=Path("saved"))
    parser.add_argument("--steps", type=int, default=1000, help="of 0.5 fs")
    parser.add_argument("--portable", action="store_true", help="state as XML instead of a checkpoint")
    options = parser.parse_args(arguments)
    system_file = options.folder / "system.xml"
    state_file = str(options.folder / ("state.xml" if options.portable else "state.chk"))

    pdb, begun = app.PDBFile(str(DIPEPTIDE)), system_file.exists()
    if begun:
        system = openmm.XmlSerializer.deserialize(system_file.read_text())
    else:
        system = create_system(pdb.topology, options.model, dtype="float32")
        options.folder.mkdir(parents=True, exist_ok=True)
        system_file.write_text(openmm.XmlSerializer.serialize(system))
    integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 5 / unit.picosecond, 0.5 * unit.femtosecond)
    simulation = app.Simulation(pdb.topology, system, integrator)
    if begun:
        (simulation.loadState if options.portable else simulation.loadCheckpoint)(state_file)
    else:
        simulation.context.setPositions(pdb.positions)
        simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
    first = simulation.currentStep
    simulation.step(options.steps)
    (simulation.saveState if options.portable else simulation.saveCheckpoint)(state_file)
    print(f"steps {first} to {simulation.currentStep}, saved in {options.folder}")


if __name__ == "__main__":
    main()
