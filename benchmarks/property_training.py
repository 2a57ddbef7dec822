"""Our property network and the paper's, trained side by side on the same molecules for the same time, one thread.

Both have twelve heads and learn from the training side of --data's qm9.npz; errors are those of its validation side
(--side test for the test side). Ours is trained as examples/qm9.toml says, the paper's with Adam, cosine decay and the
mean absolute error of (y - mean) / mean absolute deviation, 96 molecules a step. Time is processor time, so that other
work on the machine does not count. Both training steps are compiled, which counts too. Learning rates fall to zero over
the time.

    python benchmarks/property_training.py --data DIR --minutes 60
    python benchmarks/property_training.py --data DIR --minutes 20 --train 1000 2000 5000 10000 --networks vectors

With --train the networks learn from that many molecules (a learning curve, with its slope). Other names of --networks
are variants, for an ablation. --save keeps the last network, as `egnn-md train` would.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

from _common import RESERVED_INDEX, make_parser, parse, print_table, write_json

OURS: dict[str, Any] = {"hidden_dim": 64, "message_dim": 64, "n_layers": 3, "n_vectors": 16, "n_radial": 16}
PAPER: dict[str, Any] = {"hidden_dim": 128, "n_layers": 7}
WAYS: dict[str, dict[str, Any]] = {
    "vectors": {"batch_size": 32, "optimizer": "muon", "learning_rate": 4e-3, "schedule": "linear"},
    "paper": {
        "batch_size": 96,
        "optimizer": "adam",
        "learning_rate": 5e-4,
        "schedule": "cosine",
        "loss": "l1",
        "ema_decay": 0.0,
        "clip_norm": 1e9,
        "warmup_steps": 0,
    },
}
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # name: (network, changes of the model, changes of the training)
    "vectors": ("vectors", {}, {}),
    "paper": ("paper", {}, {}),
    "vectors, l1 loss": ("vectors", {}, {"loss": "l1"}),
    "vectors, Adam": ("vectors", {}, {"optimizer": "adam", "learning_rate": 1e-3}),
    "vectors, one channel": ("vectors", {"n_vectors": 1}, {}),
    "paper, as ours": ("paper", {}, WAYS["vectors"] | {"loss": "root", "ema_decay": 0.999, "clip_norm": 5.0}),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, model=None)
    parser.add_argument("--minutes", type=float, default=60.0, help="processor time of each training")
    parser.add_argument("--networks", nargs="+", default=["vectors", "paper"], choices=list(VARIANTS))
    parser.add_argument("--train", type=int, nargs="+", default=[0], help="training molecules; 0: all")
    parser.add_argument("--side", default="valid", choices=["valid", "test"])
    parser.add_argument("--held-out", type=int, default=0, help="only so many of that side, the first; 0: all")
    parser.add_argument("--save", type=Path, metavar="FILE", help="checkpoint to write of the last training")
    options = parse(parser, arguments)
    import numpy as np

    from egnn_md.chemistry.targets import NAMES
    from egnn_md.data.qm9 import read_qm9
    from egnn_md.evaluation.property import compare, errors_of
    from egnn_md.training.property import divide

    data = read_qm9(options.data / "qm9.npz")
    data = data.select(np.flatnonzero(data.index % 20 != RESERVED_INDEX))
    model = None
    result: dict[str, Any] = {}
    for n_train in options.train:
        train, valid, test = divide(data, n_train or None, 0)
        side = valid if options.side == "valid" else test
        side = side.select(np.arange(min(options.held_out or len(side), len(side))))
        for name in options.networks:
            steps, model = trained(VARIANTS[name], train, 60.0 * options.minutes)
            errors = {target: entry["mae"] for target, entry in errors_of(NAMES, compare(model, side)).items()}
            result[f"{name}, {len(train)}"] = {"steps": steps, "n_train": len(train), "mae": errors}
            print(f"{name}: {steps} steps on {len(train)} molecules", flush=True)
    report(result, options)
    if options.save is not None:
        finish(model, steps, train, valid, test, options)


def finish(model: Any, steps: int, train: Any, valid: Any, test: Any, options: Any) -> None:
    """Write a checkpoint that knows its training data's geometries, with uncertainties set on the validation side."""
    from egnn_md.checkpoint import save
    from egnn_md.chemistry.targets import NAMES
    from egnn_md.evaluation.property import calibrate, compare, errors_of, fit_statistics
    from egnn_md.training.property import training_data

    fit_statistics(model, train)
    sides = {"valid": compare(model, valid), "test": compare(model, test)}
    calibrate(model, sides["valid"])
    information = {
        "name": options.save.stem,
        "description": "QM9's twelve properties (B3LYP/6-31G(2df,p)) of small molecules at their minima",
        "licence": "MIT",
        "split": "the data's own",
        "training_data": training_data(train, NAMES),
        "training": {"steps": steps, "minutes": options.minutes},
        "held_out": {side: errors_of(NAMES, compared) for side, compared in sides.items()},
    }
    save(model, options.save, information)


