"""`egnn-md export`: a potential as a file that other programs run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from egnn_md.cli.options import Json, Overwrite, parse_dtype
from egnn_md.cli.outcome import Outcome, UserError, verb

FORMATS = ("metatomic",)


@verb
def export(
    model: Annotated[str, typer.Argument(help="A shipped model's name, or a checkpoint.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write (.pt).")],
    format: Annotated[str, typer.Option(help="metatomic.")] = "metatomic",
    dtype: Annotated[str, typer.Option(help="float64, or float32: total energies then have 7 digits.")] = "float64",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> Outcome:
    """Write a potential as a metatomic model (TorchScript), which engines run without this package.

    ASE (with metatomic-ase) and other engines with a metatomic interface load it. On the CPU, and without domain
    decomposition.

    Example:  egnn-md export organic-xtb --format metatomic -o model.pt
    """
    precision = parse_dtype(dtype)
    if format not in FORMATS:
        raise UserError(f"--format must be {' or '.join(FORMATS)}, not {format!r}")
    if output.suffix != ".pt":
        raise UserError(f"-o {output}: the name of a metatomic model ends in .pt")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists: --overwrite replaces it")
    from egnn_md.checkpoint import load, read_header
    from egnn_md.models.potential import Potential

    try:
        from egnn_md.calculators.metatomic_export import export as write
    except ImportError as error:
        raise UserError(f"metatomic cannot be loaded ({error}): pip install 'egnn-md[metatomic]'") from None
    potential = load(model, dtype=precision)
    if not isinstance(potential, Potential):
        raise UserError(f"{model} is a {type(potential).__name__}; only potentials can be exported")
    header = read_header(model)
    try:
        write(potential, output, name=str(header.get("name", model)), description=str(header.get("description", "")))
    except ValueError as error:
        raise UserError(str(error)) from None
    values = {"model": model, "format": format, "output": str(output), "dtype": dtype}
    return Outcome(values, lambda: print(f"{output}: {model} for metatomic, {dtype}"), as_json)
