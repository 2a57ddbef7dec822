"""The end of a distillation: the model, its card, its figures, its data."""

from __future__ import annotations

import contextlib
import csv
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from egnn_md.checkpoint import load, read_header, save
from egnn_md.chemistry.elements import symbols
from egnn_md.chemistry.structures import charge_of, said_charge
from egnn_md.distill.explore import affordable, explore
from egnn_md.distill.settings import Settings
from egnn_md.distill.start import read_own
from egnn_md.distill.student import load_student, measure
from egnn_md.distill.teacher import Teacher
from egnn_md.evaluation.figures import without_failing
from egnn_md.storage import read_json, write_json, write_whole

if TYPE_CHECKING:
    from ase import Atoms

NVE_PS: Final = 2.0
STABILITY_PS: Final = 5.0
NVE_SHARE, STABILITY_SHARE = 0.25, 0.5
"""Of the budget that is left at the end."""


def finish(
    folder: Path,
    settings: Settings,
    teacher: Teacher,
    trained: Path,
    data: list[Path],
    test: Path,
    errors: list[dict[str, Any]],
    start: str | None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Write model.safetensors, card.md, errors.png, data.extxyz and summary.json into the folder; the summary.

    seconds: what is left of the budget; None: there is none.
    """
    import ase.io

    frames = [atoms for path in data for atoms in read_own(path)]
    unseen = read_own(test)
    if not (folder / "summary.json").exists():
        with write_whole(folder / "data.extxyz") as temporary:
            ase.io.write(temporary, [*frames, *unseen], format="extxyz")
        error = measure(trained, unseen)
        failed = sum(_failed(path) for path in [*data, test])
        summary: dict[str, Any] = {
            "model": str(folder / "model.safetensors"),
            "teacher": teacher.identity(),
            "start": start,
            "labels": len(frames),
            "test_labels": len(unseen),
            "failed_labels": failed,
            "test": error,
            "rounds": [{key: found[key] for key in ("round", "n_frames", "force_mae")} for found in errors],
            "elements": symbols(sorted({int(z) for atoms in frames for z in atoms.numbers})),
            "charges": sorted({round(charge_of(atoms), 3) for atoms in frames}),
            **_dynamics(trained, unseen, settings, seconds),
            **_speed(trained, unseen[0], teacher),
        }
        header = read_header(trained)
        kept = ("licence", "split", "training_data", "training_config", "init_from", "held_out")
        about = {key: header[key] for key in kept if key in header}
        about |= {"name": folder.resolve().name, "description": f"distilled from {settings.teacher}"}
        about["distillation"] = {key: summary[key] for key in ("teacher", "labels", "test", "rounds")}
        save(load(trained, dtype=torch.float32), folder / "model.safetensors", about)
        with without_failing(str(folder / "errors.png")):
            _draw(errors, error, folder / "errors.png")
        with write_whole(folder / "card.md") as temporary:
            temporary.write_text(card(summary, settings))
        write_json(folder / "summary.json", summary)
    found: dict[str, Any] = read_json(folder / "summary.json")
    return found


def headline(summary: dict[str, Any]) -> str:
    """What a chemist wants to know, in a line."""
    tag, row = next(iter(summary["test"]["by"]["temperature"].items()))
    faster = summary["teacher_seconds"] / summary["student_seconds"]
    labels = summary["labels"] + summary["test_labels"]
    return (
        f"{summary['model']}: {row['force_mae']:.0f} meV/Å on unseen frames at {tag}, "
        f"{faster:.1f}x as fast as {summary['teacher']['teacher']}, {labels} labels"
    )


def card(summary: dict[str, Any], settings: Settings) -> str:
    """Markdown."""
    test, rounds = summary["test"], summary["rounds"]
    lines = [f"# {Path(summary['model']).parent.name}", "", headline(summary), ""]
    lines += [f"- Teacher: {settings.teacher} {' '.join(settings.options)}".rstrip()]
    lines += [f"- Started from: {summary['start'] or 'nothing'}; {summary['labels']} labels in {len(rounds)} rounds"]
    lines += [f"- {summary['failed_labels']} labels failed and were set aside", f"- Elements: {summary['elements']}"]
    lines += [f"- Charges: {', '.join(f'{q:+g}' if q else '0' for q in summary['charges'])} e; closed shells only"]
    lines += ["", "## Errors", ""]
    lines += [f"Forces on {test['n_frames']} frames of its own dynamics that no training saw.", ""]
    lines += ["| | frames | MAE meV/Å | RMSE meV/Å |", "|---|---|---|---|"]
    for kind in ("temperature", "molecule"):
        for name, row in test["by"][kind].items():
            lines.append(f"| {name} | {row['frames']} | {row['force_mae']:.1f} | {row['force_rmse']:.1f} |")
    lines += ["", "Before each training, on frames drawn at random that the student had not seen:", ""]
    lines += [f"- round {row['round']}: {row['force_mae']:.1f} meV/Å ({row['n_frames']} frames)" for row in rounds]
    lines += ["", "## Dynamics", ""]
    lines += [f"- NVE, {summary['nve_ps']:.3g} ps: drift {summary['nve_drift']:+.3f} meV/atom/ps"]
    lines += [
        f"- {summary['stable']} of {summary['stability_copies']} copies whole after "
        f"{summary['stability_ps']:.3g} ps at "
        f"{max(settings.temperatures):g} K"
    ]
    lines += [
        f"- One force call: {1e3 * summary['student_seconds']:.2f} ms; the teacher's "
        f"{1e3 * summary['teacher_seconds']:.2f} ms"
    ]
    lines += ["", "## Where it must not be used", ""]
    lines += [
        f"Above {max(settings.temperatures):g} K, for other molecules and charges than those it learned from, for "
        "reactions and radicals. The extrapolation signal tells when a structure is unlike its data."
    ]
    return "\n".join(lines) + "\n"


def _failed(labelled: Path) -> int:
    with Path(f"{labelled}.csv").open(newline="") as file:
        return sum(row["status"] == "failed" for row in csv.DictReader(file))


def _dynamics(trained: Path, frames: list[Atoms], settings: Settings, seconds: float | None) -> dict[str, Any]:
    """Drift in NVE at the lowest temperature and copies that stay whole at the highest; no more than fits."""
    from egnn_md.dynamics.batched import Batch, State, run

    student, hottest = load_student(trained), max(settings.temperatures)
    start = frames[0].copy()
    batch = Batch(student, [start])
    total: list[float] = []

    def observe(step: int, state: State) -> None:
        total.append(float(state.energy[0] + batch.kinetic_energy(state)[0]))

    part = None if seconds is None else NVE_SHARE * seconds
    steps = max(100, round(1e3 * affordable(batch, NVE_PS, settings.timestep, part) / settings.timestep))
    picoseconds = 1e-3 * steps * settings.timestep
    state = batch.start(torch.tensor([min(settings.temperatures)]), torch.Generator().manual_seed(1))
    run(batch, state, steps, settings.timestep, every=max(1, steps // 100), observe=observe)
    slope = np.polyfit(np.linspace(0, picoseconds, len(total)), total, 1)[0] if np.isfinite(total).all() else np.nan
    copies = min(settings.copies, 8)
    found = explore(
        student,
        [start],
        (hottest,),
        copies=copies,
        picoseconds=STABILITY_PS,
        timestep=settings.timestep,
        name="stability",
        seed=settings.seed,
        seconds=None if seconds is None else STABILITY_SHARE * seconds,
    )
    drift = 1e3 * float(slope) / len(start)
    return {
        "nve_drift": drift,
        "nve_ps": picoseconds,
        "stability_copies": copies,
        "stability_ps": found.picoseconds,
        "stable": copies - sum(found.ended.values()),
    }


def _speed(trained: Path, atoms: Atoms, teacher: Teacher) -> dict[str, float]:
    """Seconds of one call each, the fastest of several, at places that differ a little."""
    from egnn_md.predict import ChargeError, PredictionError, Predictor

    predictor, calculate = Predictor(trained, dtype="float32"), teacher.open()
    rng, numbers = np.random.default_rng(0), np.asarray(atoms.numbers, np.int64)
    student, labels, moved, charge = [], [], atoms.copy(), said_charge(atoms)
    calculator = calculate(moved)
    for k in range(12):
        moved.positions = atoms.positions + 0.003 * rng.normal(size=atoms.positions.shape)
        began = time.perf_counter()
        with contextlib.suppress(PredictionError, ChargeError):  # of a bad student
            predictor(moved.positions, numbers, moved.cell.array, moved.pbc, charge)
        student.append(time.perf_counter() - began)
        if k < 4:
            moved.calc = calculator
            began = time.perf_counter()
            moved.get_forces()
            labels.append(time.perf_counter() - began)
            moved.calc = None
    return {"student_seconds": min(student), "teacher_seconds": min(labels)}


def _draw(errors: list[dict[str, Any]], last: dict[str, Any], path: Path) -> None:
    from egnn_md.evaluation.figures import figure

    drawn, axes = figure(4.0)
    values = [found["force_mae"] for found in errors] + [last["force_mae"]]
    names = [str(found["round"]) for found in errors] + ["end"]
    axes.plot(names, values, "o-")
    axes.set(xlabel="round", ylabel="force MAE on unseen frames (meV/Å)", yscale="log")
    drawn.savefig(path, dpi=150)
