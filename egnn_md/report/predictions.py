"""The report of a table of properties: distributions, the molecules, the first rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from egnn_md.chemistry.structures import Structure
from egnn_md.report.charts import histogram
from egnn_md.report.page import Page, Table
from egnn_md.report.scene import Scene

MOST_STRUCTURES: Final = 60
MOST_ROWS: Final = 100
MOST_VALUES: Final = 50_000


class Collected:
    """What of a long table the report shows; `note` is called with its rows as they are written."""

    def __init__(self, columns: Sequence[str]) -> None:
        """Columns of numbers whose distribution is drawn."""
        self.values: dict[str, list[float]] = {name: [] for name in columns}
        self.rows: list[Mapping[str, Any]] = []
        self.structures: list[tuple[Mapping[str, Any], Structure]] = []

    def note(self, row: Mapping[str, Any], structure: Structure | None) -> None:
        """One row and its structure; None for one that was left out."""
        if len(self.rows) < MOST_ROWS:
            self.rows.append(row)
        if structure is None:
            return
        if len(self.structures) < MOST_STRUCTURES:
            self.structures.append((row, structure))
        for name, values in self.values.items():
            if len(values) < MOST_VALUES:
                values.append(float(row[name]))


def predictions_page(found: Collected, source: str, model: str, summary: Mapping[str, Any]) -> Page:
    """The page of a table made from `source`; `summary` as `egnn-md predict --json` prints it."""
    from ase import Atoms

    frames = [Atoms(structure.atomic_numbers, structure.positions) for _, structure in found.structures]
    labels = [_label(row, list(found.values)) for row, _ in found.structures]
    shown = ["index", "name", "smiles", "formula", *found.values, "extrapolation", "flag"]
    shown = [name for name in shown if name != "smiles" or any(row.get("smiles") for row in found.rows)]
    note = f"The first {len(found.rows)}; {summary['output']} has all, with the expected error of each number."
    tiles = [
        ("structures", str(summary["n"])),
        ("flagged", str(summary["n_flagged"])),
        ("skipped", str(summary["n_skipped"])),
        ("a second", f"{summary['structures_per_second']:g}"),
    ]
    rows = [[_short(row.get(name, "")) for name in shown] for row in found.rows]
    return Page(
        title=f"Properties of {source}",
        subtitle=f"predicted by {model}",
        tiles=tiles,
        bad=[name for name, value in tiles[1:3] if value != "0"],
        scene=Scene(frames, labels) if frames else None,
        charts=[
            histogram(name.replace("_", " / ", 1), np.array(v), name.partition("_")[2]) for name, v in _drawn(found)
        ],
        tables=[Table("Rows", shown, rows, note)],
    )


def _drawn(found: Collected) -> list[tuple[str, list[float]]]:
    return [(name, values) for name, values in found.values.items() if len(values) > 1]


def _short(value: Any) -> Any:
    return value if isinstance(value, float | int) else str(value)[:60]


def _label(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    known = {name: row[name] for name in columns if name.startswith(("mu_", "alpha_", "gap_"))}
    values = ", ".join(f"{name.replace('_', ' ', 1)} {value:.3g}" for name, value in known.items())
    name = row["name"] or row.get("smiles") or row["formula"]
    return f"{row['index']}: {name}; {values}" + (f"; {row['flag']}" if row["flag"] else "")
