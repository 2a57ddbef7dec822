"""Pages of the Python interface, one for each public name, and the table of models."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

from egnn_md.registry import Models, models

PACKAGES = ("egnn_md", *(f"egnn_md.{name}" for name in ("calculators", "dynamics", "models", "nn", "neighbors")))
"""Whose `__all__` is public."""


@cache
def pages() -> dict[str, str]:
    """File name -> Markdown with mkdocstrings' directive."""
    made = {}
    for package in PACKAGES:
        listed = getattr(importlib.import_module(package), "__all__", ())
        for name in (name for name in listed if not name.startswith("_")):
            text = f"```python\nfrom {package} import {name}\n```\n\n::: {_home(package, name)}\n"
            made[f"{package}.{name}.md"] = text
    return made


def title(page: str) -> str:
    """What the menu calls a page of `pages`."""
    return page.removesuffix(".md").rpartition(".")[2]


def _home(package: str, name: str) -> str:
    """Dotted path of the definition of a name that a package gives out."""
    value = getattr(importlib.import_module(package), name)
    if isinstance(value, ModuleType):  # egnn_md.models is a package that can be called
        return f"egnn_md.registry.{name}"
    return f"{value.__module__}.{name}" if hasattr(value, "__module__") else f"{package}.{name}"


def table_of_models() -> str:
    """Shipped models as a Markdown table; names lead to their cards."""
    found = models()
    lines = ["| " + " | ".join(Models.COLUMNS) + " |", "|---" * len(Models.COLUMNS) + "|"]
    lines += [f"| [{name}]({name}.md) | {' | '.join(rest)} |" for name, *rest in found.rows()]
    return "\n".join(lines)
