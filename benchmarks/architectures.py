"""Which network gives the lowest force error for the same training, and what does its force call cost?

    python benchmarks/architectures.py --train train_300K.xyz --test test_300K.xyz test_600K.xyz --steps 1200 --batch 2

Each candidate trains on one thread for the same number of steps (Muon, learning rate falling to zero); errors are those
of the test files, or of the validation side without any. The two columns of times are measured candidate by candidate,
in turns, so that what else runs slows all of them alike. The table stands in
docs/decisions/0015-network.md; those of earlier networks, in 0005-architecture.md and 0002-muon-optimizer.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from _common import make_parser, parse, print_table, write_json

from egnn_md.checkpoint import load
from egnn_md.data.frame_batches import FrameBatches, PairTable
from egnn_md.data.frame_files import read_frames
from egnn_md.data.frames import Frames
from egnn_md.evaluation.potential import evaluate
from egnn_md.models.potential import Potential
from egnn_md.training.loop import Resources, train
from egnn_md.training.optimizer import build_optimizer
from egnn_md.training.potential import Splits, build_model, load_splits
from egnn_md.training.potential_config import PotentialRun
from egnn_md.training.potential_loss import PotentialLoss

CANDIDATES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name: (changes to [model], changes to [training])
    "16 vectors": ({"n_tensors": 0}, {}),
    "32 vectors": ({"n_vectors": 32, "n_tensors": 0}, {}),
    "16 vectors, 16 tensors": ({"n_tensors": 16}, {}),
    "32 vectors, 16 tensors": ({"n_vectors": 32, "n_tensors": 16}, {}),
    "16 vectors, repulsion to 1.5 bond lengths": (
        {"n_tensors": 0, "repulsion_reach": 1.5, "core_start": 0.5, "core_end": 0.75},
        {},
    ),
    "16 vectors, Adam": ({"n_tensors": 0}, {"optimizer": "adam", "learning_rate": 2e-3}),
}
N_TIMED = 40


def configuration(name: str, options: argparse.Namespace) -> PotentialRun:
    """The settings of all, changed as the candidate says."""
    model, changes = CANDIDATES[name]
    steps = options.steps
    training = {"max_steps": steps, "batch_size": options.batch, "compile": not options.eager, "learning_rate": 4e-3}
    training |= {"energy_weight": options.energy_weight, "warmup_steps": 200, "schedule": "linear"}
    training |= {"validate_every": steps, "checkpoint_every": steps}
    sections = {"data": {"files": [str(options.train)]}, "model": {"cutoff": options.cutoff} | model}
    return PotentialRun.model_validate(sections | {"training": training | changes, "seed": options.seed})


def write_toml(config: PotentialRun, path: Path) -> Path:
    """The configuration as a file; TOML writes numbers, strings, booleans and lists as JSON does."""
    sections = config.model_dump(exclude_none=True)
    lines = [f"{key} = {json.dumps(value)}" for key, value in sections.items() if not isinstance(value, dict)]
    for name, section in sections.items():
        if isinstance(section, dict):
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())]
    path.write_text("\n".join(lines))
    return path


def each_its_own_group(file: Path, folder: Path) -> Path:
    """The same structures, to be divided one by one if all are of one molecule; forces are to be there."""
    frames = read_frames(file)
    if len(np.unique(frames.group)) > 1:
        return file.resolve()
    per_frame = {"n_atoms": frames.n_atoms, "energy": frames.energy, "cell": frames.cell, "pbc": frames.pbc}
    per_atom = {"atomic_numbers": frames.atomic_numbers, "positions": frames.positions, "forces": frames.forces}
    copy = folder / f"{file.stem}.npz"
    np.savez(copy, gdb=np.arange(len(frames)), **per_frame, **{k: v for k, v in per_atom.items() if v is not None})
    return copy


def training_step(config: PotentialRun, splits: Splits) -> Callable[[], None]:
    """One step of a new model, optimizer included, always on the same structures."""
    model = build_model(config, splits.train)
    loss, optimizer = PotentialLoss(model, config.training), build_optimizer(model, config.training.optimizer, 1e-4)
    sample = splits.train.select(np.arange(min(config.training.batch_size, len(splits.train))))
    batch = FrameBatches(sample, PairTable.build(sample, model.config.cutoff), model.dtype)[list(range(len(sample)))]

    def step() -> None:
        optimizer.zero_grad()
        loss(batch).total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def force_call(model: Potential, frames: Frames) -> Callable[[], None]:
    """Energy and forces of the first structure."""
    frame = frames.select(np.arange(1))
    graph = FrameBatches(frame, PairTable.build(frame, model.config.cutoff), model.dtype)[[0]].graph

    def call() -> None:
        model(graph)

    return call


def milliseconds(calls: Sequence[Callable[[], None]]) -> list[float]:
    """Median processor time of each, called in turns; the first calls, which compile, do not count."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(N_TIMED):
        for call, spent in zip(calls, times, strict=True):
            start = time.process_time()
            call()
            if turn >= N_TIMED // 4:
                spent.append(1e3 * (time.process_time() - start))
    return [float(np.median(spent)) for spent in times]


