"""The charged-particle benchmark of EGNN (arXiv 2102.09844, section 5.1) and its springs: simulator, file, reader.

Unit masses, no box. Charges ±1: F_i = Σ_j q_i q_j (x_i - x_j) / d³; springs between half of the pairs: F_i = -k Σ_j
(x_i - x_j), k = 0.1. Each component of a force is clipped to ±100. Semi-implicit Euler with time step 0.001 whose first
kick is a full step; a frame every 100 steps, frame k at step 100 (k + 1). Starts: positions from a normal distribution,
wider for more particles, speed 0.5 in a random direction. All quantities without units, time in units of 1000 steps.

The file: npz with `frames` (F,) and, for each of the sides train, valid and test, `{side}_positions` and
`{side}_velocities` (S, F, n, n_dim) float32 and `{side}_charges` (S, n) or `{side}_springs` (S, n, n); `rollout_…` is a
side with all frames from 0 on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from egnn_md.data.reading import DataError, read_npz
from egnn_md.storage import write_npz

FloatArray = NDArray[np.floating[Any]]
Law = Literal["charged", "springs"]
TIMESTEP: Final = 1e-3
STEPS_PER_FRAME: Final = 100
FRAME_TIME: Final = TIMESTEP * STEPS_PER_FRAME
FORCE_LIMIT: Final = 100.0
SPRING_CONSTANT: Final = 0.1
START_SPEED: Final = 0.5
BENCHMARK_FRAMES: Final = (20, 30, 40)
ROLLOUT_FRAMES: Final = tuple(range(49))
SIDES: Final = ("train", "valid", "test", "rollout")
_STATE_NUMBERS: Final = 20_000
"""Pair components that are worked on at once: they stay in the processor's cache."""


@dataclass(frozen=True)
class Trajectories:
    """Trajectories of systems with equally many particles."""

    law: Law
    frames: NDArray[np.int64]
    """(n_frames,): numbers of the frames, ascending; times are FRAME_TIME apart."""
    positions: FloatArray
    """(n_systems, n_frames, n_particles, n_dim)."""
    velocities: FloatArray
    """(n_systems, n_frames, n_particles, n_dim); of the kick before the frame, half a time step earlier."""
    couplings: FloatArray
    """(n_systems, n_particles, n_particles): q_i q_j, or 1 for a spring; the diagonal is 0."""
    charges: FloatArray | None = None
    """(n_systems, n_particles), of charged particles."""
    sources: tuple[str, ...] = field(default=())
    """"name sha256" of the file."""

    def __len__(self) -> int:
        return len(self.positions)

    def column(self, frame: int) -> int:
        """Where frame number `frame` stands. Raises DataError, naming the frames there are."""
        places = np.flatnonzero(self.frames == frame)
        if len(places) == 0:
            raise DataError(f"there is no frame {frame}, only {_ranges(self.frames)}: `egnn-md data nbody --frames`")
        return int(places[0])

    def check_law(self, header: Mapping[str, Any]) -> None:
        """Raise DataError if the model with this checkpoint header learned another law."""
        learned = (header.get("training_data") or {}).get("law", self.law)
        if learned != self.law:
            raise DataError(f"the model learned the law {learned!r}, these particles follow {self.law!r}")

    def select(self, systems: slice | NDArray[np.int64]) -> Trajectories:
        """Some of the systems."""
        charges = None if self.charges is None else self.charges[systems]
        arrays = {name: getattr(self, name)[systems] for name in ("positions", "velocities", "couplings")}
        return replace(self, charges=charges, **arrays)


def _ranges(frames: NDArray[np.int64]) -> str:
    whole = len(frames) > 3 and bool((np.diff(frames) == 1).all())
    return f"{frames[0]} to {frames[-1]}" if whole else ", ".join(map(str, frames))