def processor_seconds() -> float:
    """Of this process and of the compilers it ran."""
    return sum(os.times()[:4])


def trained(variant: Any, train: Any, seconds: float) -> tuple[int, Any]:
    """Steps taken in `seconds` of processor time, and the network with its averaged weights."""
    import numpy as np
    import torch

    from egnn_md.chemistry.targets import NAMES
    from egnn_md.models.property import PropertyConfig, PropertyModel
    from egnn_md.training.module import MovingAverage
    from egnn_md.training.optimizer import build_optimizer, schedule
    from egnn_md.training.property import (
        MoleculeBatches,
        PropertyLoss,
        PropertyTrainingConfig,
        fit_normalisation,
        mean_absolute_deviation,
    )

    network, model_changes, training_changes = variant
    torch.manual_seed(0)
    settings = PropertyTrainingConfig(max_steps=1, compile=True, **(WAYS[network] | training_changes))
    elements = tuple(int(z) for z in np.unique(train.atomic_numbers))
    sizes = (OURS if network == "vectors" else PAPER) | model_changes
    normalisation = fit_normalisation(train, elements, network, NAMES)
    model = PropertyModel(PropertyConfig(elements, **normalisation, network=network, **sizes))
    average = MovingAverage(model, settings.ema_decay)
    optimizer = build_optimizer(model, settings.optimizer, settings.learning_rate)
    loss = PropertyLoss(model, settings, mean_absolute_deviation(train, NAMES))
    batches, random, order, steps = MoleculeBatches(train, NAMES), np.random.default_rng(0), np.empty(0, np.int64), 0
    peaks = [group["lr"] for group in optimizer.param_groups]
    start = processor_seconds()
    while (done := (processor_seconds() - start) / seconds) < 1.0:
        if len(order) < min(settings.batch_size, len(train)):
            order = random.permutation(len(train))
        chosen, order = order[: settings.batch_size], order[settings.batch_size :]
        # The schedule over 1000 parts of the time; its warm-up over steps.
        factor = schedule(settings.schedule, 0, lambda part: part / 1000)(int(1000 * done)) * min(
            1.0, (steps + 1) / 200
        )
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        optimizer.zero_grad()
        loss(batches[chosen.tolist()])[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        average.update_parameters(model)
        steps += 1
    return steps, average.module.eval()


def report(result: dict[str, Any], options: Any) -> None:
    """All errors, the mean ratio to the paper's network, and the slopes of learning curves."""
    import numpy as np

    from egnn_md.chemistry.targets import NAMES, unit_of

    runs = list(result)
    rows = [[name, unit_of(name), *(float(result[run]["mae"][name]) for run in runs)] for name in NAMES]
    print_table(f"MAE, {options.side} side, {options.minutes:g} minutes each", ["", "unit", *runs], rows)
    summary: dict[str, Any] = {"runs": result}
    paper = {run.split(", ")[-1]: run for run in runs if run.startswith("paper, ") and run.count(",") == 1}
    for run in runs:
        beside = paper.get(run.split(", ")[-1])
        if beside is not None and beside != run:
            ratio = float(np.mean([result[run]["mae"][name] / result[beside]["mae"][name] for name in NAMES]))
            print(f"\n{run} / {beside}: mean ratio of the MAEs {ratio:.3f}")
            summary.setdefault("ratio", {})[run] = ratio
    if len(options.train) > 1:
        for network in options.networks:
            curve = [result[run] for run in runs if run.rpartition(", ")[0] == network]
            sizes = np.log([point["n_train"] for point in curve])
            slopes = {
                name: float(np.polyfit(sizes, np.log([point["mae"][name] for point in curve]), 1)[0]) for name in NAMES
            }
            print(f"\n{network}: MAE ~ n^slope; " + ", ".join(f"{name} {slope:.2f}" for name, slope in slopes.items()))
            summary.setdefault("slopes", {})[network] = slopes
    write_json(options.json, summary)


if __name__ == "__main__":
    main()
