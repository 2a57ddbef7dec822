"""`egnn-md predict`: properties of every structure in a file, as a table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from egnn_md.cli.options import Json, Overwrite, Threads, check_device, parse_dtype, set_threads
from egnn_md.cli.outcome import Outcome, UserError, progress_bar, say, verb

if TYPE_CHECKING:
    from torch import Tensor

    from egnn_md.chemistry.structures import Structure
    from egnn_md.data.tables import Table
    from egnn_md.dynamics.relax_first import AtMinimum, RelaxFirst
    from egnn_md.models.property import PropertyModel

FAR_AWAY = "far from the training data"
UNITS = {"meV": "eV", "a0^3": "bohr3", "a0^2": "bohr2", "cal/(mol K)": "cal_per_mol_K"}
"""Of the table's columns, where they are not those of the model: a word without spaces, energies as people say them."""
FACTORS = {"meV": 1e-3}
RELAX_STEPS, RELAXED_AT_ONCE = 500, 128


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
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an output that was interrupted.")] = False,
    overwrite: Overwrite = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    threads: Threads = None,
    as_json: Json = False,
) -> Outcome:
    """Predict the properties of every structure in a file.

    A row of the table has the structure's index (from 0), the name and SMILES that the file gives it, its formula, each
    property with its unit in the column's name (energies in eV) and its expected absolute error, and `extrapolation`:
    above 1.5 the geometry is unlike the training data and `flag` says so. Structures are read one after another: the
    file may be of any length. Bad ones (unreadable, empty, charged, periodic, elements that the model does not know)
    stop the work; with --skip-bad they have a row that says why. Work that was stopped goes on with --resume. A page to
    look at, with molecules and distributions, is left beside the table.

    Give minima, or --relax: geometries from elsewhere, from SMILES too, are moved to minima of --potential. `flag` says
    which did not converge, and which bonds broke or formed on the way.

    Example:  egnn-md predict molecules.smi --relax -o properties.csv

    or        egnn-md predict minima.xyz -o properties.csv
    """
    set_threads(threads)
    check_device(device)
    precision = parse_dtype(dtype)
    if resume and overwrite:
        raise UserError("--resume and --overwrite contradict each other")
    if output.exists() and Path(file).exists() and output.samefile(file):
        raise UserError(f"{output} is the file of the structures: choose another name for the table")
    if not fmax > 0:
        raise UserError(f"--fmax must be above 0 eV/Å, not {fmax}")
    from egnn_md.checkpoint import load, resolve
    from egnn_md.data.tables import Table
    from egnn_md.dynamics.relax_first import COLUMNS
    from egnn_md.evaluation.figures import without_failing
    from egnn_md.models.property import PropertyModel
    from egnn_md.report.predictions import predictions_page
    from egnn_md.storage import sha256

    network = load(model, device=device, dtype=precision)
    if not isinstance(network, PropertyModel):
        raise UserError(f"{model} is a {type(network).__name__}; predict needs a model of properties, such as qm9")
    first = _relaxation(potential, fmax, device, dtype) if relax else None
    structures = _structures(file)  # refuses what cannot be read before anything is written
    names = network.config.targets
    columns = ["index", "name", "smiles", "formula"]
    columns += [f"{column_of(name)}{end}" for name in names for end in ("", "_uncertainty")]
    columns += ["extrapolation", *(COLUMNS if relax else ()), "flag"]
    work: dict[str, Any] = {"model": sha256(resolve(model)), "dtype": dtype, "columns": columns}
    work |= {"file": str(Path(file).resolve()), "sha256": sha256(Path(file))} if Path(file).exists() else {"text": file}
    work |= {"potential": sha256(resolve(potential)), "fmax": fmax} if relax else {}
    table = Table(output, columns, work, resume=resume, overwrite=overwrite)
    if table.next_index:
        structures = _structures(file, table.next_index)
    run = _Run(network, table, skip_bad, first)
    try:
        run.all(structures)
    except BaseException:
        table.close()
        raise
    table.finish()
    page = output.with_name(f"{output.stem}-report.html")
    values = {"output": str(output), **run.summary()}
    with without_failing(str(page)):
        predictions_page(run.collected, Path(file).name, model, values).write(page)
        values["report"] = str(page)
    return Outcome(values, lambda: print(_text(values)), as_json)


def _structures(file: str, start: int = 0) -> Iterator[Any]:
    """Those of a file, or the one that a name or a SMILES says, from number `start` on, with their places.

    Raises DataError for a file that cannot be read, StructureError for what is neither.
    """
    if Path(file).exists():
        from egnn_md.data.stream import stream

        return stream(file, start)
    from egnn_md.chemistry.structures import structure_of
    from egnn_md.dynamics.starting_structures import read_structure

    return iter([(0, replace(structure_of(read_structure(file)), name=file))][start:])


