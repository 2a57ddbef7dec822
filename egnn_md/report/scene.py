"""What the page shows in three dimensions: structures one after another, as compact numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

MAX_FRAMES: Final = 300
MAX_NUMBERS: Final = 250_000
"""Atoms times frames: some five megabytes of page at most."""
SIGNAL_SECONDS: Final = 3.0
"""At most spent on the extrapolation signal of the atoms of the frames."""


@dataclass(frozen=True)
class Scene:
    """Structures to turn and play.

    `labels` say what each is, `times` where it stands on the time axis of the charts (None: it has no such place);
    `signals` are the extrapolation of each atom of each frame, None where it is not known.
    """

    frames: Sequence[Atoms]
    labels: Sequence[str] = ()
    times: Sequence[float] | None = None
    signals: Sequence[Any] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; frames of the same atoms name their elements once."""
        frames: list[dict[str, Any]] = []
        last: list[str] = []
        turn = np.eye(3)
        for k, atoms in enumerate(self.frames):
            symbols = list(atoms.symbols)
            if self.times is None or symbols != last:
                turn = _broadside(atoms)
            entry: dict[str, Any] = {"x": np.round(_whole(atoms) @ turn, 3).ravel().tolist()}
            if symbols != last:
                entry["s"] = last = symbols
            if atoms.pbc.any():
                entry["c"] = np.round(atoms.cell.array, 3).tolist()
            if k < len(self.signals) and self.signals[k] is not None:
                entry["e"] = [round(float(value), 3) if math.isfinite(value) else None for value in self.signals[k]]
            if k < len(self.labels):
                entry["l"] = self.labels[k]
            if self.times is not None:
                entry["t"] = self.times[k]
            frames.append(entry)
        return {"frames": frames, "moving": self.times is not None}


@dataclass(frozen=True)
class Particles:
    """Points that move: coloured spheres, and paler ones where they should be, seen where the two part.

    `frames` are (n_particles, n_dim) each, of which the first three dimensions are shown; `true` as many, None where
    nothing is known; `colours` of each particle as #rrggbb; `labels` and `times` as of a `Scene`.
    """

    frames: Sequence[Any]
    true: Sequence[Any]
    colours: Sequence[str]
    labels: Sequence[str]
    times: Sequence[float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        everything = np.concatenate([_in_space(x) for x in (*self.frames, *self.true) if x is not None])
        low, high = everything.min(0), everything.max(0)
        frames: list[dict[str, Any]] = []
        for x, true, label, when in zip(self.frames, self.true, self.labels, self.times, strict=True):
            entry: dict[str, Any] = {"x": _flat(x), "l": label, "t": when}
            frames.append(entry if true is None else {**entry, "g": _flat(true)})
        radius = round(0.025 * float(np.linalg.norm(high - low)), 4)
        reach = [*_flat(low[None]), *_flat(high[None])]
        return {"frames": frames, "moving": True, "colours": list(self.colours), "radius": radius, "reach": reach}


def _in_space(x: Any) -> Any:
    """(n, n_dim) -> (n, 3): zeros for what is not there."""
    x = np.asarray(x, np.float64)[:, :3]
    return np.pad(x, ((0, 0), (0, 3 - x.shape[1])))


def _flat(x: Any) -> list[float]:
    flat: list[float] = np.round(_in_space(x), 4).ravel().tolist()
    return flat


def _whole(atoms: Atoms) -> Any:
    """Positions about the middle of the structure; as they are where there is a cell."""
    positions = np.asarray(atoms.positions, dtype=np.float64)
    return positions if atoms.pbc.any() or not len(atoms) else positions - positions.mean(0)


def _broadside(atoms: Atoms) -> Any:
    """(3, 3) rotation, from the right: the longest axis runs across the page and the flat side faces who looks at it.
    The identity where there is a cell.
    """
    if atoms.pbc.any() or len(atoms) < 3:
        return np.eye(3)
    axes = np.linalg.svd(_whole(atoms), full_matrices=True)[2].T
    return axes * [1.0, 1.0, np.linalg.det(axes)]  # no mirror image


def thinned(n: int, n_atoms: int) -> list[int]:
    """Which of n frames to keep: evenly spread, the first and the last among them."""
    most = max(2, min(MAX_FRAMES, MAX_NUMBERS // max(n_atoms, 1)))
    return sorted({round(k) for k in np.linspace(0, n - 1, min(n, most))}) if n else []


def atom_signals(model: Any, frames: Sequence[Atoms], seconds: float = SIGNAL_SECONDS) -> list[Any]:
    """Extrapolation of every atom of the frames, (n_atoms,) each, from a potential (its name, path or itself).

    Where the time does not suffice, a frame takes that of the last one that was looked at.
    """
    signal = _signal_of(model)
    end = time.monotonic() + seconds
    known: dict[int, Any] = {}
    for k in _coarse_first(len(frames)):
        known[k] = signal(frames[k])
        if time.monotonic() > end:
            break
    looked_at = np.array(sorted(known))
    return [known[int(looked_at[np.searchsorted(looked_at, k, side="right") - 1])] for k in range(len(frames))]


def _coarse_first(n: int) -> list[int]:
    """0 … n - 1 so that every beginning of the list is spread over all."""
    order, step, seen = [], 1 << max(n - 1, 0).bit_length(), set()
    while step:
        order += [k for k in range(0, n, step) if k not in seen]
        seen.update(order)
        step //= 2
    return order


def _signal_of(model: Any) -> Callable[[Atoms], Any]:
    from egnn_md.checkpoint import load
    from egnn_md.neighbors import GraphBuilder

    network: Any = load(model) if isinstance(model, str) or hasattr(model, "__fspath__") else model
    build = GraphBuilder(network.config.cutoff)

    def signal(atoms: Atoms) -> Any:
        graph = build(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc)
        return network(graph.to(dtype=network.dtype)).extrapolation.numpy(force=True)

    return signal