def trained(config: PotentialRun) -> Potential:
    """The model after its training."""
    with tempfile.TemporaryDirectory() as folder:
        config_file = write_toml(config, Path(folder) / "config.toml")
        checkpoint = train(config_file, output=Path(folder) / "run", resources=Resources(progress=False))
        return cast(Potential, load(checkpoint))


def errors(model: Potential, tests: dict[str, Frames]) -> dict[str, float]:
    """Root mean squares on each test file."""
    row = {}
    for name, frames in tests.items():
        metrics = evaluate(model, frames)
        row[f"{name}: forces (meV/Å)"] = metrics.force_rmse
        row[f"{name}: energy (meV/atom)"] = metrics.energy_rmse
    return row


def compare(names: Sequence[str], options: argparse.Namespace) -> list[dict[str, float | str]]:
    """A row of the table for each candidate."""
    configs = {name: configuration(name, options) for name in names}
    splits = load_splits(configs[names[0]].data, [options.train])
    tests = {file.stem: read_frames(file) for file in options.test} or {"validation": splits.valid}
    steps = milliseconds([training_step(config, splits) for config in configs.values()])
    rows: list[dict[str, float | str]] = []
    models = []
    for name, config in configs.items():
        models.append(trained(config))
        weights = sum(p.numel() for p in models[-1].parameters())
        rows.append({"network": name, "weights": weights, **errors(models[-1], tests)})
        print(rows[-1], flush=True)
    calls = milliseconds([force_call(model, splits.valid) for model in models])
    return [row | {"ms/step": step, "ms/call": call} for row, step, call in zip(rows, steps, calls, strict=True)]


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = make_parser(
        "Which network gives the lowest force error for the same training, and what does it cost?",
        data=False,
        model=None,
    )
    parser.add_argument(
        "--train", type=Path, required=True, help="labelled structures to train on, anything that egnn-md train reads"
    )
    parser.add_argument("--test", type=Path, nargs="*", default=[], help="labelled structures to test on")
    parser.add_argument("--steps", type=int, default=4000, help="training steps of each network")
    parser.add_argument("--batch", type=int, default=16, help="structures a step")
    parser.add_argument("--cutoff", type=float, default=5.0, help="Å")
    parser.add_argument("--energy-weight", type=float, default=2.0, help="weight of the energy in the loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager", action="store_true", help="train without compiling")
    parser.add_argument("--only", default="", help="train only the networks whose name contains this")
    return parse(parser, arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = options_of(arguments)
    with tempfile.TemporaryDirectory() as folder:
        options.train = each_its_own_group(options.train, Path(folder))
        rows = compare([name for name in CANDIDATES if options.only in name], options)
    print_table(f"{options.steps} steps of {options.batch}", list(rows[0]), [list(row.values()) for row in rows])
    write_json(options.json, {"steps": options.steps, "batch": options.batch, "candidates": rows})


if __name__ == "__main__":
    main()
