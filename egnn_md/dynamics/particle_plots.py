"""Pictures of rollouts of particles. matplotlib loads when they are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from egnn_md.data.nbody import FRAME_TIME, Trajectories
from egnn_md.storage import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FloatArray = NDArray[np.floating[Any]]
TAIL = 8
"""Frames behind a particle that the animation draws."""


def plot_errors(frames: NDArray[np.int64], errors: FloatArray, straight: FloatArray, picture: Path) -> None:
    """Squared errors (n_frames, n_systems) against time, beside constant velocity: median, middle half, mean."""
    figure = _figure(6.4, 4.8)
    axes = figure.subplots()
    times = FRAME_TIME * (frames - frames[0])
    for values, colour, name in ((errors, "C0", "model"), (straight, "C1", "constant velocity")):
        low, middle, high = np.quantile(values[1:], [0.25, 0.5, 0.75], axis=1) if len(values) > 1 else [[]] * 3
        axes.plot(times[1:], middle, color=colour, label=f"{name}: median")
        axes.fill_between(times[1:], low, high, color=colour, alpha=0.2, lw=0)
        axes.plot(times[1:], values[1:].mean(1), color=colour, ls=":", label=f"{name}: mean")
    axes.set(xlabel="time", ylabel="squared error per component")
    if len(errors) > 1:
        axes.set_yscale("log")
    axes.legend()
    _save(figure, picture)


def plot_conserved(frames: NDArray[np.int64], conserved: dict[str, FloatArray], picture: Path) -> None:
    """Changes of energy, momentum and angular momentum against time: medians over the systems, and the worst tenth."""
    figure = _figure(6.4, 7.2)
    times = FRAME_TIME * (frames - frames[0])
    energy = np.abs(conserved["energy"] - conserved["energy"][0])
    changes = {"energy": energy} | {name.removesuffix("_change"): conserved[name] for name in list(conserved)[1:]}
    for axes, (name, values) in zip(figure.subplots(len(changes), 1, sharex=True), changes.items(), strict=True):
        axes.plot(times, np.median(values, axis=1), label="median")
        axes.plot(times, np.quantile(values, 0.9, axis=1), color="0.6", label="nine in ten are below")
        axes.set_ylabel(f"change of {name.replace('_', ' ')}")
    axes.set_xlabel("time")
    axes.legend()
    _save(figure, picture)


def animate(predicted: Trajectories, true: Trajectories, picture: Path, system: int = 0) -> None:
    """One system as a GIF, its first two dimensions: predictions as discs with tails, the truth as rings."""
    from matplotlib.animation import FuncAnimation, PillowWriter

    x, truth = predicted.positions[system], true.positions[system]
    at = true.frames - predicted.frames[0]
    charges = predicted.charges
    colours = ["C0"] * x.shape[1] if charges is None else ["C3" if q > 0 else "C0" for q in charges[system]]
    plane = np.concatenate([x, np.zeros((*x.shape[:2], 1), x.dtype)], -1)[..., :2]
    seen = np.concatenate([truth, np.zeros((*truth.shape[:2], 1), truth.dtype)], -1)[..., :2]
    figure = _figure(4.8, 4.8)
    axes = figure.subplots()
    low, high = plane.min((0, 1)), plane.max((0, 1))
    margin = 0.05 * float((high - low).max()) + 0.1
    axes.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin), aspect="equal")
    tails = [axes.plot([], [], color=colour, lw=1, alpha=0.5)[0] for colour in colours]
    discs = axes.scatter(plane[0, :, 0], plane[0, :, 1], s=50, c=colours, zorder=3, label="predicted")
    rings = axes.scatter(
        seen[0, :, 0], seen[0, :, 1], s=110, facecolors="none", edgecolors="0.3", zorder=4, label="true"
    )
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, fontsize="small", frameon=False
    )  # hides nobody

    def draw(frame: int) -> None:
        for particle, tail in enumerate(tails):
            tail.set_data(*plane[max(0, frame - TAIL) : frame + 1, particle].T)
        discs.set_offsets(plane[frame])
        known = np.flatnonzero(at == frame)
        rings.set_offsets(seen[known[0]] if len(known) else np.empty((0, 2)))
        axes.set_title(f"time {FRAME_TIME * frame:.1f}")

    with write_whole(picture) as temporary:
        FuncAnimation(figure, draw, frames=len(plane)).save(temporary, writer=PillowWriter(fps=10))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, picture: Path) -> None:
    with write_whole(picture) as temporary:
        figure.savefig(temporary, dpi=130)
