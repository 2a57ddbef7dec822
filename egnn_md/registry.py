"""Which model does what: the facts that people choose by, read from the checkpoints that come with the package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from html import escape
from typing import Any, Final

from egnn_md.checkpoint import read_header, shipped_models
from egnn_md.chemistry.elements import symbols

PURPOSES: Final[dict[str, str]] = {
    # kind of the checkpoint: what one does with it
    "potential": "energies and forces: dynamics, relaxation, vibrations",
    "property": "properties of molecules at their minima",
    "flow": "dynamics in strides of 10 fs, without forces",
    "integrator": "trajectories of charged particles",
    "velocity-egnn": "trajectories of charged particles",
    "graph-autoencoder": "embeddings of graphs",
}


@dataclass(frozen=True)
class ModelFacts:
    """One model, as people choose among several."""

    name: str
    """To be given wherever a model is asked for."""
    purpose: str
    elements: str
    """Symbols, separated by spaces; "" where it knows none (particles)."""
    charges: str
    """Total charges that it takes."""
    accuracy: str
    """One number: its error on structures that training never saw."""
    description: str
    kind: str
    licence: str
    file: str

    def to_dict(self) -> dict[str, str]:
        """As JSON values."""
        return asdict(self)


class Models(Sequence[ModelFacts]):
    """The shipped models, in alphabetical order. Prints as a table, in a notebook too; also found by name."""

    COLUMNS: Final = ("name", "purpose", "elements", "charges", "accuracy")

    def __init__(self, models: Sequence[ModelFacts]) -> None:
        self._models = tuple(models)

    def __getitem__(self, key: Any) -> Any:
        """By place, or by name. Raises KeyError, naming those there are."""
        if isinstance(key, str):
            known = {model.name: model for model in self._models}
            if key not in known:
                raise KeyError(f"no model {key!r}: there are {', '.join(known)}")
            return known[key]
        return self._models[key]

    def __len__(self) -> int:
        return len(self._models)

    def __iter__(self) -> Iterator[ModelFacts]:
        return iter(self._models)

    def rows(self) -> list[list[str]]:
        """What the columns say of each."""
        return [[getattr(model, column) for column in self.COLUMNS] for model in self._models]

    def __repr__(self) -> str:
        lines = [list(self.COLUMNS), *self.rows()]
        widths = [max(len(line[k]) for line in lines) for k in range(len(self.COLUMNS))]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in self.COLUMNS)
        body = "".join(f"<tr>{''.join(f'<td>{escape(value)}</td>' for value in row)}</tr>" for row in self.rows())
        return f"<table><tr>{head}</tr>{body}</table>"


def models() -> Models:
    """Which model for what: the models that come with the package, with elements, charges and accuracy.

    >>> import egnn_md
    >>> egnn_md.models()["organic-xtb"].elements
    'H C N O F'
    """
    return Models([facts_of(name) for name in shipped_models()])


def facts_of(model: str) -> ModelFacts:
    """The facts on one model, a shipped name or a path. Raises CheckpointError."""
    header = read_header(model)
    kind, config = str(header.get("kind", "")), header.get("config", {})
    written = {field.name: str(header[field.name]) for field in fields(ModelFacts) if header.get(field.name)}
    found = {
        "name": model,
        "purpose": PURPOSES.get(kind, ""),
        "elements": " ".join(symbols([z]) for z in config.get("elements", [])),
        "charges": ("any of closed shells" if config.get("long_range") else "0") if config.get("elements") else "",
        "accuracy": _accuracy(kind, header.get("held_out")),
        "description": "",
        "licence": "",
        "file": str(shipped_models().get(model, model)),
    }
    return ModelFacts(**{**found, **written, "name": model, "kind": kind})


def _accuracy(kind: str, held_out: Any) -> str:
    """One number of the held-out errors, whatever else they say; "" if there is none."""
    errors = held_out.get("test", held_out.get("valid", held_out)) if isinstance(held_out, Mapping) else {}
    try:
        if kind == "potential":
            return f"forces {errors['force_mae']:.0f} meV/Å"
        if kind == "property":
            name = "gap" if "gap" in errors else next(iter(errors))
            return f"{name} {errors[name]['mae']:.2g} {errors[name]['unit']}"
        if kind == "flow":
            if "energy_change" in errors:  # of a map from single frames: over sub-steps of all lengths
                return f"{errors['energy_change']:.0f} meV in a sub-step"
            longest = max(errors, key=float)
            return f"{errors[longest]['energy_change_rms']:.0f} meV in {float(longest):g} fs"
        return f"squared error {errors['mse']:.2g}" if "mse" in errors else ""
    except (KeyError, TypeError, ValueError, StopIteration):
        return ""
