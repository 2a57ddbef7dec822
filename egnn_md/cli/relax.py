"""`egnn-md relax`: structures to their nearest minima."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from egnn_md.cli.jobs import Batch, Executor, Shard, Workers, chunk_size, model_spec, parse_batch, run_job, several
from egnn_md.cli.options import Json, Overwrite, Threads, make_calculator, set_threads
from egnn_md.cli.outcome import Outcome, UserError, say, shows_progress, verb

if TYPE_CHECKING:
    from ase import Atoms

    from egnn_md.dynamics.bond_changes import BondChanges
    from egnn_md.dynamics.many import RelaxWorker
    from egnn_md.dynamics.relax import Relaxation


@verb
def relax(
    structure: Annotated[str, typer.Argument(help="A file that ase reads, a molecule's name (CH3CH2OH) or a SMILES.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to write it; the ending decides the format.",
            show_default="STRUCTURE-relaxed.extxyz",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="A shipped model's name, or a checkpoint.")] = "organic-xtb",
    fmax: Annotated[float, typer.Option(help="Stop when no force is larger, eV/Å.")] = 0.01,
    steps: Annotated[int, typer.Option(help="Stop after this many steps.")] = 1000,
    optimizer: Annotated[str, typer.Option(help="auto, bfgs, lbfgs or fire.")] = "auto",
    cell: Annotated[bool, typer.Option("--cell", help="Relax the cell too (periodic in three directions).")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[
        str | None, typer.Option(help="float64 or float32.", show_default="float64; float32 for many")
    ] = None,
    workers: Workers = 1,
    shard: Shard = None,
    executor: Executor = "process",
    chunk: Annotated[int, typer.Option(help="Of many: structures handed to a worker at once.")] = 256,
    batch: Batch = "auto",
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> Outcome:
    """Move structures to the nearest minima of their potential energy.

    A file of many structures is relaxed in batches, by --workers processes: the results come in the file's order, and
    OUTPUT.csv has a line for each. The same command goes on after a kill. FILE@-1 takes the last structure alone.

    Example:  egnn-md relax molecule.xyz -o relaxed.xyz --fmax 0.001

    and       egnn-md relax molecules.xyz -o relaxed.extxyz --workers 8
    """
    from egnn_md.dynamics import relax as engine
    from egnn_md.dynamics.bond_changes import bond_changes
    from egnn_md.dynamics.many import RelaxWorker
    from egnn_md.dynamics.starting_structures import read_structure
    from egnn_md.evaluation.figures import without_failing
    from egnn_md.report.relaxations import Way, relaxation_page
    from egnn_md.storage import Hold

    if several(structure):
        if cell or optimizer != "auto":
            raise UserError("--cell and --optimizer are for one structure: FILE@0 takes the first")
        target = output or Path(f"{Path(structure).stem}-relaxed.extxyz")
        set_threads(threads)
        spec = model_spec(model, device, dtype or "float32")
        at_once = parse_batch(batch)
        options = {"workers": workers, "shard": shard, "executor": executor, "overwrite": overwrite}
        options["size"] = chunk_size(chunk, at_once)
        return _many(Path(structure), target, RelaxWorker(spec, fmax, steps, at_once), options, as_json)
    target = output or Path(f"{Path(structure.rsplit('@', 1)[0]).stem}-relaxed.extxyz")
    file_format = _output_format(target, overwrite)
    set_threads(threads)
    atoms = read_structure(structure)
    atoms.calc = make_calculator(model, device, dtype or "float64")
    start, way, page = atoms.copy(), Way(atoms), target.with_name(f"{target.stem}-report.html")

    def note(step: int, energy: float, largest: float) -> None:
        way.note(step, energy, largest)
        tell(step, energy, largest)

    with Hold(target):
        with _progress() as tell:
            result = engine.relax(atoms, fmax, steps, optimizer, cell, note)  # type: ignore[arg-type]
        _write(atoms, target, file_format)
        with without_failing(str(page)):
            relaxation_page(way, result, start, structure, model).write(page)
    if not result.converged:
        say(f"not converged after {result.steps} steps: the largest force is {result.fmax:.4f} eV/Å; --steps for more")
    values = {**dataclasses.asdict(result), "output": str(target), "model": model, "n_atoms": len(atoms)}
    drawn = page.exists()
    values["report"] = str(page) if drawn else None
    changes = bond_changes(start, atoms)
    if changes is not None:
        values |= {"bonds_broken": changes.broken, "bonds_formed": changes.formed}
    code = 0 if result.converged else 1
    return Outcome(values, lambda: _show(result, changes, target, page if drawn else None), as_json, code)


def _many(file: Path, target: Path, worker: RelaxWorker, options: dict[str, Any], as_json: bool) -> Outcome:
    from egnn_md.cli.md import identity

    fmax, steps, spec = worker.fmax, worker.steps, worker.spec
    if not fmax > 0 or steps < 0:
        raise UserError(f"--fmax must be above 0 eV/Å and --steps not negative, not {fmax} and {steps}")
    if target.suffix not in (".xyz", ".extxyz"):
        raise UserError(f"-o {target}: many structures are written as .extxyz")
    work = {"verb": "relax", "fmax": fmax, "steps": steps, "dtype": spec.dtype}
    work |= {"model_sha256": identity(spec.model)["model_sha256"]}
    return run_job(file, target, worker, work, text="relaxing", as_json=as_json, **options)


def _output_format(path: Path, overwrite: bool) -> str:
    """ase's name of the format. Raises UserError if the file could not be written, before anything is computed."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    if path.is_dir():
        raise UserError(f"{path} is a folder: give --output a file name")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already: --overwrite replaces it, -o names another")
    if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise UserError(f"the folder of {path} does not exist or cannot be written")
    try:
        name = str(filetype(str(path), read=False))
        writable = ioformats[name].can_write
    except (UnknownFileTypeError, KeyError):
        writable = False
    if not writable:
        raise UserError(f"ase cannot write a file named {path.name}: use an ending such as .xyz, .extxyz, .cif or .pdb")
    return name


def _write(atoms: Atoms, path: Path, file_format: str) -> None:
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    from egnn_md.storage import write_whole

    results = {name: atoms.calc.results[name] for name in ("energy", "forces") if name in atoms.calc.results}
    copy = atoms.copy()
    copy.calc = SinglePointCalculator(copy, **results)
    with write_whole(path) as temporary:
        write(temporary, copy, format=file_format)


class _progress:  # noqa: N801
    """A line on a terminal that shows the step, the energy and the largest force."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.status = self.console.status("")

    def __enter__(self) -> Any:
        if not shows_progress():
            return lambda step, energy, fmax: None
        self.status.start()
        return lambda step, energy, fmax: self.status.update(f"step {step}  {energy:.5f} eV  fmax {fmax:.4f} eV/Å")

    def __exit__(self, *_: object) -> None:
        self.status.stop()


def _show(result: Relaxation, changes: BondChanges | None, path: Path, page: Path | None) -> None:
    end = "converged" if result.converged else "not converged"
    print(f"{end} after {result.steps} steps, largest force {result.fmax:.4f} eV/Å")
    print(f"energy {result.energy:.6f} eV, {result.energy - result.energy_start:+.6f} eV since the start")
    if changes:
        print(f"bonds: {changes}")
    if result.extrapolation is not None:
        print(f"extrapolation {result.extrapolation:.2f} (above 1 the structure is unlike the training data)")
    print(f"wrote {path}" + (f"; open {page}" if page is not None else ""))
