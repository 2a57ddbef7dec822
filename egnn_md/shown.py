"""How a model shows itself in a notebook: what it is and knows, in a table."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from egnn_md.chemistry.elements import symbols


class Shown:
    """Mixin of the models that `egnn_md.load` gives. `header` is what the checkpoint says; {} for one made in code."""

    header: dict[str, Any] = {}  # noqa: RUF012 - replaced, never changed

    def _repr_html_(self) -> str:
        """Rows of what people ask first."""
        return html_table(facts(self, self.header))


def html_table(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values, one below the other."""
    return f"<table>{''.join(f'<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in rows)}</table>"


def facts(model: Any, header: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and value, in order; those that the model lacks are left out."""
    config = model.config
    elements = getattr(config, "elements", ())
    targets = getattr(config, "targets", ())
    n_weights = sum(parameter.numel() for parameter in model.parameters())
    weight = next(model.parameters())
    rows = [
        (type(model).__name__, header.get("name", "not from a checkpoint")),
        ("description", header.get("description", "")),
        ("elements", symbols(list(elements)) if elements else ""),
        ("properties", ", ".join(targets)),
        ("cutoff", f"{config.cutoff:g} Å" if hasattr(config, "cutoff") else ""),
        ("weights", f"{n_weights:,}, {str(weight.dtype).removeprefix('torch.')} on {weight.device}"),
        ("licence", header.get("licence", "")),
    ]
    return [(name, str(value)) for name, value in rows if value]
