"""The report of a distillation: errors over the rounds, labels beside predictions, where it is worst, its dynamics."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from egnn_md.checkpoint import load, read_header
from egnn_md.evaluation.evaluate import Evaluation, Request, evaluate_file
from egnn_md.report.charts import lines
from egnn_md.report.evaluations import charts_of, samples_of, scene_of
from egnn_md.report.page import Page, Table
from egnn_md.storage import read_json

TEST: Final = Path("last") / "labelled.extxyz"


def distillation_page(folder: str | Path) -> Page:
    """The page of a finished folder of `egnn-md distill`. Raises OSError or ValueError if it holds none."""
    folder = Path(folder)
    summary = read_json(folder / "summary.json")
    model = folder / "model.safetensors"
    network, header = load(model), read_header(model)
    result = evaluate_file(header["kind"], network, header, Request(folder / TEST, None, 32))
    found = samples_of(result)
    test, rounds = summary["test"], summary["rounds"]
    faster = summary["teacher_seconds"] / summary["student_seconds"]
    tiles = [
        ("force error", f"{test['force_mae']:.1f} meV/Å"),
        ("labels", str(summary["labels"] + summary["test_labels"])),
        ("against the teacher", f"{faster:.1f}x as fast"),
        ("drift in NVE", f"{summary['nve_drift']:+.2g} meV/atom/ps"),
        ("copies whole", f"{summary['stable']} of {summary['stability_copies']}"),
    ]
    return Page(
        title=f"{folder.resolve().name}, distilled from {summary['teacher']['teacher']}",
        subtitle=f"{summary['elements']}; started from {summary['start'] or 'nothing'}; errors on {test['n_frames']} "
        "frames of its own dynamics that no training saw; the worst of them are shown",
        tiles=tiles,
        bad=["copies whole"] * (summary["stable"] < summary["stability_copies"]),
        scene=scene_of(found),
        charts=[_rounds(rounds, test), *charts_of(found)],
        tables=[_errors(test), _table(result)],
        notes=["Beside this page: model.safetensors, card.md, errors.png, data.extxyz, summary.json."],
    )


def _rounds(rounds: list[dict[str, Any]], test: dict[str, Any]) -> str:
    """Errors before each training, and at the end."""
    errors = np.array([row["force_mae"] for row in rounds] + [test["force_mae"]])
    places = np.arange(len(errors), dtype=np.float64)
    return lines("Force error on frames not seen: rounds, then the end", places, {"": errors}, "round", "meV/Å")


def _errors(test: dict[str, Any]) -> Table:
    rows: list[list[Any]] = [
        [name, int(row["frames"]), float(row["force_mae"]), float(row["force_rmse"])]
        for kind in ("temperature", "molecule")
        for name, row in test["by"][kind].items()
    ]
    return Table("Force errors by temperature and molecule", ["", "frames", "MAE meV/Å", "RMSE meV/Å"], rows)


def _table(result: Evaluation) -> Table:
    return Table("Energies too", list(result.columns), [list(row) for row in result.rows], result.note)
