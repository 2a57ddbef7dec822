"""The N-body benchmark: errors over seeds, by sub-steps, of rollouts, of more particles and of other starts.

Squared errors per component of the positions. `--data` is a folder with nbody_charged5.npz, or with a file of
`egnn-md data nbody` (--file). Train the models to compare with nbody.toml and nbody-paper.toml of egnn_md/paper/, one
run for each seed, and for --horizon with start_frame 0 and end_frame 10.

    python benchmarks/nbody.py --data DIR --ours run-1/model.safetensors … --paper paper-1/model.safetensors …
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from _common import make_parser, parse, print_table, write_json

if TYPE_CHECKING:
    from egnn_md.data.nbody import Trajectories

SUBSTEPS = (50, 100, 200, 500, 1000, 2000)
COLUMNS = ("MSE", "median", "lowest 80 %", "n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__ or "", model=None)
    parser.add_argument("--file", default="nbody_charged5.npz", help="in the data folder")
    parser.add_argument(
        "--ours", nargs="*", default=["nbody-charged5"], help="integrators, one a seed; all are reported"
    )
    parser.add_argument("--paper", nargs="*", default=[], help="models of egnn_md/paper/nbody-paper.toml, one a seed")
    parser.add_argument("--horizon", default=None, help="the paper's model trained for frames 0 -> 10")
    parser.add_argument("--systems", type=int, default=None, help="only the first so many of each side")
    options = parse(parser, arguments)
    from egnn_md.checkpoint import load
    from egnn_md.data import nbody

    sides = {
        side: nbody.read(options.data / options.file, side).select(slice(options.systems))
        for side in ("test", "rollout")
    }
    ours, paper = ([load(name) for name in names] for names in (options.ours, options.paper))
    result: dict[str, Any] = {}
    for name, models in (("ours", ours), ("paper", paper)):
        if models:
            result[name] = seeds(name, models, sides["test"])
    result["substeps"] = by_substeps(ours[0], sides["test"])
    horizon = None if options.horizon is None else load(options.horizon)
    result["rollout"] = rollout(ours[0], horizon, sides["rollout"])
    result["elsewhere"] = elsewhere(ours[0], paper, sides["test"])
    write_json(options.json, result)


def metrics(model: Any, trajectories: Trajectories, frames: tuple[int, int] = (30, 40), **options: Any) -> list[float]:
    from egnn_md.evaluation.nbody import NBodyMetrics, squared_errors

    found = NBodyMetrics.of(squared_errors(model, trajectories, frames, **options))
    return [found.mse, found.median_se, found.mse_p80, found.n]


def straight_flight(trajectories: Trajectories, frames: tuple[int, int] = (30, 40)) -> list[float]:
    from egnn_md.data.nbody import duration
    from egnn_md.evaluation.nbody import NBodyMetrics

    first, last = (trajectories.column(frame) for frame in frames)
    flown = trajectories.positions[:, first] + duration(*frames) * trajectories.velocities[:, first]
    found = NBodyMetrics.of(((flown - trajectories.positions[:, last]) ** 2).mean((1, 2)))
    return [found.mse, found.median_se, found.mse_p80, found.n]


def seeds(name: str, models: list[Any], test: Trajectories) -> dict[str, Any]:
    """Frame 30 -> 40 of the test side, each seed and the mean over seeds."""
    rows = [metrics(model, test) for model in models]
    mean = [float(value) for value in np.mean(rows, axis=0)]
    table = [[f"seed {k + 1}", *row] for k, row in enumerate(rows)] + [["mean", *mean]]
    print_table(f"{name}: frame 30 -> 40, test side", ["", *COLUMNS], table)
    return {"seeds": rows, "mean": mean}


def by_substeps(model: Any, test: Trajectories) -> dict[str, Any]:
    """What finer steps buy, and what they cost."""
    rows = []
    for n_substeps in SUBSTEPS:
        start = time.perf_counter()
        found = metrics(model, test, n_substeps=n_substeps)
        rows.append([n_substeps, *found[:3], 1e3 * (time.perf_counter() - start) / len(test)])
    print_table("ours by sub-steps", ["sub-steps", *COLUMNS[:3], "ms a trajectory"], rows)
    return {str(row[0]): row[1:] for row in rows}


def rollout(model: Any, horizon: Any, trajectories: Trajectories) -> dict[str, Any]:
    """From frame 0 over all frames, frame after frame; median errors."""
    from egnn_md.dynamics.particle_rollouts import roll_out, summarize

    made = roll_out(model, trajectories, int(trajectories.frames[-1]))
    summary = summarize(made, made.squared_errors(), made.constant_velocity_errors(), made.conserved())
    ours, straight = summary["median_se"], summary["median_se_constant_velocity"]
    rows = [
        [k, ours[k], straight[k], straight[k] / ours[k], summary["median_energy_change"][k]]
        for k in range(1, len(ours))
    ]
    shown = [row for row in rows if row[0] in (1, 2, 5, 10, 20, 30, 40, 48)]
    columns = ["frame", "ours", "constant velocity", "ratio", "energy change"]
    print_table(f"rollout from frame 0, {len(trajectories)} systems: medians", columns, shown)
    lower = sum(row[1] < row[2] for row in rows)
    print(f"\nbelow constant velocity at {lower} of {len(rows)} frames")
    if horizon is not None:
        jump = metrics(horizon, trajectories, (0, 10))[1]
        print(f"frame 10: the paper's model trained for it {jump:.3g}, ours {ours[10]:.3g}: 1/{jump / ours[10]:.3g}")
        summary["paper_at_frame_10"] = jump
    return summary


def elsewhere(model: Any, paper: list[Any], test: Trajectories) -> dict[str, Any]:
    """Without retraining: an earlier start, and more particles."""
    from egnn_md.data.nbody import generate

    cases = {"frame 20 -> 30": (test, (20, 30))}
    for n_particles in (10, 20):
        n_systems = min(200, len(test))
        cases[f"{n_particles} particles"] = (generate("charged", n_systems, n_particles, 1, frames=(30, 40)), (30, 40))
    rows, found = [], {}
    for name, (trajectories, frames) in cases.items():
        parts = {"ours": metrics(model, trajectories, frames)}
        if paper:
            parts["paper"] = metrics(paper[0], trajectories, frames)
        parts["constant velocity"] = straight_flight(trajectories, frames)
        rows += [[name, who, *values] for who, values in parts.items()]
        found[name] = parts
    print_table("without retraining", ["", "", *COLUMNS], rows)
    return found


if __name__ == "__main__":
    main()
