"""`egnn-md predict`: properties of every structure in a file, as a table."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from egnn_md.cli.options import Json, Overwrite, Threads, check_device, parse_dtype, set_threads
from egnn_md.cli.outcome import Outcome, UserError, progress_bar, say, verb

if TYPE_CHECKING:
    from torch import Tensor

    from egnn_md.chemistry.structures import Structure
    from egnn_md.data.tables import Table
    from egnn_md.models.property import PropertyModel

FAR_AWAY = "far from the training data"


@verb
def predict(
    file: Annotated[Path, typer.Argument(help="Structures: xyz, extxyz, sdf, npz, or anything else ase reads.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Table to write: .csv, .jsonl or .extxyz.")],
    model: Annotated[str, typer.Option(help="A shipped model's name, or a checkpoint.")] = "qm9",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave bad structures out.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an output that was interrupted.")] = False,
    overwrite: Overwrite = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    threads: Threads = None,
    as_json: Json = False,
) -> Outcome:
    """Predict the properties of every structure in a file.

    A row of the table has the structure's index (from 0), its formula, each property with the expected absolute error
    and the unit, and `extrapolation`: above 1.5 the geometry is unlike the training data and `flag` says so. Structures
    are read one after another: the file may be of any length. Bad ones (unreadable, empty, charged, periodic, elements
    that the model does not know) stop the work, unless --skip-bad. Work that was stopped goes on with --resume.

    Example:  egnn-md predict molecules.xyz -o properties.csv
    """
    set_threads(threads)
    check_device(device)
    precision = parse_dtype(dtype)
    if resume and overwrite:
        raise UserError("--resume and --overwrite contradict each other")
    if output.exists() and file.exists() and output.samefile(file):
        raise UserError(f"{output} is the file of the structures: choose another name for the table")
    from egnn_md.checkpoint import load, resolve
    from egnn_md.data.stream import stream
    from egnn_md.data.tables import Table
    from egnn_md.models.property import PropertyModel

    network = load(model, device=device, dtype=precision)
    if not isinstance(network, PropertyModel):
        raise UserError(f"{model} is a {type(network).__name__}; predict needs a model of properties, such as qm9")
    structures = stream(file)  # refuses what cannot be read before anything is written
    names = network.config.targets
    columns = ["index", "formula"]
    columns += [f"{name}{end}" for name in names for end in ("", "_uncertainty", "_unit")]
    columns += ["extrapolation", "flag"]
    with resolve(model).open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    work = {"model": digest, "file": str(file.resolve()), "bytes": file.stat().st_size, "dtype": dtype}
    table = Table(output, columns, work, resume=resume, overwrite=overwrite)
    if table.next_index:
        structures = stream(file, table.next_index)
    run = _Run(network, table, skip_bad)
    try:
        run.all(structures)
    except BaseException:
        table.close()
        raise
    table.finish()
    values = {"output": str(output), **run.summary()}
    return Outcome(values, lambda: print(_text(values)), as_json)


class _Run:
    """One file's way through the model."""

    def __init__(self, model: PropertyModel, table: Table, skip_bad: bool) -> None:
        from egnn_md.chemistry.targets import unit_of

        self.model, self.table, self.skip_bad = model, table, skip_bad
        self.n_skipped = table.next_index - table.n_rows
        self.n_now, self.start = 0, time.monotonic()
        self.units = {f"{name}_unit": unit_of(name) for name in model.config.targets}
        self.failure: ValueError | None = None

    def all(self, items: Iterator[Any]) -> None:
        """Predict and write everything. Raises the problem of a bad structure, after all before it is written."""
        from egnn_md.chemistry.structures import batches

        self.indices: list[int] = []
        with progress_bar("predicting") as progress, ThreadPoolExecutor(1) as writer:
            written: Future[None] | None = None
            for batch in batches(self._sound(items)):
                taken, self.indices = self.indices[: len(batch)], self.indices[len(batch) :]
                columns = self.model.predict_batch(batch)  # while the rows of the batch before are written
                if written is not None:
                    written.result()
                    progress(self.table.n_rows, None)
                written = writer.submit(self._write, taken, batch, columns)
            if written is not None:
                written.result()
                progress(self.table.n_rows, None)
        if self.failure is not None:
            raise self.failure

    def _sound(self, items: Iterator[Any]) -> Iterator[Structure]:
        """The structures that can be predicted; ends at the first that cannot, unless they are to be skipped."""
        from egnn_md.data.frames import DataError

        while True:
            try:
                index, item = next(items)
            except StopIteration:
                return
            except DataError as error:  # the rest of the file is lost: keep what was before
                self.failure = error
                return
            problem = item if isinstance(item, DataError) else item.problem(self.model.config.elements)
            if problem is None:
                self.indices.append(index)
                yield item
            elif self.skip_bad:
                self.n_skipped += 1
                say(f"structure {index} skipped: {problem}")
            else:
                hint = "--skip-bad leaves such structures out, with --resume from here on"
                self.failure = UserError(f"structure {index} (counted from 0): {problem}; {hint}")
                return

    def _write(self, indices: list[int], batch: list[Structure], predicted: dict[str, Tensor]) -> None:
        from egnn_md.models.property import FAR

        columns = {name: values.tolist() for name, values in predicted.items()}
        rows = []
        for k, (index, structure) in enumerate(zip(indices, batch, strict=True)):
            row: dict[str, Any] = {name: values[k] for name, values in columns.items()}
            far = row["extrapolation"] > FAR
            row |= self.units
            row |= {"index": index, "formula": structure.formula(), "flag": FAR_AWAY if far else ""}
            rows.append((row, structure))
        self.table.write(rows)
        self.n_now += len(rows)

    def summary(self) -> dict[str, Any]:
        seconds = time.monotonic() - self.start
        return {
            "n": self.table.n_rows,
            "n_skipped": self.n_skipped,
            "n_flagged": self.table.n_flagged,
            "seconds": round(seconds, 3),
            "structures_per_second": round(self.n_now / max(seconds, 1e-9), 1),
        }


def _text(values: dict[str, Any]) -> str:
    return (
        f"{values['output']}: {values['n']} structures, {values['n_skipped']} skipped, "
        f"{values['n_flagged']} flagged as {FAR_AWAY}; {values['structures_per_second']:g} a second"
    )
