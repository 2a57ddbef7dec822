"""Do molecules stay whole? Langevin dynamics of molecules the model was not trained on.

The bond graph is that of the QM9 minimum: two atoms are bound below 1.3 times the sum of their covalent radii. Bonds
stretch, so with hysteresis: in the simulation a bond is lost beyond 1.7 times the sum, and a new one is formed below
1.2 times. A molecule keeps its bonds if neither happens at any look. All molecules and temperatures run as one batch.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

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
from torch import Tensor

from egnn_md.dynamics.batched import Batch, State, Thermostat, run
from egnn_md.dynamics.bonds import BondWatch
from egnn_md.models.potential import Potential


def simulate(model: Potential, molecules: Sequence[Molecule], options: Namespace) -> tuple[BondWatch, list[float]]:
    """Every molecule at every temperature, molecules innermost; the watch and the mean temperature of each."""
    copies = [molecule.atoms() for _ in options.temperatures for molecule in molecules]
    batch = Batch(model, copies)
    generator = torch.Generator().manual_seed(options.seed)
    temperature = torch.tensor(options.temperatures, dtype=torch.float64).repeat_interleave(len(molecules))
    thermostat = Thermostat(temperature.to(model.device), options.friction, generator)
    watch = BondWatch(batch.positions, batch.atomic_numbers, batch.n_atoms)
    kinetic: list[Tensor] = []

    def observe(step: int, state: State) -> None:
        watch.look(step * options.timestep * 1e-3, state.positions)
        kinetic.append(batch.temperature(state))

    run(
        batch,
        batch.start(thermostat.temperature, generator),
        round(options.ps * 1e3 / options.timestep),
        options.timestep,
        thermostat=thermostat,
        every=options.interval,
        observe=observe,
    )
    mean = torch.stack(kinetic).mean(0).reshape(len(options.temperatures), -1).nanmean(1)
    return watch, mean.tolist()


def make_options() -> ArgumentParser:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--molecules", type=int, default=20)
    parser.add_argument("--ps", type=float, default=10.0, help="of each molecule at each temperature")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[300.0, 500.0], help="K")
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--friction", type=float, default=5.0, help="1/ps")
    parser.add_argument("--interval", type=int, default=20, help="steps between looks at the bonds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--device", default="cpu")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(make_options(), arguments)
    model = load_potential(options.model, options.dtype, options.device)
    molecules = untrained_molecules(
        options.data, split_fractions(options.model), model.config.elements, options.molecules, options.seed
    )
    began = time.perf_counter()
    watch, temperatures = simulate(model, molecules, options)
    rows, events, n = [], [], len(molecules)
    for row, temperature in enumerate(options.temperatures):
        broken = {k - row * n: event for k, event in watch.first.items() if k // n == row}
        rows.append((temperature, temperatures[row], n, n - len(broken)))
        events += [(temperature, molecules[k].index, *event) for k, event in sorted(broken.items())]
    print_table(f"Langevin, {options.ps:g} ps each", ("T K", "mean T K", "molecules", "kept their bonds"), rows)
    if events:
        print_table("What happened first", ("T K", "gdb", "ps", "event"), events)
    result = {
        "ps": options.ps,
        "total_ns": 1e-3 * options.ps * n * len(rows),
        "n_molecules": n,
        "kept": {f"{row[0]:g}": row[3] for row in rows},
        "events": events,
        "gdb": [molecule.index for molecule in molecules],
        "seconds": time.perf_counter() - began,
    }
    print("\n{total_ns:.3g} ns in all; {seconds:.0f} s".format_map(result))
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