def generate(
    law: Law,
    n_systems: int,
    n_particles: int,
    seed: int | Sequence[int],
    n_dim: int = 3,
    frames: Sequence[int] = BENCHMARK_FRAMES,
    progress: Callable[[int], None] = lambda steps: None,
) -> Trajectories:
    """Simulate systems from random starts; the same for the same arguments.

    `progress` is called with the number of system-steps just done. Raises DataError for impossible sizes.
    """
    if law not in get_args(Law):
        raise DataError(f"the law is one of {', '.join(get_args(Law))}, not {law!r}")
    if n_particles < 2 or n_dim < 1 or n_systems < 1:
        raise DataError(f"{n_systems} systems of {n_particles} particles in {n_dim} dimensions: too few of something")
    chosen = np.array(sorted(set(frames)), np.int64)
    if len(chosen) == 0 or chosen[0] < 0:
        raise DataError(f"frames are numbers from 0 on, not {list(frames)}")
    rng = np.random.default_rng(seed)
    positions = rng.normal(size=(n_systems, n_particles, n_dim)) * (n_particles / 5) ** (1 / n_dim)
    velocities = rng.normal(size=positions.shape)
    velocities *= START_SPEED / np.linalg.norm(velocities, axis=-1, keepdims=True)
    charges = rng.choice([-1.0, 1.0], (n_systems, n_particles)) if law == "charged" else None
    couplings = _random_springs(rng, n_systems, n_particles) if charges is None else couplings_of(charges)
    recorded: list[tuple[FloatArray, FloatArray]] = []
    step = 0
    for frame in chosen:
        n_steps = STEPS_PER_FRAME * (int(frame) + 1) - step
        positions, velocities = advance(law, positions, velocities, couplings, n_steps, progress)
        recorded.append((positions, velocities))
        step += n_steps
    x, v = (np.stack(parts, axis=1).astype(np.float32) for parts in zip(*recorded, strict=True))
    return Trajectories(law, chosen, x, v, couplings.astype(np.float32), charges)


def _random_springs(rng: np.random.Generator, n_systems: int, n_particles: int) -> FloatArray:
    upper = np.triu(rng.integers(0, 2, (n_systems, n_particles, n_particles)), 1).astype(np.float64)
    return upper + upper.swapaxes(1, 2)


def couplings_of(charges: FloatArray) -> FloatArray:
    """q_i q_j with zeros on the diagonal: (S, n) -> (S, n, n)."""
    return charges[:, :, None] * charges[:, None, :] * (1.0 - np.eye(charges.shape[1], dtype=charges.dtype))


