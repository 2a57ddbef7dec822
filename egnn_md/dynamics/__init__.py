"""Molecular dynamics and rollouts. Importing this package loads neither torch nor ase; the name below loads both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["FlowDynamics"]

if TYPE_CHECKING:
    from egnn_md.dynamics.ase_flow import FlowDynamics


def __getattr__(name: str) -> Any:
    if name != "FlowDynamics":
        raise AttributeError(f"module 'egnn_md.dynamics' has no attribute {name!r}")
    from egnn_md.dynamics import ase_flow

    return ase_flow.FlowDynamics


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
