"""`egnn-md info` and `egnn-md models`: what models there are, and what they know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from egnn_md.cli.options import Json
from egnn_md.cli.outcome import Outcome, table, verb

if TYPE_CHECKING:
    from egnn_md.registry import ModelFacts


@verb
def info(
    model: Annotated[str, typer.Argument(help="A shipped model's name, or a checkpoint.")] = "organic-xtb",
    as_json: Json = False,
) -> Outcome:
    """Show what a model knows: elements, cutoff, training data, held-out errors, licence.

    Example:  egnn-md info organic-xtb
    """
    from egnn_md.checkpoint import read_header, resolve
    from egnn_md.registry import facts_of

    header = read_header(model)
    values = {**header, "file": str(resolve(model))}
    facts = facts_of(model)
    values["facts"] = facts.to_dict()
    return Outcome(values, lambda: table("", [str(header.get("name", model)), ""], _rows(values, facts)), as_json)


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


def _rows(values: dict[str, Any], facts: ModelFacts) -> list[list[str]]:
    """What people choose by first, then where it comes from, then its inside."""
    from egnn_md.chemistry.elements import symbols

    config = dict(values.get("config", {}))
    elements = config.pop("elements", [])
    references = config.pop("reference_energies", [])
    rows = [["what for", facts.purpose], ["description", str(values.get("description", ""))]]
    rows.append(["kind", str(values.get("kind", ""))])
    rows += [["elements", symbols(elements)]] if elements else []
    rows += [[name, getattr(facts, name)] for name in ("charges", "accuracy") if getattr(facts, name)]
    if config.get("network") == "paper":
        config = {name: config[name] for name in ("targets", "network", "hidden_dim", "n_layers", "soft_edges")}
    if "cutoff" in config:
        beyond = (
            "charges and dispersion alone act farther" if config.get("long_range") else "nothing farther away is seen"
        )
        rows.append(["cutoff", f"{config.pop('cutoff')} Å: {beyond}"])
    rows.append(["units", _text(values.get("units", {}))])
    card = Path(str(values["file"])).with_suffix(".md")
    rows += _held_out(values.get("held_out"), _tags(card))
    rows.append(["training data", _text(_short_hashes(values.get("training_data", "not recorded")))])
    if references:
        named = zip(elements, references, strict=False)
        shares = ", ".join(f"{symbols([z])} {energy:.4f} eV" for z, energy in named)
        rows.append(["reference energies", f"{shares} (what the network's energy of each atom is added to)"])
    for name in ("offsets", "scales", "references"):  # of a property model: nothing to read
        config.pop(name, None)
    rows.append(["network", _text(config)])
    rows.append(["licence", str(values.get("licence", "not recorded"))])
    rows.append(["made with", f"egnn-md {values.get('library_version', '?')}, format {values.get('format_version')}"])
    rows.append(["file", str(values["file"])])
    return rows + ([["card", f"{card}: data, errors, where it fails"]] if card.is_file() else [])


def _short_hashes(value: Any) -> Any:
    """SHA-256 sums as their first eight digits; --json has them whole."""
    if isinstance(value, dict):
        return {name: _short_hashes(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_short_hashes(part) for part in value]
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"(SHA-256 \1…)", value) if isinstance(value, str) else value


def _tags(card: Path) -> dict[str, str]:
    """What a model's card calls the kinds of frames that its data marks with a letter; `organic-xtb`'s says it for all
    of ours, which learned from the same files.
    """
    from egnn_md.checkpoint import shipped_models

    ours = shipped_models()
    known = card.stem in ours and card.with_suffix(".safetensors") == ours[card.stem]
    cards = [ours["organic-xtb"].with_suffix(".md"), card] if known and "organic-xtb" in ours else [card]
    text = "\n".join(path.read_text() for path in cards if path.is_file())
    return dict(re.findall(r"^\| (\w): ([^|(]+?) (?:\([^|]*)?\|", text, re.MULTILINE))


def _in_words(tag: str) -> str:
    return tag.replace("_", " ") if len(tag) > 1 else f"frames marked {tag}"


def _held_out(errors: Any, tags: Mapping[str, str] = MappingProxyType({})) -> list[list[str]]:
    """One line for each side of the split that was held out, whatever shape the header gives them."""
    if not isinstance(errors, dict):
        return [["held-out errors", "not recorded" if errors is None else str(errors)]]
    if not all(isinstance(value, dict) for value in errors.values()):
        errors = {"": errors}
    rows = []
    for side, values in errors.items():
        whole = {name: value for name, value in values.items() if name != "by_tag"}
        rows.append([f"errors: {side}".rstrip(": "), _errors(whole)])
        if values.get("by_tag"):
            parts = [
                f"{tags.get(tag, _in_words(tag))} {part['force_mae']:.1f}"
                for tag, part in values["by_tag"].items()
                if part.get("force_mae")
            ]
            rows.append(["  by kind of frame", f"forces, meV/Å: {'; '.join(parts)}"])
    return rows


def _errors(values: dict[str, Any]) -> str:
    units = {"force": "meV/Å", "energy": "meV/atom"}
    parts = []
    for name, value in values.items():
        if value is None:  # there were no labels
            continue
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
