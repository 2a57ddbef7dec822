"""What a distilled potential is worth where its own dynamics did not choose the frames: on those of its teacher.

The teacher's own Langevin dynamics (1 fs, --runs trajectories from conformers, frames 50 fs apart after the first
picosecond) is made once for each temperature and kept in --frames; no distillation sees it. Force errors of each model
on it, by temperature. Then --copies of the molecule for --ps at each temperature with each model: which bonds broke or
formed, and whether the teacher, relaxing the broken structure, has the bonds of the beginning again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _common import make_parser, parse, print_table, write_json

from egnn_md.compiled.forces import use_compiled
from egnn_md.distill.start import read_molecules, read_own
from egnn_md.distill.student import load_student, measure
from egnn_md.distill.teacher import Teacher
from egnn_md.dynamics.batched import Batch, State, Thermostat, run
from egnn_md.dynamics.bonds import BondWatch
from egnn_md.storage import write_whole

if TYPE_CHECKING:
    from ase import Atoms

FRICTION = 10.0
"""1/ps, of the students' dynamics."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__ or "", data=False, model=None)
    parser.add_argument("models", nargs="+", help="shipped names or checkpoints")
    parser.add_argument("--molecule", required=True, help="SMILES or a file")
    parser.add_argument("--frames", type=Path, required=True, help="extxyz: the teacher's frames, made if need be")
    parser.add_argument("--teacher", default="gfn2-xtb")
    parser.add_argument("--temperature", type=float, nargs="+", default=[300.0, 500.0], help="K")
    parser.add_argument("--runs", type=int, default=4, help="trajectories of the teacher for each temperature")
    parser.add_argument("--teacher-ps", type=float, default=5.0, help="of each, after the first picosecond")
    parser.add_argument("--copies", type=int, default=20)
    parser.add_argument("--ps", type=float, default=50.0, help="of the copies; 0: errors alone")
    parser.add_argument("--timestep", type=float, default=1.0, help="fs, of the copies")
    parser.add_argument("--seed", type=int, default=2000)
    options = parse(parser, arguments)
    starts = read_molecules([options.molecule], options.seed)
    teacher = Teacher.parse(options.teacher, []).open()
    if not options.frames.exists():
        found = [
            atoms
            for temperature in options.temperature
            for k in range(options.runs)
            for atoms in of_teacher(teacher, starts[k % len(starts)], temperature, options.teacher_ps, options.seed + k)
        ]
        import ase.io

        with write_whole(options.frames) as temporary:
            ase.io.write(temporary, found, format="extxyz")
    frames, result = read_own(options.frames), dict[str, Any]()
    for model in options.models:
        errors = measure(model, frames)["by"]["temperature"]
        rows = {
            f"{tag}: {name} meV/Å": row[name] for tag, row in errors.items() for name in ("force_mae", "force_rmse")
        }
        for temperature in options.temperature if options.ps > 0 else []:
            steps = round(1e3 * options.ps / options.timestep)
            broken = stability(
                model, starts, options.copies, temperature, steps, options.timestep, options.seed, teacher
            )
            print(f"{model}, {temperature:g} K: {broken}", flush=True)
            rows |= {
                f"{temperature:g} K, {options.copies} copies, {options.ps:g} ps: {k}": v for k, v in broken.items()
            }
        print_table(model, ("", ""), list(rows.items()))
        result[model] = rows
    write_json(options.json, result)
    return result


def of_teacher(calculate: Any, start: Atoms, temperature: float, picoseconds: float, seed: int) -> list[Atoms]:
    """Labelled frames of the teacher's dynamics."""
    from ase import units
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.md.langevin import Langevin

    atoms, rng, frames = start.copy(), np.random.default_rng(seed), list[Any]()
    atoms.calc = calculate(atoms)
    width = np.sqrt(units.kB * temperature * atoms.get_masses())[:, None]
    atoms.set_momenta(width * rng.normal(size=(len(atoms), 3)))
    dynamics = Langevin(
        atoms, 1.0 * units.fs, temperature_K=temperature, friction=0.01 / units.fs, fixcm=False, rng=rng
    )
    dynamics.run(1000)
    for _ in range(round(picoseconds * 20)):
        dynamics.run(50)
        kept = atoms.copy()
        kept.calc = SinglePointCalculator(kept, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
        kept.info["tag"] = f"{temperature:g} K"
        frames.append(kept)
    return frames


def stability(
    name: str,
    starts: list[Atoms],
    copies: int,
    temperature: float,
    steps: int,
    timestep: float,
    seed: int,
    teacher: Any,
) -> dict[str, Any]:
    """Copies with another bond graph than at the start, and those of them that the teacher takes back to it."""
    model = load_student(name)
    use_compiled(model, "auto")
    structures = [starts[k % len(starts)].copy() for k in range(copies)]
    batch = Batch(model, structures)
    watch = BondWatch(batch.positions, batch.atomic_numbers, batch.n_atoms)
    broken: dict[int, Atoms] = {}
    generator = torch.Generator().manual_seed(seed)
    thermostat = Thermostat(torch.full((copies,), temperature), FRICTION, generator)
    ends = batch.n_atoms.cumsum(0).tolist()

    def observe(step: int, state: State) -> None:
        watch.look(1e-3 * timestep * step, state.positions)
        for k in watch.first.keys() - broken.keys():
            broken[k] = structures[k].copy()
            broken[k].positions = state.positions[ends[k] - len(structures[k]) : ends[k]].numpy()

    run(
        batch,
        batch.start(thermostat.temperature, generator),
        steps,
        timestep,
        thermostat=thermostat,
        every=20,
        observe=observe,
    )
    kept = sum(_taken_back(structures[k], atoms, teacher) for k, atoms in broken.items())
    return {
        "changed bonds": len(broken),
        "of these the teacher keeps": kept,
        "what": "; ".join(f"{what} at {when:.2f} ps" for when, what in watch.first.values()) or "nothing",
    }


def _taken_back(start: Atoms, broken: Atoms, teacher: Any) -> bool:
    """Whether the broken structure, relaxed by the teacher, has the bonds of the start."""
    from ase.optimize import BFGS

    if not np.isfinite(broken.positions).all():
        return True
    numbers, count = torch.from_numpy(np.asarray(start.numbers, np.int64)), torch.tensor([len(start)])
    watch = BondWatch(torch.from_numpy(start.positions), numbers, count)
    broken.calc = teacher(broken)
    BFGS(broken, logfile=None).run(fmax=0.05, steps=300)
    watch.look(0.0, torch.from_numpy(broken.positions))
    return not watch.first


if __name__ == "__main__":
    main()
