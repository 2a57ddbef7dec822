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
    # kind of the checkpoint: function (model, start, output, options) -> Outcome, as module:name
    "integrator": "egnn_md.cli.rollout:particles",
    "velocity-egnn": "egnn_md.cli.rollout:particles",
}


@verb
def rollout(
    model: Annotated[str, typer.Argument(help="A shipped propagator's name, or a checkpoint.")],
    start: Annotated[Path, typer.Argument(help="Where to start: a file of `egnn-md data nbody`.")],
    frames: Annotated[int, typer.Option(help="Frames of 0.1 to go on for.")] = 48,
    start_frame: Annotated[int, typer.Option(help="Frame of the file to start from.")] = 0,
    side: Annotated[str, typer.Option(help="rollout, train, valid or test: part of the file.")] = "rollout",
    systems: Annotated[int | None, typer.Option(help="Only the first so many.", show_default="all")] = None,
    substeps: Annotated[int | None, typer.Option(help="Sub-steps of a frame.", show_default="the model's own")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder.")] = Path("run"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> Outcome:
    """Go on from a start, one predicted frame after another, and compare with the truth where the file has it.

    Leaves trajectory.npz, plots of the error and of what physics conserves, an animation and summary.json in the run
    folder.

    Example:  egnn-md rollout nbody-charged5 nbody.npz --frames 48 -o run/
    """
    for name, value in (("frames", frames), ("systems", systems), ("substeps", substeps)):
        positive(name, value)
    set_threads(threads)
    check_device(device)
    precision = parse_dtype(dtype)
    from egnn_md.checkpoint import load, read_header

    kind = read_header(model)["kind"]
    if kind not in ROLLOUTS:
        raise UserError(f"{model} is a model of kind {kind!r}; a rollout needs one of {', '.join(ROLLOUTS)}")
    network = load(model, device=device, dtype=precision)
    module, function = ROLLOUTS[kind].split(":")
    options = {"frames": frames, "start_frame": start_frame, "side": side, "systems": systems, "substeps": substeps}
    options |= {"overwrite": overwrite, "as_json": as_json}
    made: Outcome = getattr(importlib.import_module(module), function)(network, start, output, options)
    return made


def particles(model: nn.Module, start: Path, output: Path, options: dict[str, Any]) -> Outcome:
    """Rollout of particles."""
    from egnn_md.data import nbody
    from egnn_md.dynamics import particles as engine

    if options["side"] not in nbody.SIDES:
        raise UserError(f"--side must be one of {', '.join(nbody.SIDES)}, not {options['side']!r}")
    engine.refuse_old_rollout(output, options["overwrite"])
    true = nbody.read(start, options["side"]).select(slice(options["systems"]))
    with progress_bar("rolling out") as progress:
        made = engine.roll_out(
            model,
            true,
            options["frames"],
            options["start_frame"],
            options["substeps"],
            progress=progress,
        )
    summary = engine.write_rollout(made, output)
    return Outcome(summary | {"output": str(output)}, lambda: _show(summary, output), options["as_json"])


def _show(summary: dict[str, Any], output: Path) -> None:
    known = len(summary["median_se"])
    chosen = sorted({k for k in (1, 5, 10, 20, 30, 40, known - 1) if 0 < k < known})
    columns = ["median_se", "mse", "median_se_constant_velocity", "median_energy_change"]
    rows = [[str(summary["frames"][k]), *(f"{summary[name][k]:.3g}" for name in columns)] for k in chosen]
    title = f"{summary['n_systems']} systems of {summary['n_particles']} particles"
    table(title, ["frame", "median error", "mean error", "constant velocity", "energy change"], rows, numbers=True)
    print("squared errors per component; energy change: median")
    print(f"wrote {output}")
