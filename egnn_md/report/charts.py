"""Charts as SVG text: lines over time, distributions, predicted against reference. They take the page's colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 88, 22, 12, 44
MAX_POINTS: Final = 1200
"""Of a line; more do not show."""
MAX_DOTS: Final = 3000
BINS: Final = 40


def lines(
    title: str,
    x: FloatArray,
    series: Mapping[str, FloatArray],
    x_label: str,
    y_label: str,
    level: float | None = None,
    *,
    of_frames: bool = True,
    note: str = "",
) -> str:
    """Curves over a common axis; `level` draws a dashed line there. "" if there is nothing finite to draw.

    x and each series are (n,). of_frames: x is that of the frames, and the chart remembers its range, so that the page
    can mark the one that is shown.
    """
    every = max(1, math.ceil(len(x) / MAX_POINTS))
    known = {name: np.asarray(y, dtype=np.float64)[::every] for name, y in series.items()}
    x = np.asarray(x, dtype=np.float64)[::every]
    values = [y[np.isfinite(y)] for y in known.values()]
    if len(x) < 2 or not any(len(part) for part in values):
        return ""
    everything = np.concatenate([*values, np.array([] if level is None else [level])])
    box = _Box(_span(x, 0.0), _span(everything))
    parts = [box.axes(x_label, y_label)]
    if level is not None:
        height = box.y(level)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
    for k, y in enumerate(known.values()):
        good = np.isfinite(y)
        points = " ".join(f"{box.x(a):.1f},{box.y(b):.1f}" for a, b in zip(x[good], y[good], strict=True))
        parts.append(f'<polyline class="s{k % 6}" points="{points}"/>')
    if of_frames:
        parts.append(f'<line class="now" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    caption = " ".join(part for part in (_legend(known) if len(known) > 1 else "", escape(note)) if part)
    return _figure(title, "".join(parts), caption, box.x_range if of_frames else None)


def histogram(title: str, values: FloatArray, x_label: str, note: str = "") -> str:
    """How often each value occurs. "" without finite values."""
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    counts, edges = np.histogram(values, bins=min(BINS, max(5, round(math.sqrt(len(values))) * 2)))
    box = _Box((float(edges[0]), float(edges[-1])), (0.0, float(counts.max()) * 1.05))
    bars = "".join(
        f'<rect class="bar" x="{box.x(a):.1f}" y="{box.y(n):.1f}" width="{max(box.x(b) - box.x(a) - 1, 0.5):.1f}"'
        f' height="{box.y(0) - box.y(n):.1f}"/>'
        for n, a, b in zip(counts.tolist(), edges, edges[1:], strict=False)
    )
    return _figure(title, box.axes(x_label, "count") + bars, escape(note))


def parity(title: str, reference: FloatArray, predicted: FloatArray, unit: str) -> str:
    """Dots of predicted against reference, of which the diagonal is perfect, with the mean absolute error."""
    reference, predicted = np.ravel(reference), np.ravel(predicted)
    known = np.isfinite(reference) & np.isfinite(predicted)
    reference, predicted = reference[known], predicted[known]
    if not len(reference):
        return ""
    note = f"mean absolute error {np.abs(predicted - reference).mean():.4g} {unit}; {len(reference)} values"
    if len(reference) > MAX_DOTS:
        chosen = np.random.default_rng(0).choice(len(reference), MAX_DOTS, replace=False)
        note += f", {MAX_DOTS} of them drawn"
        reference, predicted = reference[chosen], predicted[chosen]
    span = _span(np.concatenate([reference, predicted]))
    box = _Box(span, span)
    (low, high) = span
    dots = "".join(
        f'<circle class="dot" cx="{box.x(a):.1f}" cy="{box.y(b):.1f}" r="2"/>'
        for a, b in zip(reference, predicted, strict=True)
    )
    ends = f'x1="{box.x(low):.1f}" y1="{box.y(low):.1f}" x2="{box.x(high):.1f}" y2="{box.y(high):.1f}"'
    diagonal = f'<line class="level" {ends}/>'
    axes = box.axes(f"reference / {unit}", f"predicted / {unit}")
    return _figure(title, axes + diagonal + dots, escape(note))


class _Box:
    """Maps data to the drawing."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]) -> None:
        self.x_range, self.y_range = x_range, y_range

    def x(self, value: float) -> float:
        low, high = self.x_range
        return float(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT))

    def y(self, value: float) -> float:
        low, high = self.y_range
        return float(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM))

    def axes(self, x_label: str, y_label: str) -> str:
        """Grid, numbers and labels."""
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = []
        for value, text in _ticks(*self.y_range):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        for value, text in _ticks(*self.x_range):
            x = self.x(value)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
        middle = (LEFT + right) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
        turned = f'transform="rotate(-90 14 {(TOP + bottom) / 2})"'
        parts.append(f'<text x="14" y="{(TOP + bottom) / 2}" text-anchor="middle" {turned}>{escape(y_label)}</text>')
        return "".join(parts)


def _span(values: FloatArray, margin: float = 0.05) -> tuple[float, float]:
    """The range of the values with some room, never empty."""
    low, high = float(values.min()), float(values.max())
    room = margin * (high - low) or (0.0 if high > low else max(abs(low) * 1e-3, 0.5))
    return low - room, high + room


def _ticks(low: float, high: float, wanted: int = 5) -> list[tuple[float, str]]:
    """Round numbers between the ends, and how they read."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    values = [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    large = max(abs(low), abs(high)) >= 1e6 or digits > 5
    return [(value, f"{value:.3g}" if large else f"{value + 0.0:.{digits}f}") for value in values]


def _legend(names: Mapping[str, Any] | Sequence[str]) -> str:
    return " ".join(f'<span class="key k{k % 6}">{escape(name)}</span>' for k, name in enumerate(names))


def _figure(title: str, inside: str, caption: str, x_range: tuple[float, float] | None = None) -> str:
    """One chart as a figure; a range of x lets the page move a mark along it."""
    data = "" if x_range is None else f' data-x="{x_range[0]!r} {x_range[1]!r} {LEFT} {WIDTH - RIGHT}"'
    return (
        f"<figure><h3>{escape(title)}</h3>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"{data}>{inside}</svg>'
        f"<figcaption>{caption}</figcaption></figure>"
    )
