"""What batches buy: relaxations and dynamics of many molecules at once beside one by one through ase, in CPU time.

Relaxations start from QM9 geometries rattled by Gaussian noise; ase's BFGS relaxes the first --one-by-one of them. Two
minima are the same if no distance within the molecule differs by more than 0.01 Å: at 0.01 eV/Å soft torsions are not
that well defined, so compare them with --fmax 0.001. Dynamics: 64 copies of one molecule against one, NVE.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from _common import (
    calculator,
    load_potential,
    make_parser,
    model_elements,
    parse,
    print_table,
    split_fractions,
    untrained_molecules,
    write_json,
)

from egnn_md.dynamics.batched import Batch, run
from egnn_md.dynamics.batched_relax import relax_batched


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--molecules", type=int, default=1000)
    parser.add_argument("--one-by-one", type=int, default=50)
    parser.add_argument("--rattle", type=float, default=0.05, help="Å")
    parser.add_argument("--fmax", type=float, default=0.01, help="eV/Å")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--copies", type=int, default=64)
    parser.add_argument("--steps", type=int, default=200, help="of the dynamics")
    options = parse(parser, arguments)
    from ase import units
    from ase.md.verlet import VelocityVerlet
    from ase.optimize import BFGS

    rng = np.random.default_rng(0)
    fractions, elements = split_fractions(options.model), model_elements(options.model)
    starts = [m.atoms() for m in untrained_molecules(options.data, fractions, elements, options.molecules)]
    for atoms in starts:
        atoms.positions += options.rattle * rng.normal(size=atoms.positions.shape)
    model = load_potential(options.model, options.dtype)
    began = time.process_time()
    ends = dict(relax_batched(model, starts, options.fmax))
    together = (time.process_time() - began) / len(starts)
    ours, alike, steps = calculator(options.model, "float64"), 0, []
    began = time.process_time()
    singles = [atoms.copy() for atoms in starts[: options.one_by_one]]
    for atoms in singles:
        atoms.calc = ours
        optimizer = BFGS(atoms, logfile=None)
        optimizer.run(fmax=options.fmax, steps=500)
        steps.append(optimizer.nsteps)
    alone = (time.process_time() - began) / len(singles)
    for k, atoms in enumerate(singles):
        moved = starts[k].copy()
        moved.positions = ends[k].positions
        alike += float(np.abs(moved.get_all_distances() - atoms.get_all_distances()).max()) < 0.01
    largest = max(starts, key=len)
    batch = Batch(model, [largest] * options.copies)
    state = batch.start(torch.full((options.copies,), 300.0), torch.Generator().manual_seed(0))
    began = time.process_time()
    run(batch, state, options.steps, 0.5)
    copies = (time.process_time() - began) / (options.steps * options.copies)
    largest.calc = calculator(options.model, options.dtype)
    dynamics = VelocityVerlet(largest, 0.5 * units.fs)
    began = time.process_time()
    dynamics.run(options.steps)
    one = (time.process_time() - began) / options.steps
    result = {
        "relaxations_per_cpu_second": 1.0 / together,
        "relaxation_factor": alone / together,
        "mean_steps": float(np.mean([end.steps for end in ends.values()])),
        "mean_steps_ase": float(np.mean(steps)),
        "converged": sum(end.converged for end in ends.values()) / len(ends),
        "same_minimum": alike / len(singles),
        "md_factor": one / copies,
        "md_atoms": len(largest),
    }
    print_table("Many at once beside one by one", ("", ""), list(result.items()))
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
