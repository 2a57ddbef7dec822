"""`egnn-md md`: molecular dynamics into a run folder."""

from __future__ import annotations

import hashlib
import signal
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from egnn_md.cli.jobs import Batch, Executor, Shard, Workers, chunk_size, model_spec, parse_batch, run_job, several
from egnn_md.cli.options import Json, Overwrite, Threads, make_calculator, set_threads
from egnn_md.cli.outcome import Outcome, UserError, say, shows_progress, verb

if TYPE_CHECKING:
    from egnn_md.dynamics.many import ModelSpec
    from egnn_md.dynamics.simulation import Simulation
    from egnn_md.dynamics.state import RestartState

Setting = typer.Option
COMPILED_SAVES = 0.6
"""Of the time of a force call, about."""
LONG_SECONDS = 300.0
"""What compiling must save to be worth a line."""
LINE_SECONDS = 60.0
"""Between lines of progress where there is no terminal."""


@verb
def md(
    structure: Annotated[
        str | None,
        typer.Argument(
            help="A file that ase reads, a molecule's name (CH3CH2OH) or a SMILES. With --resume, the run folder.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, Setting(help="A shipped model's name, or a checkpoint.", show_default="organic-xtb")
    ] = None,
    engine: Annotated[
        str | None, Setting(help="Whose integrators move the atoms: ase or openmm.", show_default="ase")
    ] = None,
    ensemble: Annotated[
        str | None,
        Setting(help="nve (Verlet), nvt (Langevin) or npt (Langevin, isotropic barostat).", show_default="nvt"),
    ] = None,
    temperature: Annotated[float | None, Setting(help="K.", show_default="300")] = None,
    pressure: Annotated[float | None, Setting(help="bar; npt.", show_default="1.01325")] = None,
    friction: Annotated[float | None, Setting(help="1/ps; nvt and npt.", show_default="5")] = None,
    timestep: Annotated[float | None, Setting(help="fs.", show_default="0.5")] = None,
    steps: Annotated[int | None, Setting(help="In all, with those before a --resume.", show_default="10000")] = None,
    interval: Annotated[int | None, Setting(help="Steps between frames and log lines.", show_default="10")] = None,
    seed: Annotated[int | None, Setting(help="Of velocities and noise.", show_default="random; recorded")] = None,
    format: Annotated[
        str | None, Setting(help="Of the trajectory: traj, extxyz, xtc, dcd or h5.", show_default="traj")
    ] = None,
    output: Annotated[Path | None, Setting("--output", "-o", help="Run folder.", show_default="run")] = None,
    resume: Annotated[bool, Setting("--resume", help="Go on with the run in the folder.")] = False,
    overwrite: Overwrite = False,
    state_interval: Annotated[float, Setting(help="Seconds between restart states.")] = 10.0,
    device: Annotated[str | None, Setting(help="cpu or cuda.", show_default="cpu")] = None,
    dtype: Annotated[str | None, Setting(help="float32 or float64.", show_default="float32")] = None,
    compile: Annotated[
        bool | None,
        Setting(
            "--compile/--no-compile",
            help="Compiled force calls: made now if need be, or never.",
            show_default="where `egnn-md compile` has made them",
        ),
    ] = None,
    workers: Workers = 1,
    shard: Shard = None,
    executor: Executor = "process",
    chunk: Annotated[int, Setting(help="Of many: structures handed to a worker at once.")] = 64,
    batch: Batch = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> Outcome:
    """Run molecular dynamics.

    The run folder gets report.html (open it: the molecule plays beside energies and temperature), a trajectory,
    log.csv, summary.json, plot.png and last.extxyz (the last good structure, with velocities). Velocities are drawn
    from the Maxwell-Boltzmann distribution unless the structure has some. Ctrl-C stops cleanly; a run that was stopped
    or killed goes on with --resume. A simulation that blows up stops with its last good frame, and exits with code 1.

    A file of many structures runs in batches (nve, nvt), by --workers processes, into trajectory.extxyz of the run
    folder, one trajectory after another in the file's order, and trajectory.extxyz.csv with a line for each. The same
    command goes on after a kill. FILE@-1 takes the last structure alone.

    Example:  egnn-md md ethanol.xyz --ensemble nvt --temperature 300 --steps 10000 -o run/

    and then  egnn-md md --resume run/ --steps 20000

    or with   egnn-md md ligand.pdb --engine openmm --format dcd -o run/
    """
    if state_interval < 0:
        raise UserError(f"--state-interval must not be negative, not {state_interval}")
    given: dict[str, Any] = {
        "engine": engine,
        "ensemble": ensemble,
        "temperature": temperature,
        "pressure": pressure,
        "friction": friction,
        "timestep": timestep,
        "steps": steps,
        "interval": interval,
        "seed": seed,
        "format": format,
    }
    words = ("engine", "ensemble", "format")  # NVT and nvt are the same
    given |= {name: given[name].lower() for name in words if given[name] is not None}
    settings = {name: value for name, value in given.items() if value is not None}
    machine = {"model": model, "device": device, "dtype": dtype}
    if resume:
        folder = _folder_to_resume(structure, output, overwrite)
        prepare = _resume(structure, folder, settings, machine, threads, compile)
    elif structure is not None and several(structure):
        set_threads(threads)
        spec = model_spec(model or "organic-xtb", device or "cpu", dtype or "float32")
        at_once = parse_batch(batch)
        pool = {"workers": workers, "shard": shard, "executor": executor, "overwrite": overwrite}
        pool["size"] = chunk_size(chunk, at_once)
        return _many(Path(structure), output or Path("run"), spec, settings, at_once, pool, as_json)
    elif structure is None:
        raise UserError("give a structure: a file that ase reads, or a molecule's name such as CH3CH2OH")
    else:
        folder = output or Path("run")
        prepare = _start(structure, folder, settings, machine, threads, overwrite, compile)
    return run_to_outcome(prepare, folder, state_interval, as_json, "egnn-md md --resume")


def _many(
    file: Path,
    folder: Path,
    spec: ModelSpec,
    given: dict[str, Any],
    at_once: int | None,
    pool: dict[str, Any],
    as_json: bool,
) -> Outcome:
    from egnn_md.dynamics.many import MDWorker, check_settings
    from egnn_md.dynamics.settings import MDSettings

    if given.get("format", "extxyz") != "extxyz":
        raise UserError("the trajectories of many structures are written as extxyz")
    settings = MDSettings(**{"seed": 0, **given, "format": "extxyz"})
    check_settings(settings)
    work = {"verb": "md", "dtype": spec.dtype, **settings.to_dict(), **({"batch": at_once} if at_once else {})}
    work |= {"model_sha256": identity(spec.model)["model_sha256"]}
    target, worker = folder / "trajectory.extxyz", MDWorker(spec, settings, at_once)
    return run_job(file, target, worker, work, text="simulating", as_json=as_json, **pool)


def _start(
    structure: str,
    folder: Path,
    options: dict[str, Any],
    machine: dict[str, str | None],
    threads: int | None,
    overwrite: bool,
    compile: bool | None,
) -> Simulation:
    import secrets

    from egnn_md.dynamics import md as run
    from egnn_md.dynamics.settings import MDSettings
    from egnn_md.dynamics.starting_structures import read_structure, read_topology
    from egnn_md.dynamics.state import refuse_old_run

    settings = MDSettings(**{"seed": secrets.randbits(31), **options})
    if not overwrite:
        refuse_old_run(folder)
    atoms = read_structure(structure)
    model, device, dtype = machine["model"] or "organic-xtb", machine["device"] or "cpu", machine["dtype"] or "float32"
    set_threads(threads)
    atoms.calc = make_calculator(model, device, dtype, "auto" if compile is None else compile)
    information = {
        "engine": settings.engine,
        "structure": structure,
        "model": model,
        "device": device,
        "dtype": dtype,
        "compiled": atoms.calc.compiled,
        **identity(model),
    }
    simulation = run.start(atoms, settings, folder, information, overwrite, read_topology(structure, atoms))
    if compile is None and not atoms.calc.compiled:
        _advise(atoms, settings.steps, f"egnn-md compile {model} --dtype {dtype}")
    return simulation


def _advise(atoms: Any, steps: int, command: str) -> None:
    """Before a run that will take long: what compiling would save, by the time of one force call."""
    moved = atoms.copy()
    moved.calc = atoms.calc
    seconds = 0.0
    for _ in range(2):  # the first call finds the neighbours
        moved.positions += 1e-3
        began = time.perf_counter()
        moved.get_forces()
        seconds = time.perf_counter() - began
    saved = COMPILED_SAVES * seconds * steps
    if saved > LONG_SECONDS:
        say(
            f"force calls are not compiled: `{command}` takes a minute or two, once, and would save about "
            f"{saved / 60:.0f} minutes of this run"
        )


def identity(model: str) -> dict[str, str]:
    """Where the model is and the SHA-256 of its bytes: a resumed run must have the same."""
    from egnn_md.checkpoint import resolve

    path = resolve(model)
    with path.open("rb") as file:
        return {"model_file": str(path.resolve()), "model_sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _folder_to_resume(structure: str | None, output: Path | None, overwrite: bool) -> Path:
    if overwrite:
        raise UserError("--resume and --overwrite contradict each other")
    named = Path(structure) if structure is not None and Path(structure).is_dir() else None
    if named is not None and output is not None and named.resolve() != output.resolve():
        raise UserError(f"--resume {named} or --output {output}: which of the two is to go on?")
    return named or output or Path("run")


def _resume(
    structure: str | None,
    folder: Path,
    options: dict[str, Any],
    machine: dict[str, str | None],
    threads: int | None,
    compile: bool | None,
) -> Simulation:
    from egnn_md.dynamics import md as run
    from egnn_md.dynamics.state import RestartState

    state = RestartState.load(folder / "state.npz")
    _check_same(state, folder, structure, options, machine)
    known = state.information
    shipped_or_given = machine["model"] or known["model"]
    try:
        found = identity(shipped_or_given)
    except ValueError:
        shipped_or_given = known["model_file"]  # a relative path, resumed from another folder
        found = identity(shipped_or_given)
    if found["model_sha256"] != known["model_sha256"]:
        raise UserError(f"{shipped_or_given} is not the model that the run in {folder} was begun with")
    set_threads(threads)
    as_before: bool | Literal["auto"] = "auto" if known.get("compiled") else False  # round-off is part of a run
    wanted = as_before if compile is None else compile
    calculator = make_calculator(shipped_or_given, machine["device"] or known["device"], known["dtype"], wanted)
    if known.get("compiled") and not calculator.compiled:
        say("the run was begun with compiled force calls; it goes on without them, equal but for round-off")
    return run.resume(state, folder, calculator, options.get("steps"))


def _check_same(
    state: RestartState, folder: Path, structure: str | None, options: dict[str, Any], machine: dict[str, str | None]
) -> None:
    """Refuse options that contradict the run; repeating its own is fine."""
    begun = {field.name: getattr(state.settings, field.name) for field in fields(state.settings)}
    begun["dtype"] = state.information["dtype"]
    asked = {**options, **({"dtype": machine["dtype"]} if machine["dtype"] else {})}
    for name, value in asked.items():
        if name != "steps" and value != begun[name]:
            raise UserError(f"the run in {folder} was begun with --{name} {begun[name]}: it cannot go on with {value}")
    if structure is not None and not Path(structure).is_dir():
        from egnn_md.dynamics.starting_structures import read_structure

        if read_structure(structure).get_atomic_numbers().tolist() != state.arrays["numbers"].tolist():
            raise UserError(f"{structure} does not have the atoms of the run in {folder}")


def run_to_outcome(
    simulation: Simulation, folder: Path, state_interval: float, as_json: bool, resume_by: str
) -> Outcome:
    """Run with a progress bar and a plot at the end. `resume_by`: the command, but for the folder, to go on with."""
    summary = _run(simulation, folder, state_interval)
    return Outcome(summary, lambda: _show(summary, folder), as_json, _exit_code(summary, folder, resume_by))


def _run(simulation: Simulation, folder: Path, state_interval: float) -> dict[str, Any]:
    from egnn_md.dynamics.bond_changes import bond_changes
    from egnn_md.dynamics.md_plots import plot_run
    from egnn_md.evaluation.figures import without_failing
    from egnn_md.report.runs import run_page
    from egnn_md.storage import write_json

    settings = simulation.settings
    if simulation.step:
        say(f"going on from step {simulation.step} of {settings.steps} in {folder}")
    with _Progress(simulation.step, settings.steps) as progress:
        summary = simulation.run(progress, state_interval)
    picture = folder / "plot.png"
    mass = float(simulation.atoms.get_masses().sum())
    with without_failing(str(picture)):
        plot_run(folder / "log.csv", picture, summary["n_atoms"], settings.ensemble, settings.temperature, mass)
    page = folder / "report.html"
    with without_failing(str(page)):
        made = run_page(folder)
        made.write(page)
        frames: Sequence[Any] = made.scene.frames if made.scene is not None else ()
        if len(frames) > 1 and (changes := bond_changes(frames[0], frames[-1])) is not None:
            summary |= {"bonds_broken": changes.broken, "bonds_formed": changes.formed}
            write_json(folder / "summary.json", summary)
    return summary


class _Progress:
    """A bar on stderr with the temperature and ns/day; where there is no terminal, a line a minute."""

    def __init__(self, step: int, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self.terminal, self.steps, self.told = shows_progress(), steps, time.monotonic()
        text = TextColumn("{task.description}")
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), text)
        self.bar = Progress(*columns, console=console, disable=not self.terminal)
        self.task = self.bar.add_task("", total=steps, completed=step)

    def __enter__(self) -> _Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def __call__(self, step: int, values: dict[str, float]) -> None:
        text = f"{values['temperature_K']:.0f} K  {values['ns_per_day']:.2f} ns/day"
        self.bar.update(self.task, completed=step, description=text)
        if not self.terminal and time.monotonic() - self.told >= LINE_SECONDS:
            say(f"step {step} of {self.steps}  {text}")
            self.told = time.monotonic()


def _exit_code(summary: dict[str, Any], folder: Path, resume_by: str) -> int:
    """0 finished, 1 blew up, 128 + signal interrupted (as shells count); says so on stderr."""
    if summary["status"] == "blew_up":
        say(f"the simulation blew up: {summary['reason']}; the last good structure is {folder / 'last.extxyz'}", True)
        return 1
    if summary["status"] == "interrupted":
        say(f"stopped at step {summary['steps']}; to go on: {resume_by} {folder}")
        return 128 + int(signal.Signals[summary["reason"]])
    return 0


def _show(summary: dict[str, Any], folder: Path) -> None:
    from egnn_md.dynamics.bond_changes import listed
    from egnn_md.report.runs import with_error

    settings = summary["settings"]
    what = f"{summary['formula']}: {summary['time_ps']:g} ps of {settings['ensemble']}"
    print(f"{what}, {summary['status'].replace('_', ' ')}, {summary['ns_per_day']:.2f} ns/day")
    for name, unit in (("temperature_K", "K"), ("volume_A3", "Å³"), ("pressure_bar", "bar")):
        mean, error = summary[f"mean_{name}"], summary[f"mean_{name}_error"]
        if mean is not None:
            said = with_error(mean, float("nan") if error is None else error, unit)
            print(f"mean {name.partition('_')[0]} {said}, the first fifth left out")
    if "accepted_fraction" in summary:
        print(f"{100 * summary['accepted_fraction']:.1f} % of the strides accepted")
    if summary["energy_drift_meV_per_atom_per_ps"] is not None:
        print(f"drift of the total energy {summary['energy_drift_meV_per_atom_per_ps']:+.4f} meV/atom/ps")
    for name in ("broken", "formed"):
        if names := summary.get(f"bonds_{name}"):
            print(f"bonds {name} at the end: {listed(names)}")
    if summary["max_extrapolation"] is not None:
        error = summary.get("expected_force_error_meV_per_A")
        tested = "" if error is None else f"; forces of such atoms were off by {error:.0f} meV/Å in the model's tests"
        print(f"largest extrapolation {summary['max_extrapolation']:.2f} (above 1: unlike the training data){tested}")
    print(f"open {folder}/report.html; beside it log.csv, summary.json, plot.png, trajectory.{settings['format']}")
