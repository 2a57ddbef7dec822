"""GFN2-xTB labels of single structures (tblite), short Langevin runs, and ragged npz files of labelled frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_masses
from ase.units import Bohr, Hartree, fs, kB
from tblite.interface import Calculator

MAX_FORCE = 40.0  # eV/A: beyond it a frame is of no use to a potential for chemistry
MIN_GAP = 0.5  # eV: below it a closed shell is not what the structure is

MAX_ITERATIONS = 60  # closed shells take 10-25; what takes more is hardly ever one


class Dropped(RuntimeError):
    """A structure without a usable label; the message is its reason, in a word or two."""


@dataclass(frozen=True)
class Label:
    """energy (eV), forces (n, 3) eV/A, charges (n,) e, dipole (3,) e A about the origin of the positions."""

    energy: float
    forces: np.ndarray
    charges: np.ndarray
    dipole: np.ndarray


@dataclass(frozen=True)
class Frame:
    """A labelled structure. `group` names the molecule (frames of one group stay on one side of a split)."""

    numbers: np.ndarray
    positions: np.ndarray
    label: Label
    charge: int
    tag: str
    group: str
    temperature: float
    cell: np.ndarray | None = None


Job = Callable[[], Iterable[Frame | Dropped]]


class Teacher:
    """GFN2-xTB of one molecule: called with positions (n, 3) in A, it returns a `Label` or raises `Dropped`.

    Electrons are always paired. The last density starts the next self-consistent cycle. `strict` off, large forces and
    small gaps pass: on the way to a structure that is worth a label.
    """

    strict = True

    def __init__(self, numbers: np.ndarray, charge: int, cell: np.ndarray | None = None) -> None:
        self.numbers = np.asarray(numbers)
        self.charge = charge
        self.cell = cell
        self._calculator: Any = None
        self._last: Any = None

    def __call__(self, positions: np.ndarray) -> Label:
        if self._calculator is None:
            lattice = {} if self.cell is None else {"lattice": self.cell / Bohr, "periodic": np.full(3, True)}
            self._calculator = Calculator(
                "GFN2-xTB", self.numbers, positions / Bohr, charge=float(self.charge), uhf=0, **lattice
            )
            self._calculator.set("verbosity", 0)
            self._calculator.set("max-iter", MAX_ITERATIONS)
        try:
            self._calculator.update(positions / Bohr)
            self._last = result = self._calculator.singlepoint(self._last)
        except RuntimeError as error:
            self._last = None
            raise Dropped("not converged") from error
        forces = -result.get("gradient") * (Hartree / Bohr)
        if self.strict and not np.abs(forces).max() <= MAX_FORCE:
            raise Dropped("force")
        if self.strict and _gap(result) < MIN_GAP:
            raise Dropped("gap")
        return Label(float(result.get("energy")) * Hartree, forces, result.get("charges"), result.get("dipole") * Bohr)


def _gap(result: Any) -> float:
    """HOMO-LUMO gap in eV; infinite where every orbital is full or every one empty (a lone ion)."""
    energies = np.sort(result.get("orbital-energies"))
    pairs = round(float(result.get("orbital-occupations").sum()) / 2)
    return float(energies[pairs] - energies[pairs - 1]) * Hartree if 0 < pairs < len(energies) else np.inf


def thermal_velocities(numbers: np.ndarray, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """Maxwell-Boltzmann velocities (n, 3) in ase's units, without drift."""
    masses = atomic_masses[numbers][:, None]
    velocities = rng.normal(size=(len(numbers), 3)) * np.sqrt(kB * temperature / masses)
    return np.asarray(velocities - (masses * velocities).sum(0) / masses.sum())


def langevin(
    evaluate: Callable[[np.ndarray], Any],
    numbers: np.ndarray,
    positions: np.ndarray,
    velocities: np.ndarray,
    temperature: float,
    steps: int,
    rng: np.random.Generator,
    *,
    timestep: float = 1.0,
    friction: float = 0.05,
) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
    """Positions, velocities and `evaluate(positions)`, which has `forces`, after each step (fs; friction in 1/fs)."""
    masses = atomic_masses[numbers][:, None]
    dt = timestep * fs
    keep = np.exp(-friction * timestep)
    kick = np.sqrt((1 - keep**2) * kB * temperature / masses)
    value = evaluate(positions)
    for _ in range(steps):
        velocities = velocities + 0.5 * dt * value.forces / masses
        positions = positions + 0.5 * dt * velocities
        velocities = keep * velocities + kick * rng.normal(size=velocities.shape)
        positions = positions + 0.5 * dt * velocities
        value = evaluate(positions)
        velocities = velocities + 0.5 * dt * value.forces / masses
        yield positions, velocities, value


def write_frames(path: Path, frames: list[Frame], dropped: Counter[str]) -> None:
    """A ragged npz, whole or not there at all."""
    cells = [np.zeros((3, 3)) if frame.cell is None else frame.cell for frame in frames]
    arrays = {
        "n_atoms": np.array([len(frame.numbers) for frame in frames], np.int32),
        "atomic_numbers": np.concatenate([frame.numbers for frame in frames]).astype(np.uint8),
        "positions": np.concatenate([frame.positions for frame in frames]).astype(np.float32),
        "forces": np.concatenate([frame.label.forces for frame in frames]).astype(np.float32),
        "charges": np.concatenate([frame.label.charges for frame in frames]).astype(np.float32),
        "energy": np.array([frame.label.energy for frame in frames]),
        "dipole": np.array([frame.label.dipole for frame in frames], np.float32),
        "charge": np.array([frame.charge for frame in frames], np.int8),
        "tag": np.array([frame.tag for frame in frames]),
        "group": np.array([frame.group for frame in frames]),
        "T": np.array([frame.temperature for frame in frames], np.float32),
        "cell": np.array(cells, np.float32),
        "dropped_reason": np.array(sorted(dropped), dtype=np.str_),
        "dropped_count": np.array([dropped[reason] for reason in sorted(dropped)], np.int64),
    }
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)
