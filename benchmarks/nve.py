"""Does the energy hold? NVE of molecules the model was not trained on, in float64.

After 1 ps of Langevin dynamics the thermostat goes; the drift is the slope, fitted by least squares, of the total
energy per atom. A molecule has blown up when its total energy is not finite or has left its start by more than
10 meV/atom, or when a bond of its QM9 minimum is stretched beyond 1.7 times the sum of the covalent radii or a new one
has formed below 1.2 times. All molecules run as one batch.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from _common import (
    Molecule,
    load_potential,
    make_parser,
    parse,
    print_table,
    split_fractions,
    untrained_molecules,
    write_json,
)
from numpy.typing import NDArray

from egnn_md.dynamics.batched import Batch, State, Thermostat, run
from egnn_md.dynamics.bonds import BondWatch
from egnn_md.models.potential import Potential

FloatArray = NDArray[np.float64]

BLOW_UP = 10.0  # meV/atom
FRICTION = 20.0  # 1/ps, while equilibrating


def drift(times: FloatArray, energies: FloatArray) -> FloatArray:
    """Least-squares slopes of `energies` (n_times, n_molecules) over `times` (n_times,)."""
    slopes: FloatArray = np.polyfit(times, energies, 1)[0]
    return slopes


def simulate(model: Potential, molecules: Sequence[Molecule], options: Namespace) -> dict[str, Any]:
    """Equilibrate, then run NVE; figures of each molecule, energies in meV/atom and times in ps."""
    batch = Batch(model, [molecule.atoms() for molecule in molecules])
    generator = torch.Generator().manual_seed(options.seed)
    temperature = torch.full((len(molecules),), options.temperature, dtype=torch.float64, device=model.device)
    thermostat = Thermostat(temperature, FRICTION, generator)
    equilibration = round(options.equilibration * 1e3 / options.timestep)
    state = run(batch, batch.start(temperature, generator), equilibration, options.timestep, thermostat=thermostat)
    state = batch.without_drift(state)
    watch = BondWatch(batch.positions, batch.atomic_numbers, batch.n_atoms)
    total: list[FloatArray] = []
    temperatures: list[FloatArray] = []

    def observe(step: int, state: State) -> None:
        watch.look(step * options.timestep * 1e-3, state.positions)
        total.append((1e3 * (state.energy + batch.kinetic_energy(state)) / batch.n_atoms).cpu().numpy())
        temperatures.append(batch.temperature(state, fixed=3).cpu().numpy())  # the centre of mass is at rest

    observe(0, state)
    n_steps = round(options.ps * 1e3 / options.timestep)
    run(batch, state, n_steps, options.timestep, every=options.interval, observe=observe)
    energies = np.stack(total) - total[0]
    times = np.arange(len(energies)) * options.interval * options.timestep * 1e-3
    held = np.isfinite(energies).all(0) & (np.abs(np.nan_to_num(energies)).max(0) < BLOW_UP)
    whole = np.array([k not in watch.first for k in range(len(molecules))])
    return {
        "drift": drift(times, np.nan_to_num(energies)),
        "fluctuation": energies.std(0),
        "temperature": np.stack(temperatures).mean(0),
        "blow_up": ~(held & whole),
    }


def make_options() -> ArgumentParser:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--molecules", type=int, default=10)
    parser.add_argument("--ps", type=float, default=20.0)
    parser.add_argument("--equilibration", type=float, default=1.0, help="ps of Langevin dynamics first")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--interval", type=int, default=5, help="steps between energies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--device", default="cpu")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(make_options(), arguments)
    model = load_potential(options.model, options.dtype, options.device)
    molecules = untrained_molecules(
        options.data, split_fractions(options.model), model.config.elements, options.molecules, options.seed
    )
    began = time.perf_counter()
    figures = simulate(model, molecules, options)
    print_table(
        f"NVE {options.ps:g} ps, {options.timestep:g} fs, {options.temperature:g} K, {options.dtype}",
        ("gdb", "atoms", "drift meV/atom/ps", "std of E meV/atom", "mean T K", "blow-up"),
        [
            (molecule.index, len(molecule.numbers), *row)
            for molecule, row in zip(molecules, zip(*(v.tolist() for v in figures.values()), strict=True), strict=True)
        ],
    )
    drifts = np.abs(figures["drift"])
    result = {
        "n_molecules": len(molecules),
        "blow_ups": int(figures["blow_up"].sum()),
        "mean_abs_drift": float(drifts.mean()),
        "max_abs_drift": float(drifts.max()),
        "ps": options.ps,
        "seconds": time.perf_counter() - began,
        "gdb": [molecule.index for molecule in molecules],
        **{name: values.tolist() for name, values in figures.items()},
    }
    print(
        "\n|drift| mean {mean_abs_drift:.3g}, largest {max_abs_drift:.3g} meV/atom/ps; {blow_ups} blow-ups; "
        "{seconds:.0f} s".format_map(result)
    )
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
