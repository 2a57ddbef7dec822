"""`egnn-md info` and `egnn-md models`: what models there are, and what they know."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from egnn_md.cli.options import Json
from egnn_md.cli.outcome import Outcome, table, verb


@verb
def info(
    model: Annotated[str, typer.Argument(help="A shipped model's name, or a checkpoint.")] = "organic-xtb",
    as_json: Json = False,
) -> Outcome:
    """Show what a model knows: elements, cutoff, training data, held-out errors, licence.

    Example:  egnn-md info organic-xtb
    """
    from egnn_md.checkpoint import read_header, resolve

    header = read_header(model)
    values = {**header, "file": str(resolve(model))}
    return Outcome(values, lambda: table("", [str(header.get("name", model)), ""], _rows(values)), as_json)


@verb
def models(as_json: Json = False) -> Outcome:
    """Which model for what: the models that come with the package, with elements, charges and accuracy.

    Example:  egnn-md models
    """
    from egnn_md.registry import Models
    from egnn_md.registry import models as known

    found = known()
    values = {"models": [model.to_dict() for model in found]}
    return Outcome(values, lambda: table("", list(Models.COLUMNS), found.rows()), as_json)


def _rows(values: dict[str, Any]) -> list[list[str]]:
    """The header as lines to read: physics first, then whatever else it holds."""
    from egnn_md.chemistry.elements import symbols

    config = dict(values.get("config", {}))
    elements = config.pop("elements", [])
    references = config.pop("reference_energies", [])
    rows = [["file", str(values["file"])], ["description", str(values.get("description", ""))]]
    rows.append(["kind", str(values.get("kind", ""))])
    if elements:
        rows.append(["elements", symbols(elements)])
    if config.get("network") == "paper":
        config = {name: config[name] for name in ("targets", "network", "hidden_dim", "n_layers", "soft_edges")}
    if "cutoff" in config:
        rows.append(["cutoff", f"{config.pop('cutoff')} Å"])
    rows.append(["units", _text(values.get("units", {}))])
    if references:
        named = zip(elements, references, strict=False)
        rows.append(["reference energies", ", ".join(f"{symbols([z])} {energy:.4f} eV" for z, energy in named)])
    for name in ("offsets", "scales", "references"):  # of a property model: nothing to read
        config.pop(name, None)
    rows.append(["network", _text(config)])
    rows.append(["training data", _text(values.get("training_data", "not recorded"))])
    rows += _held_out(values.get("held_out"))
    rows.append(["licence", str(values.get("licence", "not recorded"))])
    rows.append(["made with", f"egnn-md {values.get('library_version', '?')}, format {values.get('format_version')}"])
    return rows


def _held_out(errors: Any) -> list[list[str]]:
    """One line for each side of the split that was held out, whatever shape the header gives them."""
    if not isinstance(errors, dict):
        return [["held-out errors", "not recorded" if errors is None else str(errors)]]
    if not all(isinstance(value, dict) for value in errors.values()):
        errors = {"": errors}
    return [[f"errors: {side}".rstrip(": "), _errors(values)] for side, values in errors.items()]


def _errors(values: dict[str, Any]) -> str:
    units = {"force": "meV/Å", "energy": "meV/atom"}
    parts = []
    for name, value in values.items():
        if isinstance(value, dict):
            if isinstance(value.get("mae"), float):  # a property
                parts.append(f"{name} {value['mae']:.4g} {value['unit']}")
            else:
                parts.append(f"{name}: {_errors(value)}")
            continue
        unit = units.get(name.split("_")[0], "") if name.endswith(("mae", "rmse")) else ""
        number = f"{value:.4g}" if isinstance(value, float) else str(value)
        parts.append(f"{name} {number} {unit}".strip())
    return ", ".join(parts)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    if isinstance(value, list):
        return "; ".join(map(_text, value))
    return str(value)
