"""What a flow map learns from: short constant-energy segments of a potential's own dynamics.

Many copies of some molecules move side by side as one batch. A stretch of Langevin dynamics makes one segment differ
from the next; the segment itself is followed at constant energy with a small step. Some hydrogens are deuterium: a flow
depends on masses, which forces alone never show.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from egnn_md.chemistry.units import BOLTZMANN, FS_PER_TIME_UNIT
from egnn_md.data.frames import ragged_rows
from egnn_md.data.reading import MOST_ATOMS, DataError, read_npz, whole_numbers
from egnn_md.models.potential import Potential
from egnn_md.neighbors import molecules_graph
from egnn_md.storage import write_npz

DEUTERIUM: Final = 2.01410177812
"""amu."""


def standard_masses(atomic_numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    """amu, of elements as nature mixes them."""
    from ase.data import atomic_masses

    masses: NDArray[np.float64] = atomic_masses[atomic_numbers]
    return masses


@dataclass(frozen=True)
class SegmentSettings:
    """How segments are made. Times in fs, temperatures in K."""

    copies: int = 128
    """Of each molecule, side by side."""
    segments: int = 60
    """Of each copy."""
    length: float = 7.5
    """Of a segment, at constant energy."""
    spacing: float = 0.5
    """Between the snapshots of a segment."""
    timestep: float = 0.25
    """At constant energy."""
    equilibration: float = 300.0
    """Langevin dynamics before the first segment, in steps of 1 fs."""
    between: float = 20.0
    """Langevin dynamics before every segment, in steps of 1 fs."""
    friction: float = 20.0
    """1/ps."""
    coldest: float = 200.0
    hottest: float = 600.0
    """Each copy has a temperature of its own, drawn evenly from coldest to hottest."""
    deuterium: float = 0.25
    """Fraction of hydrogens that are deuterium, in every second copy."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.copies, self.segments) < 1:
            raise ValueError("copies and segments must be at least 1")
        if not 0 < self.timestep <= self.spacing <= self.length:
            raise ValueError("0 < timestep <= spacing <= length must hold")
        if not (_is_whole(self.spacing / self.timestep) and _is_whole(self.length / self.spacing)):
            raise ValueError("length must be a multiple of spacing, and spacing of timestep")
        if not 0 < self.coldest <= self.hottest or not 0 <= self.deuterium <= 1:
            raise ValueError("0 < coldest <= hottest and 0 <= deuterium <= 1 must hold")


def _is_whole(number: float) -> bool:
    return math.isclose(number, round(number), abs_tol=1e-6)


