"""Properties of files of molecules: what a worker of `egnn-md predict` does with a chunk of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from egnn_md.chemistry.structures import Structure, batches
from egnn_md.chemistry.targets import unit_of
from egnn_md.data.reading import DataError
from egnn_md.data.tables import FORMATS
from egnn_md.dynamics.relax_first import COLUMNS, AtMinimum, RelaxFirst
from egnn_md.dynamics.starting_structures import StructureError
from egnn_md.jobs.chunks import Answer, Emit
from egnn_md.jobs.source import as_structure
from egnn_md.models.property import FAR, PropertyModel

if TYPE_CHECKING:
    from torch import Tensor

    from egnn_md.dynamics.many import ModelSpec

FAR_AWAY: Final = "far from the training data"
SKIPPED: Final = "skipped"
"""A flag that begins so marks a row without numbers."""
UNITS: Final = {"meV": "eV", "a0^3": "bohr3", "a0^2": "bohr2", "cal/(mol K)": "cal_per_mol_K"}
"""Of the table's columns, where they are not those of the model: a word without spaces, energies as people say them."""
FACTORS: Final = {"meV": 1e-3}
RELAX_STEPS: Final = 500
ROWS_KEPT, STRUCTURES_KEPT = 50_000, 60
"""Places before which records hold the row's values and the structure, for a report."""
Item = tuple[int, "Structure | DataError"]


def column_of(target: str) -> str:
    """The column of a property, with its unit: "gap_eV", "alpha_bohr3", "mu_D"."""
    unit = unit_of(target)
    return f"{target}_{UNITS.get(unit, unit)}" if unit != "1" else target


def columns_of(targets: tuple[str, ...], relaxed: bool) -> tuple[str, ...]:
    """Of the table."""
    properties = (f"{column_of(name)}{end}" for name in targets for end in ("", "_uncertainty"))
    more = COLUMNS if relaxed else ()
    return ("index", "name", "smiles", "formula", *properties, "extrapolation", *more, "flag")


@dataclass(frozen=True)
class PropertyWorker:
    """See `egnn_md.jobs.chunks.Worker`; its answers are rows of a table."""

    spec: ModelSpec
    """Of a model of properties."""
    suffix: str
    """Of the table: a key of `egnn_md.data.tables.FORMATS`."""
    skip_bad: bool = False
    """Structures that cannot be predicted have a row that says why; else the first of them ends the work."""
    potential: ModelSpec | None = None
    """To relax with first."""
    fmax: float = 0.01
    """eV/Å."""
    at_once: int | None = None
    """Molecules in a call; None: as many as fit the processor."""
    columns = ()
    read = staticmethod(as_structure)

    def open(self) -> Callable[[list[Item], Emit], None]:
        """Load the models."""
        from egnn_md.checkpoint import load

        model = load(self.spec.model, device=self.spec.device, dtype=getattr(torch, self.spec.dtype))
        if not isinstance(model, PropertyModel):
            raise StructureError(f"{self.spec.model} is a {type(model).__name__}; predict needs a model of properties")
        first = RelaxFirst(self.potential.load(), self.fmax, RELAX_STEPS, self.at_once) if self.potential else None
        return _Rows(self, model, first)


