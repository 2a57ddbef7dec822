"""Which network gives the lowest force error for the same training time, and what does its force call cost?

    python benchmarks/architectures.py --data DIR --minutes 5

Each network trains on xtb_frames.npz with the settings of the shipped model (batch 16, Muon, learning rate falling to
zero) for as many compiled steps as fit the time on one thread; errors are those of the validation molecules. The table
stands in docs/decisions/0005-architecture.md; the line with Adam, in 0002-muon-optimizer.md.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from _common import make_parser, parse, print_table, write_json

from egnn_md.checkpoint import load
from egnn_md.data.frame_batches import EdgeTable, FrameBatches
from egnn_md.evaluation.potential import evaluate
from egnn_md.models.potential import Potential
from egnn_md.training.loop import Resources, train
from egnn_md.training.optimizer import build_optimizer
from egnn_md.training.potential import Splits, build_model, load_splits
from egnn_md.training.potential_config import PotentialRun
from egnn_md.training.potential_loss import PotentialLoss

CANDIDATES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name: (changes to [model], changes to [training])
    "invariant": ({"network": "invariant"}, {}),
    "coordinate update (paper)": ({"network": "coordinates"}, {}),
    "8 vector channels": ({"n_vectors": 8}, {}),
    "16 vector channels": ({}, {}),
    "32 vector channels": ({"n_vectors": 32}, {}),
    "16 vector channels, Adam": ({}, {"optimizer": "adam", "learning_rate": 2e-3}),
}


def configuration(name: str, steps: int, frames: str) -> PotentialRun:
    """The shipped model's settings, changed as the candidate says."""
    model, changes = CANDIDATES[name]
    training = {"max_steps": steps, "compile": True, "learning_rate": 4e-3, "energy_weight": 2.0, "warmup_steps": 200}
    training |= {"validate_every": steps, "checkpoint_every": steps}
    training |= changes
    return PotentialRun.model_validate({"data": {"files": [frames]}, "model": model, "training": training})


def write_toml(config: PotentialRun, path: Path) -> Path:
    """The configuration as a file; TOML writes numbers, strings, booleans and lists as JSON does."""
    sections = config.model_dump(exclude_none=True)
    lines = [f"{key} = {json.dumps(value)}" for key, value in sections.items() if not isinstance(value, dict)]
    for name, section in sections.items():
        if isinstance(section, dict):
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())]
    path.write_text("\n".join(lines))
    return path


def milliseconds_per_step(config: PotentialRun, splits: Splits, n_steps: int = 40) -> float:
    """Time of a compiled training step, optimizer included, once compiled."""
    model = build_model(config, splits.train)
    loss, optimizer = PotentialLoss(model, config.training), build_optimizer(model, config.training.optimizer, 1e-4)
    sample = splits.train.select(np.random.default_rng(0).permutation(len(splits.train))[: 16 * n_steps])
    batches = FrameBatches(sample, EdgeTable.build(sample, model.config.cutoff), model.dtype)
    times = []
    for step in range(n_steps):
        start = time.process_time()
        optimizer.zero_grad()
        loss(batches[list(range(16 * step, 16 * step + 16))]).total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        times.append(time.process_time() - start)
    return 1e3 * float(np.mean(times[n_steps // 4 :]))


def force_call_milliseconds(model: Potential, splits: Splits, n_calls: int = 50) -> float:
    """Median time of energy and forces of one molecule of 18 atoms."""
    frame = splits.valid.select(np.flatnonzero(splits.valid.n_atoms == 18)[:1])
    graph = FrameBatches(frame, EdgeTable.build(frame, model.config.cutoff), model.dtype)[[0]].graph
    times = []
    for _ in range(n_calls):
        start = time.process_time()
        model(graph)
        times.append(time.process_time() - start)
    return 1e3 * float(np.median(times))


def measure(name: str, data: Path, minutes: float) -> dict[str, float | str]:
    """Train one of `CANDIDATES` for `minutes` of one thread; its row of the table."""
    frames = str((data / "xtb_frames.npz").resolve())
    pilot = configuration(name, 1, frames)
    splits = load_splits(pilot.data, [Path(frames)])
    pace = milliseconds_per_step(pilot, splits)
    steps = max(1, int(minutes * 60e3 / pace))
    with tempfile.TemporaryDirectory() as folder:
        config_file = write_toml(configuration(name, steps, frames), Path(folder) / "config.toml")
        trained = train(config_file, output=Path(folder) / "run", resources=Resources(progress=False))
        model = cast(Potential, load(trained))
    metrics = evaluate(model, splits.valid)
    return {
        "candidate": name,
        "weights": sum(p.numel() for p in model.parameters()),
        "ms/step": pace,
        "steps": steps,
        "force MAE (meV/Å)": metrics.force_mae,
        "energy MAE (meV/atom)": metrics.energy_mae,
        "force call, 18 atoms (ms)": force_call_milliseconds(model, splits),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(
        "Which network gives the lowest force error for the same training time, and what does it cost?"
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of each network on one thread")
    parser.add_argument("--only", default="", help="train only the networks whose name contains this")
    options = parse(parser, arguments)
    rows = []
    for name in CANDIDATES:
        if options.only in name:
            rows.append(measure(name, options.data, options.minutes))
            print(rows[-1], flush=True)
    print_table(f"{options.minutes:g} minutes each", list(rows[0]), [list(row.values()) for row in rows])
    write_json(options.json, {"minutes": options.minutes, "candidates": rows})


if __name__ == "__main__":
    main()
