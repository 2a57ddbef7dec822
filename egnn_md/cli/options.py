"""Options that several verbs share, and what they set in motion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from egnn_md.cli.outcome import UserError, positive

if TYPE_CHECKING:
    import torch

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads of torch.", show_default="torch's choice")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]


def set_threads(threads: int | None) -> None:
    """Set torch's thread count if one was asked for."""
    positive("threads", threads)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def parse_dtype(name: str) -> torch.dtype:
    """See `egnn_md.options.parse_dtype`. Raises UserError."""
    from egnn_md import options

    try:
        return options.parse_dtype(name)
    except options.OptionError as error:
        raise UserError(f"--dtype: {error}") from None


def check_device(name: str) -> None:
    """See `egnn_md.options.parse_device`. Raises UserError."""
    from egnn_md import options

    try:
        options.parse_device(name)
    except options.OptionError as error:
        raise UserError(f"--device: {error}") from None


def make_calculator(model: str, device: str, dtype: str, compile: bool | Literal["auto"] = "auto") -> Any:
    """The ASE calculator of a model; `compile` as there. Raises UserError for bad options, CheckpointError for the
    model.
    """
    parse_dtype(dtype)
    check_device(device)
    from egnn_md.checkpoint import read_header

    kind = read_header(model).get("kind")
    if kind != "potential":
        raise UserError(f"{model} is a model of kind {kind!r}; this needs a potential")
    from egnn_md.calculators import EGNNCalculator

    return EGNNCalculator(model, device=device, dtype=dtype, compile=compile)
