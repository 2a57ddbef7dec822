"""`egnn-md predict`: properties of every structure in a file, as a table."""

from __future__ import annotations

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
UNITS = {"meV": "eV", "a0^3": "bohr3", "a0^2": "bohr2", "cal/(mol K)": "cal_per_mol_K"}
"""Of the table's columns, where they are not those of the model: a word without spaces, energies as people say them."""
FACTORS = {"meV": 1e-3}


@verb
def predict(
    file: Annotated[Path, typer.Argument(help="Structures: xyz, extxyz, sdf, npz, or anything else ase reads.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Table to write: .csv, .jsonl or .extxyz.")],
    model: Annotated[str, typer.Option(help="A shipped model's name, or a checkpoint.")] = "qm9",
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on past bad structures: their rows say why.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an output that was interrupted.")] = False,
    overwrite: Overwrite = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    threads: Threads = None,
    as_json: Json = False,
) -> Outcome:
    """Predict the properties of every structure in a file.

    A row of the table has the structure's index (from 0), the name that the file gives it, its formula, each property
    with its unit in the column's name (energies in eV) and its expected absolute error, and `extrapolation`: above 1.5
    the geometry is unlike the training data and `flag` says so. Structures are read one after another: the file may be
    of any length. Bad ones (unreadable, empty, charged, periodic, elements that the model does not know) stop the work;
    with --skip-bad they have a row that says why. Work that was stopped goes on with --resume. A page to look at, with
    molecules and distributions, is left beside the table.

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
    from egnn_md.evaluation.figures import without_failing
    from egnn_md.models.property import PropertyModel
    from egnn_md.report.predictions import predictions_page
    from egnn_md.storage import sha256

    network = load(model, device=device, dtype=precision)
    if not isinstance(network, PropertyModel):
        raise UserError(f"{model} is a {type(network).__name__}; predict needs a model of properties, such as qm9")
    structures = stream(file)  # refuses what cannot be read before anything is written
    names = network.config.targets
    columns = ["index", "name", "formula"]
    columns += [f"{column_of(name)}{end}" for name in names for end in ("", "_uncertainty")]
    columns += ["extrapolation", "flag"]
    work = {"model": sha256(resolve(model)), "file": str(file.resolve()), "sha256": sha256(file), "dtype": dtype}
    work |= {"columns": columns}  # type: ignore[dict-item]
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
    page = output.with_name(f"{output.stem}-report.html")
    values = {"output": str(output), **run.summary()}
    with without_failing(str(page)):
        predictions_page(run.collected, file, model, values).write(page)
        values["report"] = str(page)
    return Outcome(values, lambda: print(_text(values)), as_json)


def column_of(target: str) -> str:
    """The column of a property, with its unit: "gap_eV", "alpha_bohr3", "mu_D"."""
    from egnn_md.chemistry.targets import unit_of

    unit = unit_of(target)
    return f"{target}_{UNITS.get(unit, unit)}" if unit != "1" else target


class _Run:
    """One file's way through the model."""

    def __init__(self, model: PropertyModel, table: Table, skip_bad: bool) -> None:
        from egnn_md.chemistry.targets import unit_of
        from egnn_md.report.predictions import Collected

        self.model, self.table, self.skip_bad = model, table, skip_bad
        self.n_now, self.start = 0, time.monotonic()
        self.columns = {name: (column_of(name), FACTORS.get(unit_of(name), 1.0)) for name in model.config.targets}
        self.collected = Collected([column for column, _ in self.columns.values()])
        self.bad: list[tuple[dict[str, Any], Structure | None]] = []
        """Rows of bad structures that are still to be written."""
        self.failure: ValueError | None = None

    def all(self, items: Iterator[Any]) -> None:
        """Predict and write everything. Raises the problem of a bad structure, after all before it is written."""
        from egnn_md.chemistry.structures import batches

        self.indices: list[int] = []
        with progress_bar("predicting") as progress, ThreadPoolExecutor(1) as writer:
            written: Future[None] | None = None
            for batch in batches(self._sound(items)):
                taken, self.indices = self.indices[: len(batch)], self.indices[len(batch) :]
                bad = [row for row in self.bad if row[0]["index"] < taken[-1]]
                self.bad = self.bad[len(bad) :]
                columns = self.model.predict_batch(batch)  # while the rows of the batch before are written
                if written is not None:
                    written.result()
                    progress(self.table.n_rows, None)
                written = writer.submit(self._write, taken, batch, columns, bad)
            if written is not None:
                written.result()
                progress(self.table.n_rows, None)
            self._put(self.bad)
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
                self.bad.append(_bad_row(index, None if isinstance(item, DataError) else item, problem))
                say(f"structure {index} skipped: {problem}")
            else:
                hint = "--skip-bad leaves such structures out, with --resume from here on"
                self.failure = UserError(f"structure {index} (counted from 0): {problem}; {hint}")
                return

    def _write(
        self,
        indices: list[int],
        batch: list[Structure],
        predicted: dict[str, Tensor],
        bad: list[tuple[dict[str, Any], Structure | None]],
    ) -> None:
        from egnn_md.models.property import FAR

        columns = {name: values.tolist() for name, values in predicted.items()}
        rows: list[tuple[dict[str, Any], Structure | None]] = list(bad)
        for k, (index, structure) in enumerate(zip(indices, batch, strict=True)):
            row: dict[str, Any] = {"index": index, "name": structure.name, "formula": structure.formula()}
            for name, (column, factor) in self.columns.items():
                for end in ("", "_uncertainty"):
                    row[f"{column}{end}"] = factor * columns[f"{name}{end}"][k]
            row["extrapolation"] = columns["extrapolation"][k]
            row["flag"] = FAR_AWAY if row["extrapolation"] > FAR else ""
            rows.append((row, structure))
        self._put(sorted(rows, key=lambda entry: int(entry[0]["index"])))
        self.n_now += len(batch)

    def _put(self, rows: list[tuple[dict[str, Any], Structure | None]]) -> None:
        self.table.write(rows)
        for row, structure in rows:
            self.collected.note(row, structure if "extrapolation" in row else None)

    def summary(self) -> dict[str, Any]:
        seconds = time.monotonic() - self.start
        return {
            "n": self.table.n_rows,
            "n_skipped": self.table.n_skipped,
            "n_flagged": self.table.n_flagged,
            "seconds": round(seconds, 3),
            "structures_per_second": round(self.n_now / max(seconds, 1e-9), 1),
        }


def _bad_row(index: int, structure: Structure | None, problem: Exception) -> tuple[dict[str, Any], Structure | None]:
    """The row of a structure without numbers."""
    from egnn_md.data.tables import SKIPPED

    why = " ".join(str(problem).replace(",", ";").replace('"', "'").split())
    known = structure is not None and len(structure.atomic_numbers) > 0
    row = {"index": index, "name": structure.name if structure is not None else "", "flag": f"{SKIPPED}: {why}"}
    return row | {"formula": structure.formula() if known and structure is not None else ""}, structure


def _text(values: dict[str, Any]) -> str:
    return (
        f"{values['output']}: {values['n']} structures, {values['n_skipped']} skipped, "
        f"{values['n_flagged']} flagged as {FAR_AWAY}; {values['structures_per_second']:g} a second"
        + (f"; open {values['report']}" if "report" in values else "")
    )
