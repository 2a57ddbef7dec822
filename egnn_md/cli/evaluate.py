"""`egnn-md evaluate`: how far a model is from reference values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from egnn_md.cli.options import Json, Threads, check_device, parse_dtype, set_threads
from egnn_md.cli.outcome import Outcome, UserError, positive, progress_bar, table, verb

SPLITS = ("train", "valid", "test", "all")


@verb
def evaluate(
    model: Annotated[str, typer.Argument(help="A shipped model's name, or a checkpoint.")],
    file: Annotated[Path, typer.Argument(help="Data with labels: structures in any form that ase reads, or npz.")],
    split: Annotated[
        str | None,
        typer.Option(
            help="train, valid, test (as in the model's training) or all.", show_default="all; particles, graphs: test"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples at once.")] = 32,
    plot: Annotated[Path | None, typer.Option(help="Draw the errors into this file.", show_default=False)] = None,
    report: Annotated[
        Path | None, typer.Option(help="Leave a page to look at in this file (.html).", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    threads: Threads = None,
    as_json: Json = False,
) -> Outcome:
    """Compare a model with reference values: energies (eV) and forces (eV/Å), properties, trajectories, graphs.

    A potential's errors are in meV/Å (mean over force components) and meV/atom. `--split test` takes the molecules
    that training never saw. A propagator of particles is compared at frame 40 from frame 30: squared error of
    positions, mean and median over trajectories and mean of the lowest 80 %. A property model: mean absolute errors in
    the units of the properties; the file is QM9's archive, .sdf or npz. A graph autoencoder: cross-entropy, wrong pairs
    and F1.

    Example:  egnn-md evaluate organic-xtb frames.extxyz --report errors.html
    """
    if split is not None and split not in SPLITS:
        raise UserError(f"--split must be one of {', '.join(SPLITS)}, not {split!r}")
    positive("batch-size", batch_size)
    set_threads(threads)
    check_device(device)
    if plot is not None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        if not plot.absolute().parent.is_dir():
            raise UserError(f"the folder of {plot} does not exist")
        if plot.suffix[1:].lower() not in (known := FigureCanvasAgg.get_supported_filetypes()):
            raise UserError(f"--plot {plot}: a picture's name ends in one of .{', .'.join(sorted(known))}")
    if report is not None and not report.absolute().parent.is_dir():
        raise UserError(f"the folder of {report} does not exist")
    precision = parse_dtype(dtype)
    from egnn_md.checkpoint import load, read_header
    from egnn_md.evaluation.evaluate import Request, evaluate_file

    network, header = load(model, device=device, dtype=precision), read_header(model)
    with progress_bar("evaluating") as progress:
        result = evaluate_file(header["kind"], network, header, Request(file, split, batch_size, progress))
    if plot is not None:
        if result.plot is None:
            raise UserError("there is nothing to plot: the file has no forces, or the model draws no picture")
        result.plot(plot)
    if report is not None:
        from egnn_md.report.evaluations import evaluation_page

        evaluation_page(result, model, file, split).write(report)

    def show() -> None:
        title = f"{model} on {file.name}" + (f" ({split})" if split else "")
        table(title, list(result.columns), list(result.rows), numbers=True)
        if result.note:
            print(result.note)

    return Outcome(result.values, show, as_json)
