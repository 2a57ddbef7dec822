"""`egnn-md label`: structures in, a teacher's labels out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from egnn_md.cli.jobs import Executor, Shard, Workers, run_job
from egnn_md.cli.options import Json, Overwrite
from egnn_md.cli.outcome import Outcome, UserError, verb

Option = typer.Option


@verb
def label(
    teacher: Annotated[str, typer.Argument(help="gfn2-xtb, or module:callable that returns an ASE calculator.")],
    file: Annotated[Path, typer.Argument(help="Structures: extxyz, xyz, npz, or anything ase reads.")],
    output: Annotated[Path, Option("--output", "-o", help="Labelled structures, .extxyz.")],
    options: Annotated[
        list[str] | None, Option("--with", metavar="KEY=VALUE", help="Arguments of the callable.", show_default=False)
    ] = None,
    workers: Workers = 1,
    shard: Shard = None,
    executor: Executor = "process",
    chunk: Annotated[int, Option(help="Structures handed to a worker at once.")] = 16,
    max_force: Annotated[float, Option(help="Larger forces (eV/Å) are set aside as absurd.")] = 50.0,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> Outcome:
    """Label structures with a teacher: energy, forces, stress where periodic, charges and dipole where it has them.

    The labels come in the file's order; OUTPUT.csv has a line for each structure, and why those failed that did: they
    are left out of OUTPUT. The same command goes on after a kill: nothing is labelled twice.

    Example:  egnn-md label gfn2-xtb frames.extxyz -o labelled.extxyz --workers 8

    or with   egnn-md label mace.calculators:mace_off --with model=small frames.extxyz -o labelled.extxyz
    """
    from egnn_md.distill.label import LabelWorker
    from egnn_md.distill.teacher import Teacher

    if output.suffix not in (".extxyz", ".xyz"):
        raise UserError(f"-o {output}: labels are written as .extxyz")
    if not max_force > 0:
        raise UserError(f"--max-force must be above 0 eV/Å, not {max_force}")
    chosen = Teacher.parse(teacher, options or [])
    chosen.open()  # refused here, not in a worker
    worker = LabelWorker(chosen, max_force)
    work = {"verb": "label", **chosen.identity(), "max_force": max_force}
    return run_job(
        file,
        output,
        worker,
        work,
        size=chunk,
        workers=workers,
        shard=shard,
        executor=executor,
        overwrite=overwrite,
        text="labelling",
        as_json=as_json,
    )
