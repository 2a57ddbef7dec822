"""What batches buy: relaxations and dynamics of many molecules at once beside one by one through ase, in CPU time.

Relaxations start from QM9 geometries rattled by Gaussian noise; ase's BFGS relaxes the first --one-by-one of them. Two
minima are the same if no distance within the molecule differs by more than 0.01 Å. At 0.01 eV/Å soft torsions are not
that well defined: what differs is relaxed on from both ends, to 2e-5 eV/Å in float64 and outside the times, and
compared again (`same_minimum`; `as_near` is before that). Dynamics: copies of one molecule against one, NVE.

One by one is measured twice with --compile: as `EGNNCalculator(MODEL)` comes, and with compiled force calls in the
precision of the batch. Without --compile neither side has compiled calls.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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

from egnn_md.compiled.forces import use_compiled
from egnn_md.dynamics.batched import Batch, run
from egnn_md.dynamics.batched_relax import relax_batched
from egnn_md.models.potential import Potential

if TYPE_CHECKING:
    from ase import Atoms


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--molecules", type=int, default=1000)
    parser.add_argument("--one-by-one", type=int, default=50)
    parser.add_argument("--rattle", type=float, default=0.05, help="Å")
    parser.add_argument("--fmax", type=float, default=0.01, help="eV/Å")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of the batches")
    parser.add_argument("--copies", type=int, default=64)
    parser.add_argument("--atoms", type=int, default=20, help="of the molecule of the dynamics")
    parser.add_argument("--steps", type=int, default=200, help="of the dynamics")
    parser.add_argument("--compile", action="store_true", help="also with compiled force calls, made if need be")
    options = parse(parser, arguments)
    rng = np.random.default_rng(0)
    fractions, elements = split_fractions(options.model), model_elements(options.model)
    starts = [m.atoms() for m in untrained_molecules(options.data, fractions, elements, options.molecules)]
    copied = min(starts, key=lambda atoms: abs(len(atoms) - options.atoms)).copy()
    for atoms in starts:
        atoms.positions += options.rattle * rng.normal(size=atoms.positions.shape)
    model = load_potential(options.model, options.dtype)
    if options.compile:
        use_compiled(model, True)
    singles = {"eager": calculator(options.model, "float64")}
    if options.compile:
        singles["compiled"] = calculator(options.model, options.dtype, compiled=True)
    result = relaxations(model, starts, singles, options.one_by_one, options.fmax)
    singles["eager"] = calculator(options.model, options.dtype)
    result |= dynamics(model, copied, singles, options.copies, options.steps)
    print_table("Many at once beside one by one", ("", ""), list(result.items()))
    write_json(options.json, result)
    return result


def relaxations(
    model: Potential, starts: list[Atoms], singles: dict[str, Any], one_by_one: int, fmax: float
) -> dict[str, Any]:
    """All in batches, some of them one by one with each calculator of `singles`."""
    from ase.optimize import BFGS

    exact = singles["eager"]

    def relaxed_on(atoms: Atoms) -> Atoms:
        moved = atoms.copy()
        moved.calc = exact
        BFGS(moved, logfile=None).run(fmax=2e-5, steps=1000)
        return moved

    began = time.process_time()
    ends = dict(relax_batched(model, starts, fmax))
    together = (time.process_time() - began) / len(starts)
    found = {"relaxations_per_cpu_second": 1.0 / together}
    for name, ours in singles.items():
        near, alike, steps, alone = 0, 0, [], 0.0
        for k, start in enumerate(starts[:one_by_one]):
            atoms = start.copy()
            atoms.calc = ours
            began = time.process_time()
            optimizer = BFGS(atoms, logfile=None)
            optimizer.run(fmax=fmax, steps=500)
            alone += time.process_time() - began
            steps.append(optimizer.nsteps)
            other = start.copy()
            other.positions = ends[k].positions
            near += same_distances(atoms, other)
            alike += same_distances(atoms, other) or same_distances(relaxed_on(atoms), relaxed_on(other))
        found |= {
            f"relaxation_factor_{name}": alone / len(steps) / together,
            f"mean_steps_ase_{name}": float(np.mean(steps)),
            f"as_near_{name}": near / len(steps),
            f"same_minimum_{name}": alike / len(steps),
        }
    found["mean_steps"] = float(np.mean([end.steps for end in ends.values()]))
    found["converged"] = sum(end.converged for end in ends.values()) / len(ends)
    return found


def same_distances(one: Atoms, other: Atoms) -> bool:
    """Whether all distances agree to 0.01 Å."""
    return float(np.abs(one.get_all_distances() - other.get_all_distances()).max()) < 0.01


def dynamics(model: Potential, molecule: Atoms, singles: dict[str, Any], copies: int, steps: int) -> dict[str, Any]:
    """A step of one of many copies, and of one molecule with each calculator of `singles`."""
    from ase import units
    from ase.md.verlet import VelocityVerlet

    batch = Batch(model, [molecule] * copies)
    state = batch.start(torch.full((copies,), 300.0), torch.Generator().manual_seed(0))
    began = time.process_time()
    run(batch, state, steps, 0.5)
    together = (time.process_time() - began) / (steps * copies)
    found = {"md_atoms": len(molecule), "md_ms_per_step_of_a_copy": 1e3 * together}
    for name, ours in singles.items():
        atoms = molecule.copy()
        atoms.set_velocities(state.velocities[: len(atoms)].numpy())
        atoms.calc = ours
        one = VelocityVerlet(atoms, 0.5 * units.fs)
        began = time.process_time()
        one.run(steps)
        found[f"md_factor_{name}"] = (time.process_time() - began) / steps / together
    return found


if __name__ == "__main__":
    main()
