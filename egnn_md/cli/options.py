"""Options that several verbs share, and what they set in motion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from egnn_md.cli.outcome import UserError, positive

if TYPE_CHECKING:
    import torch

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads of torch.", show_default="torch's choice")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
DTYPES = ("float32", "float64")


def set_threads(threads: int | None) -> None:
    """Set torch's thread count if one was asked for."""
    positive("threads", threads)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def parse_dtype(name: str) -> torch.dtype:
    """Raises UserError for anything but float32 and float64."""
    import torch

    if name not in DTYPES:
        raise UserError(f"--dtype must be one of {', '.join(DTYPES)}, not {name!r}")
    return torch.float32 if name == "float32" else torch.float64


def check_device(name: str) -> None:
    """Raises UserError for a device that torch does not know or does not see."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device must be cpu or cuda, not {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu or cuda, not {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: torch sees no such GPU here; use --device cpu")


def make_calculator(model: str, device: str, dtype: str, compile: bool = False) -> Any:
    """The ASE calculator of a model. Raises UserError for bad options, CheckpointError for the model."""
    parse_dtype(dtype)
    check_device(device)
    from egnn_md.checkpoint import read_header

    kind = read_header(model).get("kind")
    if kind != "potential":
        raise UserError(f"{model} is a model of kind {kind!r}; this needs a potential")
    from egnn_md.calculators import EGNNCalculator

    return EGNNCalculator(model, device=device, dtype=dtype, compile=compile)
