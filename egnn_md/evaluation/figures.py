"""The canvas of every picture of errors. matplotlib loads when one is drawn."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_failing(what: str) -> Iterator[None]:
    """What is drawn here is an extra: if it fails, a warning says so, and the work that it shows is not lost."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"could not draw {what}: {error or type(error).__name__}", stacklevel=4)


def figure(width: float) -> tuple[Any, Any]:
    """A matplotlib figure and its axes, `width` inches wide, that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, 5.0), layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots()
