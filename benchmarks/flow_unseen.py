"""A flow map on molecules that it never saw: strides accepted, and the temperature of each element and kind of motion.

Molecules of a list of SMILES (`held_out.smi` of recipes/flow_frames.py), side by side; those that the map refuses are
counted. Errors of temperatures are of the mean over molecules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from _common import make_parser, parse, print_table, write_json

from egnn_md.data.frames import DataError
from egnn_md.data.structure_files import as_atoms, read_structures
from egnn_md.dynamics.ase_flow import load_flow
from egnn_md.dynamics.flow_many import ManyStrides
from egnn_md.dynamics.flow_worker import refusal
from egnn_md.dynamics.motion import by_element, by_motion

AT_ONCE = 25


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__ or "", data=False)
    parser.add_argument("molecules", type=Path, help="SMILES, a line each (.smi)")
    parser.add_argument("--flow", required=True, help="shipped name or path of a flow map")
    parser.add_argument("--stride", type=float, default=10.0, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--equilibration", type=float, default=2.0, help="ps")
    parser.add_argument("--ps", type=float, default=10.0, help="of each molecule, after the equilibration")
    parser.add_argument("--most", type=int, default=100, help="molecules")
    options = parse(parser, arguments)
    flow = load_flow(options.flow)
    items = [item for _, item in islice(read_structures(options.molecules), options.most)]
    read = [as_atoms(item) for item in items if not isinstance(item, DataError)]
    sound = [atoms for atoms in read if not refusal(flow, atoms)]
    accepted: list[float] = []
    kelvin: dict[str, list[float]] = defaultdict(list)
    steps, before = (round(1e3 * ps / options.stride) for ps in (options.ps, options.equilibration))
    for start in range(0, len(sound), AT_ONCE):
        part = sound[start : start + AT_ONCE]
        many = ManyStrides(part, flow, options.stride, temperature_K=options.temperature, seed=start)
        many.run(before)
        many.accepted.zero_()
        found: list[dict[str, list[float]]] = [defaultdict(list) for _ in part]
        for _ in range(0, steps, 10):
            many.run(10)
            for atoms, values in zip(many.frames(), found, strict=True):
                state = (atoms.get_masses(), atoms.positions, atoms.get_momenta())
                kinds = by_motion(*state) | by_element(atoms.numbers, *state)
                for name, value in kinds.items():
                    values[name].append(value)
        accepted += (many.accepted.double() / (many.n_steps - before)).tolist()
        for values in found:
            for name, of_molecule in values.items():
                kelvin[name].append(float(np.mean(of_molecule)))
    quartiles = [float(q) for q in np.percentile(accepted, (0, 25, 50, 75))] if accepted else []
    result: dict[str, Any] = {"molecules": len(read), "refused": len(read) - len(sound), "accepted": quartiles}
    result["temperature_K"] = {name: float(np.mean(values)) for name, values in kelvin.items()}
    print_table(
        f"strides of {options.stride:g} fs accepted",
        ["molecules", "refused", "least", "quarter", "median", "three quarters"],
        [[result["molecules"], result["refused"], *quartiles]],
    )
    rows = [[name, np.mean(of), np.std(of) / len(of) ** 0.5, len(of)] for name, of in sorted(kelvin.items())]
    print_table("temperature / K", ["of", "mean", "±", "molecules"], rows)
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