@dataclass(frozen=True, eq=False)
class Segments:
    """S segments of T snapshots, A atoms in all; the atoms of a segment stand together."""

    n_atoms: NDArray[np.int64]
    """(S,)."""
    copy: NDArray[np.int64]
    """(S,): which copy a segment is of; segments of one copy are alike."""
    atomic_numbers: NDArray[np.int64]
    """(A,)."""
    masses: NDArray[np.float32]
    """(A,) amu."""
    positions: NDArray[np.float32]
    """(A, T, 3) Å."""
    velocities: NDArray[np.float32]
    """(A, T, 3) Å/fs."""
    forces: NDArray[np.float32]
    """(A, T, 3) eV/Å."""
    energy: NDArray[np.float64]
    """(S, T) eV, potential energy."""
    spacing: float
    """fs between snapshots."""
    origin: dict[str, Any]
    """How they were made: the potential's SHA-256, the settings."""

    def __len__(self) -> int:
        return len(self.n_atoms)

    @property
    def n_snapshots(self) -> int:
        return int(self.positions.shape[1])

    def select(self, indices: NDArray[np.int64]) -> Segments:
        """These segments, in this order."""
        starts, n_atoms = np.cumsum(self.n_atoms) - self.n_atoms, self.n_atoms[indices]
        rows = ragged_rows(starts[indices], n_atoms)
        atoms: Any = {name: getattr(self, name)[rows] for name in _PER_ATOM}
        return replace(self, n_atoms=n_atoms, copy=self.copy[indices], energy=self.energy[indices], **atoms)

    def composition(self, elements: tuple[int, ...]) -> NDArray[np.float64]:
        """Atoms of each of `elements` in each segment, (S, n_elements)."""
        segment = np.repeat(np.arange(len(self)), self.n_atoms)
        columns = [np.bincount(segment[self.atomic_numbers == z], minlength=len(self)) for z in elements]
        return np.stack(columns, 1).astype(np.float64)

    def save(self, path: Path) -> None:
        """Write an npz without pickles, whole or not at all."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        details = json.dumps({"spacing_fs": self.spacing, "origin": self.origin})
        write_npz(path, {**arrays, "details": np.array(details)}, compress=False)


_PER_ATOM: Final = ("atomic_numbers", "masses", "positions", "velocities", "forces")
_ARRAYS: Final = ("n_atoms", "copy", "energy", *_PER_ATOM)


def read_segments(path: Path) -> Segments:
    """Read what `Segments.save` wrote. Raises DataError if it is missing, damaged or of another kind."""
    try:
        arrays = read_npz(path, ("details", *_ARRAYS), ())
        details = json.loads(str(arrays.pop("details")))
        arrays["n_atoms"] = whole_numbers(arrays["n_atoms"], "n_atoms", MOST_ATOMS)
        segments = Segments(**arrays, spacing=float(details["spacing_fs"]), origin=details["origin"])
        shape = (int(segments.n_atoms.sum()), segments.n_snapshots, 3)
        kinds = {name: values.dtype.kind for name, values in arrays.items()}
        if set(kinds.values()) - set("iuf") or segments.atomic_numbers.shape != shape[:1]:
            raise ValueError(f"arrays of {kinds}")
    except (OSError, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no file of segments as egnn-md data flow writes them: {error}") from error
    moving = (segments.positions, segments.velocities, segments.forces)
    if any(array.shape != shape for array in moving) or segments.energy.shape != (len(segments), shape[1]):
        raise DataError(f"{path}: positions, velocities, forces and energy must have the same atoms and snapshots")
    if not all(np.isfinite(array).all() for array in (*moving, segments.masses, segments.energy)):
        raise DataError(f"{path} holds numbers that are not finite")
    return segments


Molecule = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Atomic numbers (n,) and positions (n, 3) in Å."""