def _relaxation(potential: str, fmax: float, device: str, dtype: str) -> RelaxFirst:
    """Raises CheckpointError, or UserError for a model that is no potential."""
    from egnn_md.checkpoint import load
    from egnn_md.compiled.forces import use_compiled
    from egnn_md.dynamics.relax_first import RelaxFirst
    from egnn_md.models.potential import Potential

    network = load(potential, device=device, dtype=parse_dtype(dtype))
    if not isinstance(network, Potential):
        raise UserError(f"--potential {potential} is a {type(network).__name__}: it has no forces to relax with")
    use_compiled(network, "auto")
    return RelaxFirst(network, fmax, RELAX_STEPS)


def column_of(target: str) -> str:
    """The column of a property, with its unit: "gap_eV", "alpha_bohr3", "mu_D"."""
    from egnn_md.chemistry.targets import unit_of

    unit = unit_of(target)
    return f"{target}_{UNITS.get(unit, unit)}" if unit != "1" else target


class _Run:
    """One file's way through the model."""

    def __init__(self, model: PropertyModel, table: Table, skip_bad: bool, first: RelaxFirst | None) -> None:
        from egnn_md.chemistry.targets import unit_of
        from egnn_md.report.predictions import Collected

        self.model, self.table, self.skip_bad, self.first = model, table, skip_bad, first
        self.n_now, self.start = 0, time.monotonic()
        self.columns = {name: (column_of(name), FACTORS.get(unit_of(name), 1.0)) for name in model.config.targets}
        self.collected = Collected([column for column, _ in self.columns.values()])
        self.bad: list[tuple[dict[str, Any], Structure | None]] = []
        """Rows of bad structures that are still to be written."""
        self.relaxed: dict[int, AtMinimum] = {}
        """By index, of those that are still to be written."""
        self.failure: ValueError | None = None

    def all(self, items: Iterator[Any]) -> None:
        """Predict and write everything. Raises the problem of a bad structure, after all before it is written."""
        from egnn_md.chemistry.structures import batches

        self.indices: list[int] = []
        with progress_bar("predicting") as progress, ThreadPoolExecutor(1) as writer:
            written: Future[None] | None = None
            for batch in batches(self._ready(items)):
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
            self._put(sorted(self.bad, key=_index))
        if self.failure is not None:
            raise self.failure

    def _ready(self, items: Iterator[Any]) -> Iterator[Structure]:
        """The structures to predict, relaxed if they are to be; ends as `_sound`."""
        if self.first is None:
            for index, structure in self._sound(items):
                self.indices.append(index)
                yield structure
            return
        sound = self._sound(items)
        while some := list(islice(sound, RELAXED_AT_ONCE)):
            ends = self.first([structure for _, structure in some])
            for (index, structure), end in zip(some, ends, strict=True):
                if isinstance(end, ValueError):
                    if not self._skips(index, structure, end):
                        return
                    continue
                self.relaxed[index] = end
                self.indices.append(index)
                yield end.structure

    def _sound(self, items: Iterator[Any]) -> Iterator[tuple[int, Structure]]:
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
            if problem is None and self.first is not None:
                problem = self.first.problem(item)
            if problem is None:
                yield index, item
            elif not self._skips(index, None if isinstance(item, DataError) else item, problem):
                return

    def _skips(self, index: int, structure: Structure | None, problem: ValueError) -> bool:
        """Note a bad structure; whether the work goes on."""
        if self.skip_bad:
            self.bad.append(_bad_row(index, structure, problem))
            say(f"structure {index} skipped: {problem}")
        else:
            hint = "--skip-bad leaves such structures out, with --resume from here on"
            self.failure = UserError(f"structure {index} (counted from 0): {problem}; {hint}")
        return self.skip_bad

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
            row: dict[str, Any] = _names(index, structure)
            for name, (column, factor) in self.columns.items():
                for end in ("", "_uncertainty"):
                    row[f"{column}{end}"] = factor * columns[f"{name}{end}"][k]
            row["extrapolation"] = columns["extrapolation"][k]
            flags = [FAR_AWAY] if row["extrapolation"] > FAR else []
            if (minimum := self.relaxed.pop(index, None)) is not None:
                row |= minimum.row
                flags += [minimum.flag] if minimum.flag else []
            row["flag"] = "; ".join(flags)
            rows.append((row, structure))
        self._put(sorted(rows, key=_index))
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
    return _names(index, structure) | {"flag": f"{SKIPPED}: {why}"}, structure


def _names(index: int, structure: Structure | None) -> dict[str, Any]:
    """What a row says of a structure before any number; without one, nothing."""
    if structure is None:
        return {"index": index, "name": "", "smiles": "", "formula": ""}
    formula = structure.formula() if len(structure.atomic_numbers) else ""
    return {"index": index, "name": structure.name, "smiles": structure.smiles, "formula": formula}


def _index(entry: tuple[dict[str, Any], Structure | None]) -> int:
    return int(entry[0]["index"])


def _text(values: dict[str, Any]) -> str:
    return (
        f"{values['output']}: {values['n']} structures, {values['n_skipped']} skipped, "
        f"{values['n_flagged']} flagged; {values['structures_per_second']:g} a second"
        + (f"; open {values['report']}" if "report" in values else "")
    )
