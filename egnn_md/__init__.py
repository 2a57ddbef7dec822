"""egnn-md: E(n)-equivariant graph neural networks for molecular simulation.

`import egnn_md` is cheap: torch and the models load when something needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Graph", "Prediction", "__version__", "load", "shipped_models"]

if TYPE_CHECKING:
    from egnn_md.checkpoint import load, shipped_models
    from egnn_md.graph import Graph, Prediction

_HOMES = {
    "Graph": "egnn_md.graph",
    "Prediction": "egnn_md.graph",
    "load": "egnn_md.checkpoint",
    "shipped_models": "egnn_md.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'egnn_md' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
