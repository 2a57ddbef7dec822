"""`egnn-md rollout`: a trajectory from a propagator, without forces."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from egnn_md.cli.options import Json, Overwrite, Threads, check_device, parse_dtype, set_threads
from egnn_md.cli.outcome import Outcome, UserError, positive, progress_bar, table, verb

if TYPE_CHECKING:
    from torch import nn

ROLLOUTS: Final[dict[str, str]] = {
    # kind of the checkpoint: function (name, model, start, output, options) -> Outcome, as module:name
    "integrator": "egnn_md.cli.rollout:particles",
    "velocity-egnn": "egnn_md.cli.rollout:particles",
    "flow": "egnn_md.cli.rollout_molecules:molecules",
}
PARTICLES: Final = ("frames", "start_frame", "side", "systems", "substeps", "device", "dtype")
"""Options for particles only; what is not for particles only, and not for all, is for molecules only."""
FOR_ALL: Final = ("threads", "overwrite", "as_json")
Particles, Molecules = "Particles", "Molecules"


@verb
def rollout(
    model: Annotated[str, typer.Argument(help="A shipped propagator's or flow map's name, or a checkpoint.")],
    start: Annotated[
        str | None,
        typer.Argument(
            help="Particles: a file of `egnn-md data nbody`. Molecules: a file, a name (CH3CH2OH), a SMILES.",
            show_default=False,
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Frames of 0.1 to go on for.", show_default="48", rich_help_panel=Particles)
    ] = None,
    start_frame: Annotated[
        int | None, typer.Option(help="Frame of the file to start from.", show_default="0", rich_help_panel=Particles)
    ] = None,
    side: Annotated[
        str | None,
        typer.Option(
            "--split",
            "--side",
            help="rollout, train, valid or test: part of the file.",
            show_default="rollout",
            rich_help_panel=Particles,
        ),
    ] = None,
    systems: Annotated[
        int | None, typer.Option(help="Only the first so many.", show_default="all", rich_help_panel=Particles)
    ] = None,
    substeps: Annotated[
        int | None,
        typer.Option(help="Sub-steps of a frame.", show_default="the model's own", rich_help_panel=Particles),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda.", show_default="cpu", rich_help_panel=Particles)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or float64.", show_default="float32", rich_help_panel=Particles)
    ] = None,
    stride: Annotated[
        float | None, typer.Option(help="fs of one step.", show_default="10", rich_help_panel=Molecules)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Strides in all.", show_default="10000", rich_help_panel=Molecules)
    ] = None,
    ensemble: Annotated[
        str | None, typer.Option(help="nvt (Langevin) or nve.", show_default="nvt", rich_help_panel=Molecules)
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="K.", show_default="300", rich_help_panel=Molecules)] = None,
    friction: Annotated[
        float | None, typer.Option(help="1/ps; nvt.", show_default="5", rich_help_panel=Molecules)
    ] = None,
    energy_filter: Annotated[
        bool | None,
        typer.Option(
            "--filter/--no-filter",
            help="nvt: take back strides that fail a Metropolis test of the energy.",
            show_default="filter",
            rich_help_panel=Molecules,
        ),
    ] = None,
    potential: Annotated[
        str | None,
        typer.Option(
            help="A potential whose energies the filter tests and the log shows.",
            show_default="the flow map's own energy",
            rich_help_panel=Molecules,
        ),
    ] = None,
    interval: Annotated[
        int | None,
        typer.Option(help="Strides between frames and log lines.", show_default="10", rich_help_panel=Molecules),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of velocities and noise.", show_default="random; recorded", rich_help_panel=Molecules),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="Of the trajectory: traj, extxyz, xtc, dcd or h5.", show_default="traj", rich_help_panel=Molecules
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the rollout in the folder.", rich_help_panel=Molecules)
    ] = False,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the network: for long rollouts.", rich_help_panel=Molecules)
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder.")] = Path("run"),
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> Outcome:
    """Go on from a start, one predicted step after another, without forces.

    Particles: frame after frame, compared with the truth where the file has it; leaves trajectory.npz, plots of the
    error and of what physics conserves, an animation, report.html and summary.json in the run folder.

    Molecules: strides of a flow map, with a thermostat; the run folder is that of `egnn-md md`, and Ctrl-C and --resume
    work as there. A file of many molecules runs in batches, into trajectory.extxyz and a line each in
    trajectory.extxyz.csv; the same command goes on after a kill. FILE@0 takes the first alone.

    Example:  egnn-md rollout nbody-charged5 nbody.npz --frames 48 -o run/

    or        egnn-md rollout ethanol-flow CH3CH2OH --stride 10 --steps 10000 --temperature 300 -o run/
    """
    given = {name: value for name, value in locals().items() if name not in ("model", "start", "output")}
    set_threads(threads)
    from egnn_md.checkpoint import load, read_header

    kind = read_header(model)["kind"]
    if kind not in ROLLOUTS:
        raise UserError(f"{model} is a model of kind {kind!r}; a rollout needs one of {', '.join(ROLLOUTS)}")
    module, function = ROLLOUTS[kind].split(":")
    of_molecules = kind == "flow"
    for name, value in given.items():
        said = value is not None if name == "energy_filter" else value not in (None, False)
        if said and name not in FOR_ALL and (name in PARTICLES) == of_molecules:
            flag = name.replace("_", "-")
            if name == "energy_filter":
                flag = "filter" if value else "no-filter"
            raise UserError(
                f"--{flag} is for rollouts of {'particles' if of_molecules else 'molecules'}; {model} is not"
            )
    if start is None and not resume:
        raise UserError("say where to start: a structure for a flow map, a file of particles for a propagator")
    device, dtype = device or "cpu", dtype or "float32"
    check_device(device)
    network = load(model, device=device, dtype=parse_dtype(dtype))
    made: Outcome = getattr(importlib.import_module(module), function)(model, network, start, output, given)
    return made


def particles(name: str, model: nn.Module, start: str, output: Path, given: dict[str, Any]) -> Outcome:
    """Rollout of particles."""
    from egnn_md.checkpoint import read_header
    from egnn_md.data import nbody
    from egnn_md.dynamics import particle_rollouts as engine
    from egnn_md.evaluation.figures import without_failing
    from egnn_md.report.particles import rollout_page

    options: dict[str, Any] = {"frames": 48, "start_frame": 0, "side": "rollout", "systems": None, "substeps": None}
    options |= {key: value for key, value in given.items() if value is not None}
    for key in ("frames", "systems", "substeps"):
        positive(key, options[key])
    if options["side"] not in nbody.SIDES:
        raise UserError(f"--split must be one of {', '.join(nbody.SIDES)}, not {options['side']!r}")
    engine.refuse_old_rollout(output, options["overwrite"])
    true = nbody.read(Path(start), options["side"]).select(slice(options["systems"]))
    true.check_law(read_header(name))
    with progress_bar("rolling out") as progress:
        made = engine.roll_out(
            model,
            true,
            options["frames"],
            options["start_frame"],
            options["substeps"],
            progress=progress,
        )
    summary = engine.write_rollout(made, output, information={"model": name, "start": Path(start).name})
    page = output / "report.html"
    with without_failing(str(page)):
        rollout_page(output).write(page)
    return Outcome(summary | {"output": str(output)}, lambda: _show(summary, output), options["as_json"])


def _show(summary: dict[str, Any], output: Path) -> None:
    compared = summary["compared_frames"]
    known = len(compared)
    chosen = sorted({k for k in (1, 5, 10, 20, 30, 40, known - 1) if 0 < k < known})
    change = dict(zip(summary["frames"], summary["median_energy_change"], strict=True))
    columns = ["median_se", "mse", "median_se_constant_velocity"]
    rows = [
        [str(compared[k]), *(f"{summary[name][k]:.3g}" for name in columns), f"{change[compared[k]]:.3g}"]
        for k in chosen
    ]
    title = f"{summary['n_systems']} systems of {summary['n_particles']} particles"
    table(title, ["frame", "median error", "mean error", "constant velocity", "energy change"], rows, numbers=True)
    print("squared errors per component; energy change: median")
    print(f"open {output}/report.html; beside it trajectory.npz, summary.json, errors.png, animation.gif")