class _Rows:
    """The rows of one chunk after another."""

    def __init__(self, worker: PropertyWorker, model: PropertyModel, first: RelaxFirst | None) -> None:
        self.worker, self.model, self.first = worker, model, first
        self.names = {name: (column_of(name), FACTORS.get(unit_of(name), 1.0)) for name in model.config.targets}
        self.columns = list(columns_of(model.config.targets, first is not None))
        self.record = FORMATS[worker.suffix]

    def __call__(self, items: list[Item], emit: Emit) -> None:
        """Emit a row for each. Raises StructureError for the first bad one, after those before it, unless bad ones are
        to be skipped.
        """
        sound, problem = self._sound(items, emit)
        ready, unrelaxed = self._relaxed(sound, emit)
        with ThreadPoolExecutor(1) as writer:  # writes the rows of a batch while the next one is computed
            written, done = None, 0
            for batch in batches((structure for _, structure, _ in ready), self.worker.at_once):
                predicted = self.model.predict_batch(batch)
                if written is not None:
                    written.result()
                written = writer.submit(self._write, ready[done : done + len(batch)], predicted, emit)
                done += len(batch)
            if written is not None:
                written.result()
        if (worst := unrelaxed or problem) is not None:
            raise worst

    def _sound(self, items: list[Item], emit: Emit) -> tuple[list[tuple[int, Structure]], StructureError | None]:
        """Those that can be predicted, up to the first that cannot, unless such are to be skipped."""
        sound: list[tuple[int, Structure]] = []
        for index, item in items:
            problem = item if isinstance(item, DataError) else item.problem(self.model.config.elements)
            if problem is None and self.first is not None:
                problem = self.first.problem(item)  # type: ignore[arg-type]
            if problem is None:
                sound.append((index, item))  # type: ignore[arg-type]
            elif (end := self._bad(index, item, problem, emit)) is not None:
                return sound, end
        return sound, None

    def _relaxed(
        self, sound: list[tuple[int, Structure]], emit: Emit
    ) -> tuple[list[tuple[int, Structure, AtMinimum | None]], StructureError | None]:
        if self.first is None:
            return [(index, structure, None) for index, structure in sound], None
        ready: list[tuple[int, Structure, AtMinimum | None]] = []
        ends: Iterator[AtMinimum | ValueError] = self.first([structure for _, structure in sound])
        for (index, structure), end in zip(sound, ends, strict=True):
            if not isinstance(end, ValueError):
                ready.append((index, end.structure, end))
            elif (problem := self._bad(index, structure, end, emit)) is not None:
                return ready, problem
        return ready, None

    def _bad(self, index: int, item: Structure | DataError, problem: ValueError, emit: Emit) -> StructureError | None:
        """Its row without numbers; or what ends the work."""
        if not self.worker.skip_bad:
            return StructureError(
                f"structure {index} (counted from 0): {problem}; --skip-bad leaves such structures out"
            )
        structure = None if isinstance(item, DataError) else item
        why = " ".join(str(problem).replace(",", ";").replace('"', "'").split())
        row = _names(index, structure) | {"flag": f"{SKIPPED}: {why}"}
        emit(index, Answer.failed(why, self.record(self.columns, row, None), **row))
        return None

    def _write(
        self, ready: list[tuple[int, Structure, AtMinimum | None]], predicted: Mapping[str, Tensor], emit: Emit
    ) -> None:
        values = {name: column.tolist() for name, column in predicted.items()}
        for k, (index, structure, minimum) in enumerate(ready):
            row = _names(index, structure)
            for name, (column, factor) in self.names.items():
                for end in ("", "_uncertainty"):
                    row[f"{column}{end}"] = factor * values[f"{name}{end}"][k]
            row["extrapolation"] = values["extrapolation"][k]
            flags = [FAR_AWAY] if row["extrapolation"] > FAR else []
            if minimum is not None:
                row |= minimum.row
                flags += [minimum.flag] if minimum.flag else []
            row["flag"] = "; ".join(flags)
            emit(index, Answer((), _kept(row, structure), self.record(self.columns, row, structure)))


def _kept(row: dict[str, Any], structure: Structure) -> dict[str, Any]:
    """What a record holds of a row besides its text."""
    if row["index"] >= ROWS_KEPT:
        return {"flag": row["flag"]}
    if row["index"] >= STRUCTURES_KEPT:
        return row
    return row | {"numbers": structure.atomic_numbers.tolist(), "positions": structure.positions.tolist()}


def _names(index: int, structure: Structure | None) -> dict[str, Any]:
    """What a row says of a structure before any number; without one, nothing."""
    if structure is None:
        return {"index": index, "name": "", "smiles": "", "formula": ""}
    formula = structure.formula() if len(structure.atomic_numbers) else ""
    return {"index": index, "name": structure.name, "smiles": structure.smiles, "formula": formula}
