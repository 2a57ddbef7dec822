"""The models: one file per task. The package itself can be called: `egnn_md.models()` says which model does what."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["FlowMap", "IntegratorPropagator", "Potential", "PropertyModel", "VelocityEGNN"]

if TYPE_CHECKING:
    from egnn_md.models.flow import FlowMap
    from egnn_md.models.potential import Potential
    from egnn_md.models.propagator import IntegratorPropagator, VelocityEGNN
    from egnn_md.models.property import PropertyModel

_HOMES = {
    "FlowMap": "flow",
    "IntegratorPropagator": "propagator",
    "Potential": "potential",
    "PropertyModel": "property",
    "VelocityEGNN": "propagator",
}


class _Callable(ModuleType):
    """`egnn_md.models` is this package, and also what people type to see which models there are."""

    def __call__(self) -> Any:
        """Which model for what: see `egnn_md.registry.models`."""
        from importlib import import_module

        return import_module("egnn_md.registry").models()


sys.modules[__name__].__class__ = _Callable


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'egnn_md.models' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"egnn_md.models.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
