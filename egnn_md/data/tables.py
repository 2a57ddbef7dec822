"""Rows of tables as text: CSV, JSON lines, or extxyz with the row in the comment line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from egnn_md.chemistry.elements import SYMBOLS
from egnn_md.chemistry.structures import Structure

Row = Mapping[str, Any]
"""Values by column: numbers or text; "index" is the structure's place in its file, "flag" is empty for most."""


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.7g}"
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text


def _csv(columns: list[str], row: Row, structure: Structure | None) -> str:
    return ",".join([_number(row.get(name, "")) for name in columns]) + "\n"


def _jsonl(columns: list[str], row: Row, structure: Structure | None) -> str:
    values = {}
    for name in columns:
        value = row.get(name)
        values[name] = (float(f"{value:.7g}") if math.isfinite(value) else None) if isinstance(value, float) else value
    return json.dumps(values) + "\n"


def _extxyz(columns: list[str], row: Row, structure: Structure | None) -> str:
    if structure is None:
        return ""  # there are no numbers to go with the atoms, if there are any
    words = ["Properties=species:S:1:pos:R:3"]
    said = [name for name in columns if row[name] != ""]  # ase would read what comes after an empty word as its value
    words += [f"{n}={_quoted(row[n])}" if isinstance(row[n], str) else f"{n}={_number(row[n])}" for n in said]
    atoms = [
        f"{SYMBOLS[z]} {x:.8f} {y:.8f} {w:.8f}\n"
        for z, (x, y, w) in zip(structure.atomic_numbers.tolist(), structure.positions.tolist(), strict=True)
    ]
    return f'{len(atoms)}\n{" ".join(words)} pbc="F F F"\n{"".join(atoms)}'


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "'").replace("\\", r"\\") + '"'


FORMATS: Final[dict[str, Callable[[list[str], Row, Structure | None], str]]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".xyz": _extxyz,
    ".extxyz": _extxyz,
}
"""By the suffix of the table: columns, a row, its structure (None for one that was left out) -> the row's lines."""


def head_of(suffix: str, columns: Sequence[str]) -> str:
    """What stands before the first row."""
    return ",".join(columns) + "\n" if suffix == ".csv" else ""
