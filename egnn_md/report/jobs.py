"""The report of work on a file of many structures (`egnn-md relax`, `md`, `label`): how they fared, to look at."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from egnn_md.report.charts import histogram
from egnn_md.report.page import Page, Table
from egnn_md.report.scene import Scene

if TYPE_CHECKING:
    from ase import Atoms

TRAJECTORIES: Final = ("md", "rollout")
"""Verbs that write a trajectory of each structure, into a run folder."""
MOST_STRUCTURES: Final = 60
MOST_FRAMES: Final = 300
MOST_ROWS: Final = 100
MOST_VALUES: Final = 50_000
LABELS: Final = {
    # column of the table: title and unit of its distribution
    "steps": ("Steps", "steps"),
    "fmax": ("Largest force at the end", "eV/Å"),
    "extrapolation": ("Extrapolation: above 1, unlike the training data", "signal"),
    "mean_temperature_K": ("Mean temperature", "K"),
    "drift_meV_per_atom_per_ps": ("Drift of the total energy", "meV/atom/ps"),
}


def job_page(verb: str, output: Path, table: Path, source: str) -> Page:
    """The page of the finished work of `verb` on the structures of `source`: its output and its table."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    statuses = Counter(row["status"] for row in rows)
    good = [row for row in rows if row["status"] != "failed"]
    tiles = [("structures", str(len(rows)))]
    tiles += [(status, str(count)) for status, count in statuses.items() if status != "ok"]
    order = sorted(rows, key=lambda row: row["status"] == "ok")
    columns = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    note = f"The first {MOST_ROWS}, those that did not go well before the others; {table.name} has all."
    shown = [[_value(row[name]) for name in columns] for row in order[:MOST_ROWS]]
    return Page(
        title=f"{verb} of {source}",
        subtitle=f"{len(rows)} structures, {statuses['failed']} failed",
        tiles=tiles,
        bad=[status for status in statuses if status != "ok"],
        scene=_scene(verb, output, good),
        charts=[*_charts(good), _gain(good)],
        tables=[Table("Structures", columns, shown, note)],
        notes=[f"Beside this page: {output.name}, {table.name}."],
    )


def _charts(rows: Sequence[dict[str, str]]) -> list[str]:
    return [histogram(title, _numbers(rows, name), unit) for name, (title, unit) in LABELS.items()]


def _gain(rows: Sequence[dict[str, str]]) -> str:
    """Energies since the start."""
    gained = _numbers(rows, "energy") - _numbers(rows, "energy_start")
    return histogram("Energy since the start", gained, "eV")


def _numbers(rows: Sequence[dict[str, str]], name: str) -> Any:
    """(n,) of a column; NaN where it says nothing."""
    return np.array([float(row.get(name) or "nan") for row in rows[:MOST_VALUES]])


def _scene(verb: str, output: Path, rows: Sequence[dict[str, str]]) -> Scene | None:
    """Of dynamics the first trajectory, else the first structures."""
    if not rows:
        return None
    frames: list[Atoms] = []
    if verb in TRAJECTORIES:
        frames = _first_trajectory(output)
        times = [float(atoms.info["time_ps"]) for atoms in frames]
        labels = [f"structure {rows[0]['index']}, {time:.3f} ps" for time in times]
        return Scene(frames, labels, times)
    labels = []
    for atoms, row in zip(_read(output), rows[:MOST_STRUCTURES], strict=False):
        frames.append(atoms)
        said = [f"{name} {float(row[name]):.4g}" for name in ("steps", "energy", "fmax") if row.get(name)]
        what = atoms.info.get("name") or atoms.get_chemical_formula()
        said += [row["status"]] if row["status"] != "ok" else []
        labels.append("; ".join([f"{row['index']}: {what}", *said]))
    return Scene(frames, labels)


def _first_trajectory(output: Path) -> list[Atoms]:
    """The frames of the first structure of many, every second one left out while there are too many."""
    frames: list[Atoms] = []
    every = 1
    for k, atoms in enumerate(_read(output)):
        if frames and atoms.info["step"] == 0:
            break
        if k % every == 0:
            frames.append(atoms)
        if len(frames) > MOST_FRAMES:
            frames, every = frames[::2], 2 * every
    return frames


def _read(output: Path) -> Iterator[Atoms]:
    from ase.io import iread

    return iter(iread(output, index=":", format="extxyz"))


def _value(text: str) -> Any:
    try:
        return float(text) if "." in text or "e" in text or text in ("nan", "inf") else int(text)
    except ValueError:
        return text
