"""Layers: tensors in, tensors out, no chemistry. `EGCL` and `EGNN` are the paper's; `VectorLayer` is our networks'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["EGCL", "EGNN", "VectorLayer"]

if TYPE_CHECKING:
    from egnn_md.nn.egcl import EGCL
    from egnn_md.nn.egnn import EGNN
    from egnn_md.nn.vector_layer import VectorLayer

_HOMES = {"EGCL": "egcl", "EGNN": "egnn", "VectorLayer": "vector_layer"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'egnn_md.nn' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"egnn_md.nn.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
