"""egnn-md inside simulation engines: units, types and lifecycles of each engine, nothing else.

Importing this package loads neither torch nor an engine; the names below load what they need.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own costs as much as the whole start of `egnn-md-orca`
__all__ = [
    "EGNNCalculator",
    "EGNNPropertyCalculator",
    "ExtrapolationWarning",
    "OpenShellWarning",
    "create_openmm_force",
    "create_system",
]

if TYPE_CHECKING:
    from typing import Any

    from egnn_md.calculators.ase_calculator import EGNNCalculator, OpenShellWarning
    from egnn_md.calculators.ase_properties import EGNNPropertyCalculator
    from egnn_md.calculators.openmm_force import create_openmm_force, create_system
    from egnn_md.predict import ExtrapolationWarning

_HOMES = {
    "EGNNCalculator": "egnn_md.calculators.ase_calculator",
    "EGNNPropertyCalculator": "egnn_md.calculators.ase_properties",
    "ExtrapolationWarning": "egnn_md.predict",
    "OpenShellWarning": "egnn_md.calculators.ase_calculator",
    "create_openmm_force": "egnn_md.calculators.openmm_force",
    "create_system": "egnn_md.calculators.openmm_force",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'egnn_md.calculators' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
