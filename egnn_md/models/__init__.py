"""The models: one file per task. The package itself can be called: `egnn_md.models()` says which model does what."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """`egnn_md.models` is this package, and also what people type to see which models there are."""

    def __call__(self) -> Any:
        """Which model for what: see `egnn_md.registry.models`."""
        from importlib import import_module

        return import_module("egnn_md.registry").models()


sys.modules[__name__].__class__ = _Callable
