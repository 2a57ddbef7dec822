"""`egnn-md predict`: properties of every structure in a file, as a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from egnn_md.cli.jobs import (
    Batch,
    Executor,
    Shard,
    Workers,
    chunk_size,
    fingerprint,
    model_spec,
    parse_batch,
    parse_shard,
)
from egnn_md.cli.options import Json, Overwrite, Threads, check_device, parse_dtype, set_threads
from egnn_md.cli.outcome import Outcome, UserError, progress_bar, say, verb

if TYPE_CHECKING:
    from egnn_md.jobs.chunks import Counts
    from egnn_md.jobs.source import Item

Progress = Callable[[int, int | None], None]
PREDICTED_AT_ONCE, RELAXED_AT_ONCE = 4096, 256
"""Structures of a chunk."""
MOST_SAID = 20
"""Skipped structures that are named at the end; the table has all."""


@verb
def predict(
    file: Annotated[
        str,
        typer.Argument(
            help="Structures: xyz, sdf, smi, npz, or anything else ase reads; or one, as a SMILES or a name (CH3CH2OH)."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Table to write: .csv, .jsonl or .extxyz.")],
    model: Annotated[str, typer.Option(help="A shipped model's name, or a checkpoint.")] = "qm9",
    relax: Annotated[
        bool, typer.Option("--relax", help="Relax each structure first: the properties are those of minima.")
    ] = False,
    potential: Annotated[str, typer.Option(help="A potential to relax with.")] = "organic-xtb",
    fmax: Annotated[float, typer.Option(help="Relaxed when no force is larger, eV/Å.")] = 0.01,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on past bad structures: their rows say why.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what was interrupted; the same command does so without it.")
    ] = False,
    overwrite: Overwrite = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    workers: Workers = 1,
    shard: Shard = None,
    executor: Executor = "process",
    chunk: Annotated[
        int | None,
        typer.Option(help="Structures handed to a worker at once.", show_default="4096; 256 with --relax"),
    ] = None,
    batch: Batch = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> Outcome:
    """Predict the properties of every structure in a file.

    A row of the table has the structure's index (from 0), the name and SMILES that the file gives it, its formula, each
    property with its unit in the column's name (energies in eV) and its expected absolute error, and `extrapolation`:
    above 1.5 the geometry is unlike the training data and `flag` says so. Structures are read one after another: the
    file may be of any length. Bad ones (unreadable, empty, charged, periodic, elements that the model does not know)
    stop the work; with --skip-bad they have a row that says why. A page to look at, with molecules and distributions,
    is left beside the table.

    --workers processes share the work, or --shard i/n of many machines; rows come in the file's order. The same command
    goes on after a kill: nothing is lost, nothing is done twice.

    Give minima, or --relax: geometries from elsewhere, from SMILES too, are moved to minima of --potential. `flag` says
    which did not converge, and which bonds broke or formed on the way.

    Example:  egnn-md predict molecules.smi --relax -o properties.csv

    or        egnn-md predict minima.xyz -o properties.csv --workers 8
    """
    set_threads(threads)
    check_device(device)
    parse_dtype(dtype)
    at_once, part = parse_batch(batch), parse_shard(shard)
    if resume and overwrite:
        raise UserError("--resume and --overwrite contradict each other")
    if output.exists() and Path(file).exists() and output.samefile(file):
        raise UserError(f"{output} is the file of the structures: choose another name for the table")
    if not fmax > 0:
        raise UserError(f"--fmax must be above 0 eV/Å, not {fmax}")
    if resume and output.exists():
        raise UserError(f"{output} is finished: nothing to resume; --overwrite begins anew")
    from egnn_md.checkpoint import read_header, resolve
    from egnn_md.data.tables import FORMATS, head_of
    from egnn_md.dynamics.property_rows import PropertyWorker, columns_of
    from egnn_md.evaluation.figures import without_failing
    from egnn_md.jobs.chunks import Job
    from egnn_md.jobs.executors import make_executor
    from egnn_md.report.predictions import predictions_page
    from egnn_md.storage import sha256

    if output.suffix not in FORMATS:
        raise UserError(f"-o {output}: the name must end in {', '.join(FORMATS)}")
    spec = model_spec(model, device, dtype, kind="property")
    first = model_spec(potential, device, dtype, option="--potential ") if relax else None
    worker = PropertyWorker(spec, output.suffix, skip_bad, first, fmax, at_once)
    columns = columns_of(tuple(read_header(model)["config"]["targets"]), relax)
    work: dict[str, Any] = {"verb": "predict", "model": sha256(resolve(model)), "dtype": dtype, "columns": columns}
    work |= {"input": fingerprint(Path(file))} if Path(file).exists() else {"text": file}
    work |= {"potential": sha256(resolve(potential)), "fmax": fmax} if relax else {}
    usual = RELAXED_AT_ONCE if relax else PREDICTED_AT_ONCE
    items, size = _items(file), chunk_size(usual if chunk is None else chunk, at_once)
    found = _Found(output, columns)
    with make_executor(executor, workers) as pool, progress_bar("predicting") as progress:
        options: dict[str, Any] = {"shard": part, "overwrite": overwrite, "head": head_of(output.suffix, columns)}
        job = Job(output, worker, work, size=size, note=found.note, **options)
        counts = job.run(items, pool, workers, found.counting(progress))
    values = found.summary(counts)
    page = output.with_name(f"{output.stem}-report.html")
    if counts.finished:
        with without_failing(str(page)):
            predictions_page(found.collected, Path(file).name, model, values).write(page)
            values["report"] = str(page)
    return Outcome(values, lambda: print(_text(values)), as_json)


def _items(file: str) -> Iterator[Item]:
    """The structures of a file, or the one that a name or a SMILES says.

    Raises DataError for a file that cannot be read, StructureError for what is neither.
    """
    from egnn_md.jobs.source import read_molecules

    if Path(file).exists():
        return read_molecules(Path(file))
    from egnn_md.chemistry.structures import structure_of
    from egnn_md.dynamics.starting_structures import read_structure

    return iter([replace(structure_of(read_structure(file)), name=file)])


class _Found:
    """What is told of a table in the end."""

    def __init__(self, output: Path, columns: Sequence[str]) -> None:
        from egnn_md.report.predictions import Collected

        self.output, self.start, self.n_now, self.n_flagged, self.n_said = output, time.monotonic(), 0, 0, 0
        self.collected = Collected([name for name in columns if f"{name}_uncertainty" in columns])

    def counting(self, progress: Progress) -> Progress:
        """`progress`, with the structures of this run counted on the way."""

        def count(done: int, total: int | None) -> None:
            self.n_now = done
            progress(done, total)

        return count

    def note(self, record: Mapping[str, Any]) -> None:
        """A record of the finished table; see `Job`."""
        from egnn_md.chemistry.structures import Structure

        row = record["row"]
        self.n_flagged += bool(row["flag"]) and not record["failed"]
        if record["failed"] and self.n_said < MOST_SAID:
            say(f"structure {record['index']} skipped: {row['reason']}")
            self.n_said += 1
        if "extrapolation" in row:
            shown = "positions" in row
            self.collected.note(row, Structure(row["numbers"], row["positions"]) if shown else None)
        elif record["failed"]:
            self.collected.note(row, None)

    def summary(self, counts: Counts) -> dict[str, Any]:
        seconds = time.monotonic() - self.start
        return {
            "output": str(self.output),
            "n": counts.done,
            "n_skipped": counts.failed,
            "n_flagged": self.n_flagged if counts.finished else None,
            "seconds": round(seconds, 3),
            "structures_per_second": round(self.n_now / max(seconds, 1e-9), 1),
            "finished": counts.finished,
        }


def _text(values: dict[str, Any]) -> str:
    done = f"{values['n']} structures, {values['n_skipped']} skipped"
    rate = f"{values['structures_per_second']:g} a second"
    if not values["finished"]:
        return f"{values['output']}.parts: {done} so far; {rate}; other shards go on"
    look = f"; open {values['report']}" if "report" in values else ""
    return f"{values['output']}: {done}, {values['n_flagged']} flagged; {rate}{look}"
