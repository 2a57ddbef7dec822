"""The canvas of every picture of errors. matplotlib loads when one is drawn."""

from __future__ import annotations

from typing import Any


def figure(width: float) -> tuple[Any, Any]:
    """A matplotlib figure and its axes, `width` inches wide, that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, 5.0), layout="constrained")
    FigureCanvasAgg(made)
    return made, made.subplots()
