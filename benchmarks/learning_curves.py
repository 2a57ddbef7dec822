"""What a start from a shipped model saves: force errors of trainings on 10, 30, 100, 300 labelled frames, from nothing
and from each of --start.

All trainings are alike but for the start and the frames (steps, frames of a step, the schedule; the learning rates are
those of `egnn-md distill`); a tenth of the frames given chooses the checkpoint. The test is on frames of --data that no
training sees.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import load_potential, make_parser, parse, print_table, write_json

from egnn_md.data.frame_files import read_frames
from egnn_md.data.frames import Frames
from egnn_md.distill.student import BATCH, FINE_TUNED, FROM_NOTHING
from egnn_md.evaluation.figures import figure
from egnn_md.evaluation.potential import evaluate


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__ or "", data=False, model=None)
    parser.add_argument("frames", type=Path, help="labelled frames of one molecule: npz, extxyz")
    parser.add_argument("--start", nargs="+", default=["none", "egnn-xtb"], help="none, shipped names, checkpoints")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 30, 100, 300])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--test-frames", type=int, default=300)
    parser.add_argument("--picture", type=Path, default=None)
    options = parse(parser, arguments)
    frames = read_frames(options.frames)
    order = np.random.default_rng(0).permutation(len(frames))
    test = frames.select(np.sort(order[: options.test_frames]))
    curves: dict[str, list[float]] = {}
    for start in options.start:
        for size in options.sizes:
            chosen = np.sort(order[options.test_frames : options.test_frames + size])
            error = trained(frames.select(chosen), test, start, options.steps, options.batch)
            curves.setdefault(start, []).append(error)
            print(f"{start}, {size} labels: {error:.1f} meV/Å", flush=True)
    print_table("Force MAE, meV/Å", ("start", *map(str, options.sizes)), [(k, *v) for k, v in curves.items()])
    if options.picture is not None:
        draw(options.sizes, curves, options.picture)
    result = {"sizes": options.sizes, "force_mae": curves}
    write_json(options.json, result)
    return result


def trained(frames: Frames, test: Frames, start: str, steps: int, batch: int) -> float:
    """The force error (meV/Å) on `test` of a training on `frames`."""
    from egnn_md.training.loop import Resources, train

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = ("n_atoms", "atomic_numbers", "positions", "energy", "forces")
        np.savez(folder / "frames.npz", **{name: getattr(frames, name) for name in names})
        every = max(1, steps // 6)
        lines = ['name = "curve"', *([] if start == "none" else [f'init_from = "{start}"'])]
        lines += ["[data]", 'files = ["frames.npz"]', "valid_fraction = 0.1", "test_fraction = 0.0", "[training]"]
        lines += [f"max_steps = {steps}", f"batch_size = {batch}", "warmup_steps = 100", "ema_decay = 0.99"]
        lines += [f"learning_rate = {FROM_NOTHING if start == 'none' else FINE_TUNED}", f"validate_every = {every}"]
        (folder / "curve.toml").write_text("\n".join(lines) + "\n")
        with warnings.catch_warnings():  # forces are what is compared
            warnings.filterwarnings("ignore", message="the compositions of the data do not tell")
            model = train(folder / "curve.toml", None, folder / "run", Resources(accelerator="cpu", progress=False))
        return float(evaluate(load_potential(str(model), "float32"), test).to_dict()["force_mae"])


def draw(sizes: list[int], curves: dict[str, list[float]], path: Path) -> None:
    """The curves, in double logarithmic axes."""
    drawn, axes = figure(4.0)
    for start, errors in curves.items():
        axes.loglog(sizes, errors, "o-", label="from nothing" if start == "none" else f"from {start}")
    axes.set(xlabel="labelled frames", ylabel="force MAE on unseen frames (meV/Å)")
    axes.legend()
    drawn.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