def make_segments(
    model: Potential,
    molecules: Sequence[Molecule],
    settings: SegmentSettings,
    origin: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Segments:
    """Simulate; the result depends on the arguments and the seed alone. `progress(segments done, of)` per copy.

    `origin` (JSON values) is kept with the settings. Raises UnsupportedElement, and DataError if a molecule comes
    apart.
    """
    swarm = _Swarm(model, [molecule for molecule in molecules for _ in range(settings.copies)], settings)
    swarm.langevin(settings.equilibration)
    per_snapshot, n_snapshots = round(settings.spacing / settings.timestep), round(settings.length / settings.spacing)
    parts: list[_State] = []
    for done in range(settings.segments):
        swarm.langevin(settings.between)
        snapshots = [swarm.state]
        for _ in range(n_snapshots):
            for _ in range(per_snapshot):
                swarm.step(settings.timestep)
            snapshots.append(swarm.state)
        parts.append(_State(*(torch.stack(values, 1) for values in zip(*snapshots, strict=True))))
        swarm.check()
        progress(done + 1, settings.segments)
    positions, velocities, forces, energy = (torch.cat(values).numpy() for values in zip(*parts, strict=True))
    n_copies, times = len(swarm.n_atoms), settings.segments
    return Segments(
        n_atoms=np.tile(swarm.n_atoms, times),
        copy=np.tile(np.arange(n_copies), times),
        atomic_numbers=np.tile(swarm.numbers.numpy(), times),
        masses=np.tile(swarm.masses.squeeze(-1).float().numpy(), times),
        positions=positions.astype(np.float32),
        velocities=(velocities / FS_PER_TIME_UNIT).astype(np.float32),
        forces=forces.astype(np.float32),
        energy=energy,
        spacing=settings.spacing,
        origin={**(origin or {}), "settings": asdict(settings)},
    )


class _State(NamedTuple):
    """Velocities are in Å per FS_PER_TIME_UNIT fs."""

    positions: Tensor
    velocities: Tensor
    forces: Tensor
    energy: Tensor
    """(n_copies,)."""


class _Swarm:
    """All copies, one after another in flat tensors."""

    def __init__(self, model: Potential, copies: Sequence[Molecule], settings: SegmentSettings) -> None:
        self.model, self.friction = model, settings.friction
        self.rng = torch.Generator().manual_seed(settings.seed)
        self.n_atoms = np.array([len(numbers) for numbers, _ in copies])
        self.numbers = torch.from_numpy(np.concatenate([numbers for numbers, _ in copies]))
        model.check_elements(self.numbers)
        positions = torch.tensor(np.concatenate([positions for _, positions in copies]), dtype=model.dtype)
        self.graph = molecules_graph(positions, self.numbers, torch.from_numpy(self.n_atoms), math.inf)  # all pairs
        self.copy = copy = torch.from_numpy(np.repeat(np.arange(len(copies)), self.n_atoms))
        self.masses = torch.tensor(standard_masses(self.numbers.numpy()), dtype=model.dtype).unsqueeze(-1)
        drawn = torch.rand(len(copy), generator=self.rng) < settings.deuterium
        self.masses[(self.numbers == 1) & (copy % 2 == 1) & drawn] = DEUTERIUM
        spread = settings.hottest - settings.coldest
        temperatures = settings.coldest + spread * torch.rand(len(copies), generator=self.rng)
        self.width = (BOLTZMANN * temperatures.to(model.dtype)[copy].unsqueeze(-1) / self.masses).sqrt()
        self.start_lengths = self._lengths(positions)
        self.state = _State(positions, self.width * self._noise(), *self._forces(positions))

    def _noise(self) -> Tensor:
        return torch.randn((len(self.numbers), 3), generator=self.rng).to(self.model.dtype)

    def _forces(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        prediction = self.model(replace(self.graph, positions=positions))
        return prediction.forces, prediction.energy

    def _lengths(self, positions: Tensor) -> Tensor:
        i, j = self.graph.pairs
        lengths: Tensor = torch.linalg.vector_norm(positions[j] - positions[i], dim=-1)
        return lengths

    def step(self, timestep: float, friction: float = 0.0) -> None:
        """`timestep` fs of velocity Verlet, or BAOAB (Leimkuhler and Matthews 2013) with friction in 1/ps."""
        positions, velocities, forces, _ = self.state
        dt, decay = timestep / FS_PER_TIME_UNIT, math.exp(-1e-3 * friction * timestep)
        velocities = velocities + 0.5 * dt / self.masses * forces
        positions = positions + 0.5 * dt * velocities
        if friction:
            velocities = decay * velocities + math.sqrt(1.0 - decay**2) * self.width * self._noise()
        positions = positions + 0.5 * dt * velocities
        forces, energy = self._forces(positions)
        self.state = _State(positions, velocities + 0.5 * dt / self.masses * forces, forces, energy)

    def langevin(self, time: float) -> None:
        """`time` fs in steps of 1 fs."""
        for _ in range(round(time)):
            self.step(1.0, self.friction)

    def check(self) -> None:
        """Raise DataError if bound atoms (1.7 Å apart or less at the start) are more than twice as far apart now."""
        stretched = self._lengths(self.state.positions) / self.start_lengths
        if not bool((stretched[self.start_lengths < 1.7] < 2.0).all()):
            raise DataError("a molecule came apart: lower the hottest temperature, or begin from a relaxed structure")
