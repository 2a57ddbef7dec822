"""What does OpenMM add to a force call? A step of Verlet dynamics beside the bare network, in one run.

The bare network gets a graph that is ready and holds the pairs within the cutoff, no more; the step gets positions in
nm, finds the pairs, calls the network and moves the atoms. Both in turn on one thread. Medians of the time that passed,
and of the processor time of this process: on a busy machine the second says what the work is. Alanine dipeptide (22
atoms) in vacuum and a periodic box of 258 waters (774 atoms).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import openmm
import torch
from _common import load_potential, make_parser, parse, print_table, write_json
from _liquids import lattice
from openmm import app, unit
from openmm_mixed import DIPEPTIDE

from egnn_md.calculators import create_system
from egnn_md.chemistry.units import ANGSTROM_PER_NM
from egnn_md.compiled.forces import use_compiled
from egnn_md.neighbors import GraphBuilder

Structure = tuple[app.Topology, np.ndarray]


def dipeptide() -> Structure:
    pdb = app.PDBFile(str(DIPEPTIDE))
    return pdb.topology, pdb.getPositions(asNumpy=True)._value * ANGSTROM_PER_NM


def water() -> Structure:
    """258 molecules in the box of a 6 x 6 x 8 lattice of 288, 30 left out: 774 atoms."""
    atoms = lattice("H2O", (6, 6, 8))[:774]
    topology = app.Topology()
    residue = topology.addResidue("HOH", topology.addChain())
    for symbol in atoms.get_chemical_symbols():
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    topology.setPeriodicBoxVectors(atoms.cell.array / ANGSTROM_PER_NM * unit.nanometer)
    return topology, atoms.positions


def simulation(structure: Structure, options: Any, platform: str) -> openmm.Context:
    topology, positions = structure
    model = {"dtype": options.dtype, "compile": options.compile}
    system = create_system(topology, options.model, remove_cm_motion=False, **model)
    properties = {"Threads": str(options.threads)} if platform == "CPU" else {}
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName(platform), properties
    )
    context.setPositions(positions / ANGSTROM_PER_NM)
    context.setVelocitiesToTemperature(300.0, 1)
    return context


def measure(structure: Structure, options: Any, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds of the bare call and of a step on each platform, by the wall clock and of processor time."""
    topology, positions = structure
    numbers = np.array([atom.element.atomic_number for atom in topology.atoms()], dtype=np.int64)
    model = load_potential(options.model, options.dtype)
    use_compiled(model, options.compile)
    box = topology.getPeriodicBoxVectors()
    cell = np.zeros((3, 3)) if box is None else np.array(box.value_in_unit(unit.angstrom))
    graph = GraphBuilder(model.config.cutoff)(positions, numbers, cell, np.full(3, box is not None))
    calls = {"bare": lambda: model(graph)}
    for platform in ("Reference", "CPU"):
        context = simulation(structure, options, platform)
        calls[platform] = lambda context=context: context.getIntegrator().step(1)
    clocks = {"wall": time.perf_counter, "cpu": time.process_time}
    seconds = {clock: {name: [] for name in calls} for clock in clocks}
    for count in range(rounds + 3):
        for name, call in calls.items():
            began = {clock: read() for clock, read in clocks.items()}
            call()
            if count >= 3:  # the first calls allocate
                for clock, read in clocks.items():
                    seconds[clock][name].append(read() - began[clock])
    return {
        clock: {name: float(np.median(values)) for name, values in by_name.items()}
        for clock, by_name in seconds.items()
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__ or "", data=False)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--compile", action="store_true", help="compiled force calls, made first if need be")
    parser.add_argument("--rounds", type=int, default=400, help="for 22 atoms; a tenth of them for 774")
    options = parse(parser, arguments)
    rows = []
    for name, structure, rounds in (
        ("alanine dipeptide", dipeptide(), options.rounds),
        ("water", water(), max(options.rounds // 10, 1)),
    ):
        for clock, seconds in measure(structure, options, rounds).items():
            overhead = {platform: seconds[platform] / seconds["bare"] - 1.0 for platform in ("Reference", "CPU")}
            n_atoms = len(structure[1])
            rows.append(
                {"structure": name, "n_atoms": n_atoms, "clock": clock, "seconds": seconds, "overhead": overhead}
            )
    print_table(
        f"A step of dynamics beside the bare network, {options.dtype}, {torch.get_num_threads()} thread(s)",
        ("structure", "atoms", "clock", "bare ms", "Reference ms", "CPU ms", "Reference +%", "CPU +%"),
        [
            (
                row["structure"],
                row["n_atoms"],
                row["clock"],
                *(1e3 * seconds for seconds in row["seconds"].values()),
                *(1e2 * extra for extra in row["overhead"].values()),
            )
            for row in rows
        ],
    )
    result = {"dtype": options.dtype, "structures": rows}
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
