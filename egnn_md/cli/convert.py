"""`egnn-md convert`: weights of the authors' code as a checkpoint of ours."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Annotated, Any

import typer

from egnn_md.cli.options import Json, Overwrite
from egnn_md.cli.outcome import Outcome, UserError, verb


@verb
def convert(
    file: Annotated[Path, typer.Argument(help="state_dict of the authors' EGNN class for QM9, saved with torch.save.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write (.safetensors).")],
    target: Annotated[
        str | None, typer.Option(help="The property it predicts: alpha, gap, homo, …", show_default="unknown")
    ] = None,
    mean: Annotated[
        float | None, typer.Option(help="Mean of the labels in its training, in the property's unit.")
    ] = None,
    mad: Annotated[float | None, typer.Option(help="Their mean absolute deviation.", show_default=False)] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> Outcome:
    """Turn a state_dict of the authors' QM9 network into a checkpoint that predicts the same.

    Nothing in the file is run (weights_only). Their network predicts (y - mean) / MAD, numbers that their script does
    not save: without --target, --mean and --mad the prediction stays in these units and is called "output". Units of
    --mean and --mad: meV (they have eV), a0^3, D, a0^2, cal/(mol K); energies relative to free atoms, as there.

    Example:  egnn-md convert their_state_dict.pt -o homo.safetensors --target homo --mean -6539 --mad 439
    """
    if len({target is None, mean is None, mad is None}) != 1:
        raise UserError("--target, --mean and --mad belong together: give all three, or none")
    if mad is not None and not 0 < mad < math.inf:
        raise UserError(f"--mad must be positive, not {mad}")
    if mean is not None and not math.isfinite(mean):
        raise UserError(f"--mean must be a number, not {mean}")
    if output.suffix != ".safetensors":
        raise UserError(f"-o {output}: a checkpoint's name ends in .safetensors")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists: --overwrite replaces it")
    from egnn_md.checkpoint import save
    from egnn_md.paper.authors import from_authors

    model = from_authors(_read(file), target, mean or 0.0, mad or 1.0)
    name = model.config.targets[0]
    description = f"converted from {file.name}: the authors' QM9 network, predicts {name}"
    save(model, output, {"name": output.stem, "description": description})
    values = {
        "model": str(output),
        "target": name,
        "n_layers": model.config.n_layers,
        "hidden_dim": model.config.hidden_dim,
    }
    return Outcome(values, lambda: print(f"{output}: predicts {name}"), as_json)


def _read(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} holds no plain weights (a state_dict saved with torch.save): {reason}") from None
