"""The report of a rollout of particles: one system that plays beside the truth, errors, what physics conserves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from egnn_md.data.nbody import FRAME_TIME
from egnn_md.report.charts import histogram, lines
from egnn_md.report.page import Page, Table
from egnn_md.report.scene import Particles
from egnn_md.storage import read_json

POSITIVE, NEGATIVE, NEUTRAL = "#c23b4e", "#3b6fd4", "#7a55c7"
SMALLEST: Final = 1e-12
"""Errors are drawn as powers of ten; the start has none."""


def rollout_page(folder: str | Path, system: int = 0) -> Page:
    """The page of a run folder of `egnn-md rollout` of particles. Raises OSError or ValueError if it holds none."""
    folder = Path(folder)
    summary = read_json(folder / "summary.json")
    with np.load(folder / "trajectory.npz", allow_pickle=False) as archive:
        known = {name: archive[name] for name in archive.files}
    times = FRAME_TIME * (known["frames"] - known["frames"][0])
    compared = FRAME_TIME * (np.array(summary["compared_frames"]) - known["frames"][0])
    errors = known["squared_errors"]
    last = len(compared) - 1
    tiles = [
        ("systems", str(summary["n_systems"])),
        ("particles in each", str(summary["n_particles"])),
        ("median energy change", f"{summary['median_energy_change'][-1]:.2g}"),
    ]
    if last > 0:
        tiles.insert(2, (f"median squared error at time {compared[last]:g}", f"{summary['median_se'][last]:.2g}"))
    return Page(
        title=f"{summary['n_particles']} particles for a time of {times[-1]:g}",
        subtitle=f"{summary.get('model', 'a model')} from {summary.get('start', 'a file')}; system {system} is shown, "
        "positive charges red, negative ones blue; pale spheres are where they truly are, seen where the two part",
        tiles=tiles,
        scene=_scene(known, times, system),
        charts=[*_error_charts(summary, errors, compared), *_conserved_charts(known, times)],
        tables=[_table(summary)],
        notes=["Beside this page: trajectory.npz (arrays), summary.json, errors.png, conserved.png, animation.gif."],
    )


def _scene(known: dict[str, Any], times: Any, system: int) -> Particles:
    x = known["positions"][system]
    true: list[Any] = [None] * len(x)
    if "true_positions" in known:
        for frame, at in enumerate(known["true_frames"] - known["frames"][0]):
            true[int(at)] = known["true_positions"][system, frame]
    charges = known["charges"][system] if "charges" in known else np.zeros(x.shape[1])
    colours = [POSITIVE if q > 0 else NEGATIVE if q < 0 else NEUTRAL for q in charges]
    return Particles(list(x), true, colours, [f"time {time:.1f}" for time in times], times.tolist())


def _error_charts(summary: dict[str, Any], errors: Any, compared: Any) -> list[str]:
    names = {"model": "median_se", "constant velocity": "median_se_constant_velocity"}
    medians = {name: _powers(summary[key])[1:] for name, key in names.items()}
    drawn = lines("Squared error per component: median over systems", compared[1:], medians, "time", "power of ten")
    if len(errors) < 2:
        return [drawn]
    note = "log₁₀ of each system's squared error in the last frame that is known"
    return [drawn, histogram("Systems", _powers(errors[-1]), "log₁₀ of the squared error", note)]


def _conserved_charts(known: dict[str, Any], times: Any) -> list[str]:
    changes = {
        "energy": np.abs(known["energy"] - known["energy"][0]),
        "momentum": known["momentum_change"],
        "angular momentum": known["angular_momentum_change"],
    }
    medians = {name: _powers(np.median(values, axis=1))[1:] for name, values in changes.items()}
    return [lines("What physics conserves: changes, median over systems", times[1:], medians, "time", "power of ten")]


def _powers(values: Any) -> Any:
    return np.log10(np.maximum(np.asarray(values, np.float64), SMALLEST))


def _table(summary: dict[str, Any]) -> Table:
    known = summary["compared_frames"]
    chosen = sorted({k for k in (1, 5, 10, 20, 30, 40, len(known) - 1) if 0 < k < len(known)})
    names = ("median_se", "mse", "median_se_constant_velocity")
    rows: list[list[Any]] = [[int(known[k]), *(float(summary[name][k]) for name in names)] for k in chosen]
    columns = ["frame", "median", "mean", "constant velocity, median"]
    return Table("Squared errors per component", columns, rows)
