"""`egnn-md evaluate`: how far a model is from reference energies and forces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from egnn_md.cli.options import Json, Threads, check_device, parse_dtype, set_threads
from egnn_md.cli.outcome import Outcome, UserError, positive, table, verb

if TYPE_CHECKING:
    from egnn_md.data.structures import Frames
    from egnn_md.training.metrics import Metrics

SPLITS = ("train", "valid", "test", "all")


@verb
def evaluate(
    model: Annotated[str, typer.Argument(help="A shipped model's name, or a checkpoint.")],
    file: Annotated[Path, typer.Argument(help="Structures with labels: anything ase reads, or npz.")],
    split: Annotated[str, typer.Option(help="train, valid, test (as in the model's training) or all.")] = "all",
    batch_size: Annotated[int, typer.Option(help="Structures at once.")] = 32,
    plot: Annotated[Path | None, typer.Option(help="Write a parity plot of the forces.", show_default=False)] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    threads: Threads = None,
    as_json: Json = False,
) -> Outcome:
    """Compare a model with reference energies (eV) and forces (eV/Å).

    Errors are in meV/Å (mean over force components) and meV/atom. `--split test` takes the molecules that training
    never saw.

    Example:  egnn-md evaluate organic-xtb frames.extxyz --plot parity.png
    """
    if split not in SPLITS:
        raise UserError(f"--split must be one of {', '.join(SPLITS)}, not {split!r}")
    positive("batch-size", batch_size)
    set_threads(threads)
    check_device(device)
    network, header = _load(model, device, dtype)
    from egnn_md.data.structures import read_frames
    from egnn_md.training import metrics

    frames = _side(read_frames(file), header, split, model)
    with _progress(len(frames)) as progress:
        result = metrics.evaluate(network, frames, batch_size, progress)
    if plot is not None:
        _plot(network, frames, plot)
    return Outcome(result.to_dict(), lambda: _show(result, f"{model} on {file.name} ({split})"), as_json)


def _load(model: str, device: str, dtype: str) -> tuple[Any, dict[str, Any]]:
    precision = parse_dtype(dtype)
    from egnn_md.checkpoint import load, read_header
    from egnn_md.models.potential import Potential

    network = load(model, device=device, dtype=precision)
    if not isinstance(network, Potential):
        raise UserError(f"{model} is a {type(network).__name__}; evaluate needs a potential")
    return network, read_header(model)


def _side(frames: Frames, header: dict[str, Any], split: str, model: str) -> Frames:
    """The structures of one side of the split that the model's training used."""
    import numpy as np

    from egnn_md.data.structures import DataError, assign_split

    if split == "all":
        return frames
    fractions = header.get("split")
    if not isinstance(fractions, dict) or not {"valid", "test"} <= fractions.keys():
        raise UserError(f"{model} does not record how its data was divided: only --split all is possible")
    sides = assign_split(frames, float(fractions["valid"]), float(fractions["test"]))
    chosen = frames.select(np.flatnonzero(sides == split))
    if len(chosen) == 0:
        raise DataError(f"none of the {len(frames)} structures is on the {split} side of the split")
    return chosen


class _progress:  # noqa: N801
    """A bar on stderr, while it is a terminal."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self.bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task("evaluating", total=total)

    def __enter__(self) -> Any:
        self.bar.start()
        return lambda done: self.bar.update(self.task, completed=done)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def _plot(network: Any, frames: Frames, path: Path) -> None:
    if frames.forces is None:
        raise UserError("there are no forces to plot")
    if not path.absolute().parent.is_dir():
        raise UserError(f"the folder of {path} does not exist")
    from egnn_md.models.potential import Potential
    from egnn_md.training.report import plot_parity

    plot_parity(cast(Potential, network.cpu()), frames, path)


def _show(result: Metrics, title: str) -> None:
    rows = [_row("all", result), *(_row(tag or "(no tag)", part) for tag, part in result.by_tag.items())]
    columns = ["kind", "structures", "force MAE", "force RMSE", "energy MAE", "energy RMSE"]
    table(title, columns, rows, numbers=True)
    print("forces in meV/Å, energies in meV/atom")


def _row(name: str, result: Metrics) -> list[str]:
    errors = (result.force_mae, result.force_rmse, result.energy_mae, result.energy_rmse)
    return [name, str(result.n_structures), *("-" if value != value else f"{value:.3f}" for value in errors)]