def advance(
    law: Law,
    positions: FloatArray,
    velocities: FloatArray,
    couplings: FloatArray,
    n_steps: int,
    progress: Callable[[int], None] = lambda steps: None,
) -> tuple[FloatArray, FloatArray]:
    """`n_steps` time steps from a recorded state, (S, n, n_dim) and couplings (S, n, n), in float64."""
    n_systems, n_particles, n_dim = positions.shape
    size = max(1, _STATE_NUMBERS // (n_particles * (n_particles - 1) // 2 * n_dim))
    x, v = np.empty(positions.shape), np.empty(positions.shape)
    for start in range(0, n_systems, size):
        rows = slice(start, start + size)
        x[rows], v[rows] = _advance(law, positions[rows], velocities[rows], couplings[rows], n_steps)
        progress(n_steps * len(x[rows]))
    return x, v


def _advance(
    law: Law, positions: FloatArray, velocities: FloatArray, couplings: FloatArray, n_steps: int
) -> tuple[FloatArray, FloatArray]:
    """The time steps of some systems, laid out as (n_particles, n_dim * S): pair differences are one product."""
    n_systems, n_particles, n_dim = positions.shape
    i, j = np.triu_indices(n_particles, 1)
    signs = np.zeros((n_particles, len(i)))
    signs[i, range(len(i))], signs[j, range(len(i))] = 1.0, -1.0
    x, v = (a.astype(np.float64).transpose(1, 2, 0).reshape(n_particles, -1).copy() for a in (positions, velocities))
    known = couplings[:, i, j].T.astype(np.float64)
    for _ in range(n_steps):
        difference = (signs.T @ x).reshape(len(i), n_dim, n_systems)
        if law == "charged":
            squared = np.einsum("pds,pds->ps", difference, difference)
            coefficient = known / (squared * np.sqrt(squared))
        else:
            coefficient = -SPRING_CONSTANT * known
        force = signs @ (difference * coefficient[:, None]).reshape(len(i), -1)
        v += TIMESTEP * np.clip(force, -FORCE_LIMIT, FORCE_LIMIT, out=force)
        x += TIMESTEP * v
    back = (a.reshape(n_particles, n_dim, n_systems).transpose(2, 0, 1) for a in (x, v))
    return next(back), next(back)


def energies(law: Law, positions: FloatArray, velocities: FloatArray, couplings: FloatArray) -> FloatArray:
    """Kinetic and potential energy of the law without its clipping, (...,), for (..., n, n_dim), (..., n, n)."""
    x, v = positions.astype(np.float64), velocities.astype(np.float64)
    i, j = np.triu_indices(x.shape[-2], 1)
    distances = np.linalg.norm(x[..., i, :] - x[..., j, :], axis=-1)
    pair = 1.0 / distances if law == "charged" else 0.5 * SPRING_CONSTANT * distances**2
    total: FloatArray = 0.5 * (v**2).sum((-1, -2)) + (couplings[..., i, j] * pair).sum(-1)
    return total


def write(path: Path, sides: dict[str, Trajectories]) -> None:
    """Write a file as described above, whole or not at all."""
    arrays: dict[str, Any] = {}
    for side, part in sides.items():
        if side != "rollout":
            arrays["frames"] = part.frames
        arrays |= {f"{side}_positions": part.positions, f"{side}_velocities": part.velocities}
        if part.charges is not None:
            arrays[f"{side}_charges"] = part.charges.astype(np.float32)
        else:
            arrays[f"{side}_springs"] = part.couplings
    write_npz(path, arrays)


def read(path: Path, side: str) -> Trajectories:
    """One side of a file. Raises DataError if the file or the side is not there or makes no sense."""
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    names = ("frames", *(f"{side}_{name}" for name in ("positions", "velocities", "charges", "springs")))
    arrays = {name.removeprefix(f"{side}_"): array for name, array in read_npz(path, (), names).items()}
    if side == "rollout" and "positions" in arrays:
        arrays["frames"] = np.arange(arrays["positions"].shape[1] if arrays["positions"].ndim == 4 else 0)
    missing = [name for name in ("frames", "positions", "velocities") if name not in arrays]
    if missing or not arrays.keys() & {"charges", "springs"}:
        lacks = ", ".join(missing or ["charges or springs"])
        raise DataError(f"{path} has no {side} trajectories of particles (no {lacks}); `egnn-md data nbody` makes some")
    trajectories = _checked(path, side, arrays)
    with path.open("rb") as file:
        return replace(trajectories, sources=(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}",))


def _checked(path: Path, side: str, arrays: dict[str, NDArray[Any]]) -> Trajectories:
    shape = arrays["positions"].shape
    charged = "charges" in arrays
    known = arrays["charges" if charged else "springs"]
    if len(shape) != 4 or min(shape) < 1 or arrays["velocities"].shape != shape or len(arrays["frames"]) != shape[1]:
        raise DataError(f"{path}: {side}_positions and _velocities must be (systems, frames, particles, dimensions)")
    n_systems, _, n_particles, _ = shape
    if known.shape != (n_systems, *[n_particles] * (1 if charged else 2)):
        raise DataError(f"{path}: {side} has charges or springs of shape {known.shape} for {shape[0]} x {shape[2]}")
    parts = (arrays["positions"], arrays["velocities"], known)
    if not all(np.issubdtype(part.dtype, np.number) and np.isfinite(part).all() for part in parts):
        raise DataError(f"{path}: {side} has values that are not finite numbers")
    return Trajectories(
        law="charged" if charged else "springs",
        frames=arrays["frames"].astype(np.int64),
        positions=arrays["positions"],
        velocities=arrays["velocities"],
        couplings=couplings_of(known) if charged else known,
        charges=known if charged else None,
    )


def duration(first: int, last: int) -> float:
    """Time from one frame to another."""
    return (last - first) * STEPS_PER_FRAME * TIMESTEP
