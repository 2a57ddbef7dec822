"""Every kind of model refuses sizes out of bounds before it makes anything."""

from __future__ import annotations

import importlib
from dataclasses import fields
from typing import Any

import pytest

from egnn_md.checkpoint import KINDS
from egnn_md.chemistry.targets import NAMES
from egnn_md.models.bounds import DERIVED, LARGEST, OPTIONAL
from egnn_md.models.property_networks import READOUTS

VALID: dict[str, dict[str, Any]] = {
    "potential": {"elements": (1,), "reference_energies": (0.0,)},
    "velocity-egnn": {"duration": 1.0},
    "integrator": {"duration": 1.0},
    "property": {
        "elements": (1,),
        "targets": NAMES,
        **dict.fromkeys(("offsets", "scales", "references"), (1.0,) * len(READOUTS)),
    },
    "flow": {"elements": (1,), "reference_energies": (0.0,)},
    "graph-autoencoder": {},
}


def configuration(kind: str) -> Any:
    module, _, name = KINDS[kind]
    return getattr(importlib.import_module(module), name)


SIZES = [(kind, field.name) for kind in KINDS for field in fields(configuration(kind)) if field.name in LARGEST]


def test_all_kinds_are_looked_at() -> None:
    assert VALID.keys() == KINDS.keys() == {kind for kind, _ in SIZES}


@pytest.mark.parametrize(("kind", "name"), SIZES)
@pytest.mark.parametrize("size", [0, -1, 200_000, 32.0, 32.5, True, "8", float("nan")])
def test_sizes_are_whole_numbers_within_bounds(kind: str, name: str, size: Any) -> None:
    if name in OPTIONAL and size == 0 and type(size) is int:
        return
    assert type(getattr(configuration(kind)(**VALID[kind]), name)) is (type(None) if name in DERIVED else int)
    with pytest.raises(ValueError, match=f"{name} must be a whole number from [01] to"):
        configuration(kind)(**VALID[kind], **{name: size})
