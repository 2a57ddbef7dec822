"""Does the energy hold through OpenMM? NVE of molecules the model was not trained on, one Context each.

OpenMM's own VerletIntegrator on the Reference platform, after Langevin dynamics at the temperature asked for; the drift
is the slope, fitted by least squares, of the total energy per atom. A molecule has blown up when its total energy is
not finite or has left its start by more than 10 meV/atom.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import numpy as np
import openmm
from _common import (
    Molecule,
    make_parser,
    model_elements,
    parse,
    print_table,
    split_fractions,
    untrained_molecules,
    write_json,
)
from nve import BLOW_UP, FRICTION, drift
from openmm import app

from egnn_md.calculators import create_system
from egnn_md.chemistry.elements import symbol
from egnn_md.chemistry.units import ANGSTROM_PER_NM, BOLTZMANN, KJ_PER_MOL_PER_EV


def topology_of(molecule: Molecule) -> app.Topology:
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for number in molecule.numbers.tolist():
        topology.addAtom(symbol(number), app.Element.getByAtomicNumber(number), residue)
    return topology


def simulate(molecule: Molecule, options: Namespace) -> dict[str, Any]:
    """Equilibrate, then run NVE; energies in meV/atom, times in ps."""
    system = create_system(topology_of(molecule), options.model, dtype=options.dtype)
    step = options.timestep * 1e-3
    integrator = openmm.CompoundIntegrator()
    thermostat = openmm.LangevinMiddleIntegrator(options.temperature, FRICTION, step)
    thermostat.setRandomNumberSeed(options.seed + 1)
    integrator.addIntegrator(thermostat)
    integrator.addIntegrator(openmm.VerletIntegrator(step))
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(molecule.positions / ANGSTROM_PER_NM)
    context.setVelocitiesToTemperature(options.temperature, options.seed + 1)
    integrator.step(round(options.equilibration / step))
    integrator.setCurrentIntegrator(1)
    n_frames = round(options.ps / step) // options.interval
    energies, kinetic = np.zeros(n_frames), np.zeros(n_frames)
    for k in range(n_frames):
        integrator.step(options.interval)
        state = context.getState(energy=True)
        kinetic[k] = state.getKineticEnergy()._value
        energies[k] = state.getPotentialEnergy()._value + kinetic[k]
    energies *= 1e3 / KJ_PER_MOL_PER_EV / len(molecule.numbers)
    energies -= energies[0]
    freedom = 3 * len(molecule.numbers) - 3
    return {
        "drift": float(drift(np.arange(n_frames) * options.interval * step, energies)),
        "fluctuation": float(energies.std()),
        "temperature": float(2 * kinetic.mean() / (freedom * BOLTZMANN * KJ_PER_MOL_PER_EV)),
        "blow_up": bool(not np.isfinite(energies).all() or np.abs(energies).max() > BLOW_UP),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--molecules", type=int, default=3)
    parser.add_argument("--ps", type=float, default=20.0)
    parser.add_argument("--equilibration", type=float, default=1.0, help="ps of Langevin dynamics first")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--interval", type=int, default=10, help="steps between energies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    options = parse(parser, arguments)
    elements, split = model_elements(options.model), split_fractions(options.model)
    molecules = untrained_molecules(options.data, split, elements, options.molecules, options.seed)
    began, rows = time.perf_counter(), []
    for molecule in molecules:
        rows.append({"gdb": molecule.index, "n_atoms": len(molecule.numbers), **simulate(molecule, options)})
        print(rows[-1], flush=True)
    print_table(
        f"NVE through OpenMM, {options.ps:g} ps, {options.timestep:g} fs, {options.temperature:g} K, {options.dtype}",
        ("gdb", "atoms", "drift meV/atom/ps", "std of E meV/atom", "mean T K", "blow-up"),
        [tuple(row.values()) for row in rows],
    )
    result = {
        "molecules": rows,
        "max_abs_drift": max(abs(row["drift"]) for row in rows),
        "blow_ups": sum(row["blow_up"] for row in rows),
        "ps": options.ps,
        "seconds": time.perf_counter() - began,
    }
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
