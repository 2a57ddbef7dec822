"""The student of a distillation: where it starts, its trainings, and its error on labelled frames."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from egnn_md.checkpoint import load, read_header, shipped_name
from egnn_md.chemistry.elements import symbols
from egnn_md.chemistry.structures import NEUTRAL
from egnn_md.distill.settings import DistillError
from egnn_md.distill.start import is_charged
from egnn_md.models.potential import Potential

if TYPE_CHECKING:
    from ase import Atoms

FEWEST_VALID: Final = 10
"""Frames, where there are enough: fewer choose a checkpoint by chance."""
VALID_SHARE: Final = 0.1
STARTS: Final = ("organic-xtb", "egnn-xtb")
"""Shipped models, in the order in which they are tried: the first is the faster one, the other knows more."""
BATCH: Final = 4
"""Frames of a step: of few labels, many small steps make the most."""
COMPILED_FROM: Final = 15.0
"""Minutes: shorter trainings do not win back what compiling their steps takes, one or two, with charges up to five."""
FROM_NOTHING, FINE_TUNED = 5e-3, 2e-3
"""Learning rates at their peak."""


@dataclass(frozen=True)
class Length:
    """How long a training is; what is reached first ends it."""

    steps: int | None = None
    minutes: float | None = None


def starting_model(start: str, structures: list[Atoms]) -> str | None:
    """Name or path of the model to fine-tune; None to begin with nothing. Raises DistillError, CheckpointError."""
    elements, ions = {int(z) for atoms in structures for z in atoms.numbers}, any(map(is_charged, structures))
    if start == "none":
        return None
    if start == "auto":
        return next((shipped_name(name) for name in STARTS if _knows(name, elements, ions)), None)
    if not _knows(start, elements, ions):
        kind = "potential for ions" if ions else "potential"
        raise DistillError(f"--start {start} is no {kind} that knows {symbols(sorted(elements))}: --start none")
    return shipped_name(start) or str(Path(start).resolve())


def _knows(model: str, elements: set[int], ions: bool) -> bool:
    header = read_header(model)
    config = header["config"] if header.get("kind") == "potential" else {"elements": ()}
    return elements <= set(config["elements"]) and (not ions or bool(config.get("long_range", False)))


def load_student(model: str | Path) -> Potential:
    """In float32, on the CPU."""
    student = load(model, dtype=torch.float32)
    if not isinstance(student, Potential):
        raise DistillError(f"{model} is a {type(student).__name__}, no potential")
    return student


def measure(model: str | Path, frames: list[Atoms]) -> dict[str, Any]:
    """Force errors (meV/Å) of a student on labelled frames: all together, by temperature and by molecule."""
    from egnn_md.dynamics.batched import Batch

    student, by = load_student(model), dict[str, dict[str, list[Any]]]()
    for first in range(0, len(frames), 32):
        part = frames[first : first + 32]
        batch = Batch(student, part)
        forces = batch.evaluate(batch.positions).forces.numpy()
        starts = np.cumsum([0, *(len(atoms) for atoms in part)])
        for k, atoms in enumerate(part):
            error = (forces[starts[k] : starts[k + 1]] - atoms.get_forces()).ravel()
            for kind, key in (("all", "all"), ("temperature", atoms.info["tag"]), ("molecule", atoms.info["molecule"])):
                by.setdefault(kind, {}).setdefault(str(key), []).append(error)
    table = {kind: {key: _figures(errors) for key, errors in rows.items()} for kind, rows in by.items()}
    return {"n_frames": len(frames), **table.pop("all")["all"], "by": table}


def _figures(errors: list[Any]) -> dict[str, float]:
    joined = np.concatenate(errors)
    mae, rmse = 1e3 * float(np.abs(joined).mean()), 1e3 * float(np.sqrt((joined**2).mean()))
    return {"frames": len(errors), "force_mae": mae, "force_rmse": rmse}


def train(folder: Path, name: str, data: list[Path], init_from: str | None, length: Length, seed: int) -> Path:
    """Train in `folder`, or go on there; returns the finished model's file. `data`: labelled extxyz files.

    The learning rate starts anew. Raises DistillError if there are too few frames.
    """
    from egnn_md.training.loop import Resources, resume
    from egnn_md.training.loop import train as begin

    finished = folder / "model.safetensors"
    if finished.exists():
        return finished
    resources = Resources(accelerator="cpu", progress=False)
    with warnings.catch_warnings():
        # One molecule is what a distillation is for; its card says that energies of others mean nothing.
        warnings.filterwarnings("ignore", message="the compositions of the data do not tell")
        if (folder / "last.ckpt").exists():
            return Path(resume(folder, resources))
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        config = folder.with_name(f"{folder.name}.toml")
        config.write_text(_configuration(name, data, init_from, length, seed))
        return Path(begin(config, None, folder, resources))


def _configuration(name: str, data: list[Path], init_from: str | None, length: Length, seed: int) -> str:
    import json

    from egnn_md.data.frame_files import read_frames
    from egnn_md.data.frames import concatenate

    frames = concatenate([read_frames(path) for path in data])
    steps, minutes = length.steps, length.minutes
    every = 500 if steps is None else max(1, min(500, steps // 4))
    compiled = minutes is not None and minutes >= COMPILED_FROM
    words = {
        **({} if steps is None else {"max_steps": steps}),
        **({} if minutes is None else {"max_minutes": round(minutes, 3)}),
        "batch_size": min(BATCH, len(frames)),
        "validate_every": every,
        "checkpoint_every": max(1, min(200, every)),
        "warmup_steps": 100,
        "stress_weight": 10.0 if frames.stress is not None else 0.0,
        "learning_rate": FROM_NOTHING if init_from is None else FINE_TUNED,
        "ema_decay": 0.99 if steps is not None and steps < 3000 else 0.999,
        "compile": str(compiled).lower(),
    }
    lines = [f"name = {json.dumps(name)}", f"seed = {seed}"]
    lines += [] if init_from is None else [f"init_from = {json.dumps(init_from)}"]
    lines += ["[data]", f"files = {json.dumps([str(path.resolve()) for path in data])}"]
    lines += [f"valid_fraction = {valid_fraction(frames.group.tolist()):.3f}", "test_fraction = 0.0"]
    if init_from is None and frames.charge is not None and bool(np.any(np.abs(frames.charge) > NEUTRAL)):
        lines += ["[model]", "long_range = true", "charge_response = true"]
    lines += ["[training]"]
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in words.items())]) + "\n"


def valid_fraction(groups: list[str]) -> float:
    """The smallest fraction of groups, from `VALID_SHARE` on, that leaves `FEWEST_VALID` frames for validation; fewer
    where no fraction leaves so many.

    Raises DistillError if no fraction leaves any frame on both sides.
    """
    from egnn_md.data.split import side_of_group

    fractions = [round(float(fraction), 3) for fraction in np.arange(VALID_SHARE, 0.495, 0.01)]
    valid = [[side_of_group(group, fraction, 0.0) for group in groups].count("valid") for fraction in fractions]
    for enough in range(min(FEWEST_VALID, max(1, len(groups) // 4)), 0, -1):
        for fraction, count in zip(fractions, valid, strict=True):
            if enough <= count < len(groups):
                return fraction
    raise DistillError(f"{len(groups)} labelled frames are too few to train and to validate: more --labels")
