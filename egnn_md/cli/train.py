"""`egnn-md train`: a model from a configuration and labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from egnn_md.cli.options import Json, Threads, set_threads
from egnn_md.cli.outcome import Outcome, UserError, positive, verb

ACCELERATORS = {"auto": "auto", "cpu": "cpu", "cuda": "gpu"}


@verb
def train(
    config: Annotated[Path | None, typer.Argument(help="Configuration, TOML; not with --resume.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data files.", show_default="$EGNN_MD_DATA, CONFIG's folder")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder.", show_default="CONFIG's output")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.", show_default=False)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    devices: Annotated[int, typer.Option(help="Processes on this machine, one a GPU.")] = 1,
    nodes: Annotated[int, typer.Option(help="Machines, under torchrun.")] = 1,
    threads: Threads = None,
    as_json: Json = False,
) -> Outcome:
    """Train a model: by default a potential, on structures with energies and forces.

    Leaves model.safetensors, a log and plots in the run folder. A run that was interrupted or killed goes on exactly
    where it was.

    Example:  egnn-md train config.toml -o run/    and then    egnn-md train --resume run/
    """
    if (config is None) == (resume is None):
        raise UserError("give either a configuration (egnn-md train config.toml) or --resume with a run folder")
    if resume is not None and (output is not None or data is not None):
        raise UserError("--resume goes on in its own folder with its own data: leave --output and --data out")
    if device not in ACCELERATORS:
        raise UserError(f"--device must be one of {', '.join(ACCELERATORS)}, not {device!r}")
    positive("devices", devices)
    positive("nodes", nodes)
    set_threads(threads)
    loop = _training_loop()
    resources = loop.Resources(accelerator=ACCELERATORS[device], devices=devices, nodes=nodes)
    model = loop.train(config, data, output, resources) if resume is None else loop.resume(resume, resources)
    if not loop.is_first_process():  # one process speaks for all
        return Outcome({}, lambda: None, as_json=False)
    return _outcome(Path(model), as_json)


def _training_loop() -> Any:
    try:
        import lightning  # noqa: F401
        import pydantic  # noqa: F401
    except ImportError as error:
        raise UserError(f"training needs {error.name}: pip install 'egnn-md[train]'") from None
    from egnn_md.training import loop

    return loop


def _outcome(model: Path, as_json: bool) -> Outcome:
    from egnn_md.checkpoint import read_header
    from egnn_md.cli.models import _held_out

    held_out = read_header(model).get("held_out", {})

    def show() -> None:
        for side, errors in _held_out(held_out):
            print(f"{side}: {errors}")
        print(f"the model is {model}")

    return Outcome({"model": str(model), "held_out": held_out}, show, as_json)
