"""`egnn-md distill`: a teacher and some molecules in, a fast potential with an honest error out."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from egnn_md.cli.jobs import Executor, Workers
from egnn_md.cli.options import Json, Threads, set_threads
from egnn_md.cli.outcome import Outcome, UserError, say, verb

Option = typer.Option
GFN2 = "gfn2-xtb"
"""The teacher that is no code of the user's."""


@verb
def distill(
    teacher: Annotated[
        str | None,
        typer.Argument(
            help="gfn2-xtb, or module:callable that returns an ASE calculator; with --resume only the latter.",
            show_default=False,
        ),
    ] = None,
    molecules: Annotated[
        list[str] | None, typer.Argument(help="SMILES, .smi files, files of structures.", show_default=False)
    ] = None,
    output: Annotated[Path, Option("--output", "-o", help="Folder.")] = Path("distilled"),
    options: Annotated[
        list[str] | None, Option("--with", metavar="KEY=VALUE", help="Arguments of the callable.", show_default=False)
    ] = None,
    temperature: Annotated[
        list[float] | None, Option(help="K; may be given several times.", show_default="300 and 500")
    ] = None,
    start: Annotated[str, Option(help="Model to fine-tune; none; auto: the shipped one that knows the elements.")] = (
        "auto"
    ),
    labels: Annotated[
        int | None,
        Option(help="Frames to label in a round.", show_default="100; with --budget as many as fit, 500 at most"),
    ] = None,
    rounds: Annotated[int, Option(help="At most.")] = 5,
    target: Annotated[float | None, Option(help="Stop at this force error, meV/Å.", show_default="none")] = None,
    budget: Annotated[str | None, Option(help="Time for everything: 30m, 2h.", show_default="none")] = None,
    steps: Annotated[
        int, Option(help="Training steps of a round; the last has three times as many. With --budget, time decides.")
    ] = 2000,
    ps: Annotated[float, Option(help="Of each copy's dynamics in the last round, ps.")] = 2.0,
    copies: Annotated[int, Option(help="Of the dynamics, over molecules and temperatures.")] = 16,
    timestep: Annotated[float, Option(help="fs.")] = 0.5,
    seed: Annotated[int, Option(help="Of all that is random.")] = 0,
    resume: Annotated[
        Path | None, Option(help="Go on with the distillation in this folder.", show_default=False)
    ] = None,
    workers: Workers = 1,
    executor: Executor = "process",
    threads: Threads = None,
    as_json: Json = False,
) -> Outcome:
    """Make a fast potential of a slow method, for some molecules.

    In rounds: the student's dynamics finds frames, the teacher labels the least familiar of them and some at random,
    the error is measured on the latter before they are learned from. Leaves model.safetensors, report.html, card.md,
    errors.png, data.extxyz and summary.json. A distillation that was killed goes on with --resume; no label is made
    twice.

    Example:  egnn-md distill gfn2-xtb "CC(=O)Oc1ccccc1C(=O)O" -o aspirin --budget 1h

    and then  egnn-md distill --resume aspirin
    """
    from egnn_md.distill.card import headline
    from egnn_md.distill.rounds import Distillation, Machine
    from egnn_md.distill.settings import DistillError, Settings, parse_seconds
    from egnn_md.evaluation.figures import without_failing
    from egnn_md.jobs.executors import make_executor
    from egnn_md.report.distillations import distillation_page

    _needs_training()
    set_threads(threads)
    if resume is not None:
        if molecules:
            raise UserError("--resume goes on with its own molecules: leave them out")
        settings, folder = _settings_of(resume), resume
        _check_teacher(settings, teacher, tuple(options or ()), folder)
    elif teacher is None:
        raise UserError("give a teacher and at least one SMILES or file of structures, or --resume with a folder")
    else:
        folder = output
        if (folder / "distill.json").exists():
            raise UserError(
                f"{folder} already holds a distillation: --resume {folder} goes on with it, -o names another"
            )
        settings = Settings(
            teacher=teacher,
            options=tuple(options or ()),
            molecules=tuple(str(Path(word).resolve()) if Path(word).exists() else word for word in molecules or ()),
            temperatures=tuple(temperature or (300.0, 500.0)),
            start=start,
            labels=labels,
            rounds=rounds,
            target=target,
            budget=parse_seconds(budget),
            steps=steps,
            picoseconds=ps,
            copies=copies,
            timestep=timestep,
            seed=seed,
        )
    with make_executor(executor, workers) as pool:
        try:
            summary = Distillation(folder, settings, Machine(pool, workers, say)).run()
        except FileNotFoundError as error:
            raise DistillError(f"{folder}: {error.filename} is gone") from error
    page = folder / "report.html"
    with without_failing(str(page)):
        distillation_page(folder).write(page)
    return Outcome(summary, lambda: _show(headline(summary), folder), as_json)


def _show(line: str, folder: Path) -> None:
    print(line)
    print(f"open {folder}/report.html; beside it card.md, errors.png, data.extxyz and summary.json")


def _settings_of(folder: Path) -> Any:
    from egnn_md.distill.settings import Settings

    try:
        return Settings.from_dict(json.loads((folder / "distill.json").read_text()))
    except (OSError, json.JSONDecodeError):
        raise UserError(f"{folder} holds no distillation that can be resumed") from None


def _check_teacher(settings: Any, teacher: str | None, options: tuple[str, ...], folder: Path) -> None:
    """A teacher of the user is code, and a folder, which may come from anywhere, must not start code by itself."""
    if (teacher, options) in ((settings.teacher, settings.options), (None, ()) if settings.teacher == GFN2 else ()):
        return
    withs = [word for option in settings.options for word in ("--with", option)]
    again = shlex.join(["egnn-md", "distill", settings.teacher, *withs, "--resume", str(folder)])
    raise UserError(
        f"the teacher of {folder} is code, which runs only if you name it and its options, as at the beginning: {again}"
    )


def _needs_training() -> None:
    try:
        import lightning  # noqa: F401
        import pydantic  # noqa: F401
    except ImportError as error:
        raise UserError(f"distill trains, which needs {error.name}: pip install 'egnn-md[distill]'") from None
