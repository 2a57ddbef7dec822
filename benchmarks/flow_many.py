"""Rollouts of many molecules as one batch beside the same one by one: strides of a molecule per CPU second."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from _common import make_parser, parse, print_table, write_json

from egnn_md.chemistry.units import BOLTZMANN
from egnn_md.dynamics.ase_flow import FlowDynamics, load_flow
from egnn_md.dynamics.flow_many import ManyStrides


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    from ase.build import molecule

    parser = make_parser(__doc__ or "", data=False)
    parser.add_argument("--flow", default="organics-flow", help="shipped name or path of a flow map")
    parser.add_argument("--molecule", nargs="+", default=["CH3CH2OH", "CH3COOH", "C6H6"], help="names of ase.build")
    parser.add_argument("--copies", type=int, default=64)
    parser.add_argument("--stride", type=float, default=10.0, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--rounds", type=int, default=20, help="strides of the batch, and of one molecule")
    options = parse(parser, arguments)
    flow, rows, result = load_flow(options.flow), [], {}
    for name in options.molecule:
        atoms = molecule(name)
        width = np.sqrt(BOLTZMANN * options.temperature * atoms.get_masses())[:, None]
        atoms.set_momenta(width * np.random.default_rng(0).standard_normal((len(atoms), 3)))
        thermostat = {"temperature_K": options.temperature}
        many = ManyStrides([atoms] * options.copies, flow, options.stride, **thermostat)
        alone = FlowDynamics(atoms.copy(), flow, options.stride, rng=0, **thermostat)
        spent: dict[str, list[float]] = {"many": [], "alone": []}
        for count in range(options.rounds + 2):
            for key, step in (("many", lambda: many.run(1)), ("alone", alone.step)):  # noqa: B023
                began = time.process_time()
                step()
                if count >= 2:
                    spent[key].append(time.process_time() - began)
        batch, single = (1e3 * float(np.median(spent[key])) for key in ("many", "alone"))
        result[name] = {"batch_ms": batch, "single_ms": single, "ratio": options.copies * single / batch}
        rows.append([name, len(atoms), *result[name].values()])
    columns = ["molecule", "atoms", f"stride of {options.copies}, ms", "one stride, ms", "times faster"]
    print_table(f"{options.copies} copies as one batch", columns, rows)
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
