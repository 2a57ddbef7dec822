"""A molecule with quantum nuclei: path integrals in i-PI, all beads in one call of the model.

python examples/ipi_quantum_molecule.py H2O --beads 16 --picoseconds 2        # pip install 'egnn-md[ipi]'

Prints the mean length of the shortest bond over the beads, beside that of a classical run (--beads 1).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.io import read, write

from egnn_md.calculators import ipi_driver

FORCE = """
<ffdirect name='egnn'>
  <pes>custom</pes> <pes_path>{driver}</pes_path> <batch_size>{beads}</batch_size>
  <parameters>{{template: template.xyz, model: {model}, periodic: False, dtype: float32}}</parameters>
</ffdirect>
"""


def shortest_bond(atoms: Atoms) -> float:
    """Å."""
    distances = atoms.get_all_distances()
    return float(distances[np.triu_indices(len(atoms), 1)].min())


def main(arguments: Sequence[str] | None = None) -> None:
    from ipi.scripting import InteractiveSimulation, motion_nvt_xml, simulation_xml

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structure", nargs="?", default="H2O", help="a file, or a name that ase.build knows")
    parser.add_argument("--model", default="organic-xtb", help="a shipped name, or a checkpoint")
    parser.add_argument("--beads", type=int, default=16, help="16 do for hydrogen at 300 K")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--picoseconds", type=float, default=2.0)
    options = parser.parse_args(arguments)

    atoms = read(options.structure) if Path(options.structure).exists() else molecule(options.structure)
    atoms.center(vacuum=10.0)  # i-PI wants a cell
    write("template.xyz", atoms)
    force = FORCE.format(driver=ipi_driver.__file__, beads=options.beads, model=options.model)
    motion = motion_nvt_xml(
        0.25 * units.fs, thermostat="pile_g" if options.beads > 1 else "langevin", tau=100 * units.fs
    )
    start = simulation_xml([atoms] * options.beads, force, motion, temperature=options.temperature)
    simulation = InteractiveSimulation(start)
    bonds, kelvin = [], []
    for _ in range(max(1, round(options.picoseconds * 200))):
        simulation.run(20)
        kelvin.append(simulation.properties("temperature"))
        frames = simulation.get_structures()
        bonds.append(np.mean([shortest_bond(bead) for bead in ([frames] if options.beads == 1 else frames)]))
    settled = np.array(bonds[len(bonds) // 4 :])
    print(f"{options.beads} beads at {np.mean(kelvin):.0f} K: shortest bond {settled.mean():.4f} Å on average")


if __name__ == "__main__":
    main()
