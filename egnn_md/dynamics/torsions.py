"""How bonds turn in a trajectory: how often they cross from one well to the next, and how long they remember.

What counts of a propagator is how many independent conformations it makes a second: large strides that are taken back,
or that turn momenta round, show here.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.elements import symbol
from egnn_md.chemistry.molecules import bonds

FloatArray = NDArray[np.float64]
Dihedral = tuple[int, int, int, int]
TURNED: Final = 90.0
"""Degrees from where it has been on average since it was last counted: wells are 120 or 180 degrees apart."""


class Turning(NamedTuple):
    """Of one bond in one trajectory."""

    name: str
    """The dihedral: "C1-C2-O3-H9", counted from 1."""
    crossings: int
    """From one well to another."""
    memory: float
    """Integrated correlation time of exp(iφ), in frames; 0.5 where the next frame remembers nothing, NaN where φ never
    left its well, so that nothing is known of it."""


def rotatable(numbers: NDArray[np.int64], positions: FloatArray) -> list[Dihedral]:
    """A dihedral for each bond between two atoms with other neighbours that is in no ring, and not next to an atom that
    lies in line with it; heavy atoms first. numbers (n_atoms,), positions (n_atoms, 3) Å.
    """
    bound = bonds(numbers, positions)
    found: list[Dihedral] = []
    for j, k in np.argwhere(np.triu(bound)).tolist():
        first, last = (_neighbor(numbers, positions, bound, a, b) for a, b in ((j, k), (k, j)))
        if first is not None and last is not None and not _in_a_ring(bound, j, k):
            found.append((first, j, k, last))
    return sorted(found, key=lambda dihedral: (-int((numbers[list(dihedral)] > 1).sum()), dihedral))


def _neighbor(
    numbers: NDArray[np.int64], positions: FloatArray, bound: NDArray[np.bool_], of: int, beside: int
) -> int | None:
    """The heaviest neighbour of an atom but `beside`, if none of them is in line with both."""
    others = [int(k) for k in np.flatnonzero(bound[of]) if k != beside]
    axis = positions[beside] - positions[of]
    for k in others:
        arm = positions[k] - positions[of]
        if np.linalg.norm(np.cross(axis, arm)) < 0.2 * np.linalg.norm(axis) * np.linalg.norm(arm):
            return None
    return max(others, key=lambda k: (numbers[k], -k), default=None)


def _in_a_ring(bound: NDArray[np.bool_], j: int, k: int) -> bool:
    """Whether another way leads from j to k."""
    reached, new = {j}, {j}
    while new:
        new = {int(b) for a in new for b in np.flatnonzero(bound[a]) if {a, int(b)} != {j, k}} - reached
        reached |= new
    return k in reached


def dihedral_angles(positions: FloatArray, dihedral: Dihedral) -> FloatArray:
    """Degrees from -180 to 180, (n_frames,), of positions (n_frames, n_atoms, 3) of whole molecules."""
    first, second, third, fourth = (positions[:, k] for k in dihedral)
    axis = third - second
    axis = axis / np.linalg.norm(axis, axis=1, keepdims=True)
    normal, other = np.cross(second - first, axis), np.cross(axis, fourth - third)
    return np.asarray(np.degrees(np.arctan2((np.cross(normal, other) * axis).sum(1), (normal * other).sum(1))))


def crossings(angles: FloatArray) -> int:
    """How often a dihedral (n_frames,) degrees turns by more than `TURNED`. Quick returns count as none or two."""
    count, place = 0, 0j
    for here in np.exp(1j * np.radians(angles)).tolist():
        if (here * place.conjugate()).real < np.cos(np.radians(TURNED)) * abs(place):
            count, place = count + 1, 0j
        place += here
    return count


def memory(angles: FloatArray) -> float:
    """Integrated correlation time, in frames, of exp(iφ) (n_frames,) degrees, up to where it first vanishes."""
    n = len(angles)
    phase = np.exp(1j * np.radians(angles))
    phase = phase - phase.mean()
    power = np.abs(np.fft.fft(phase, 2 * n)) ** 2
    correlation = np.fft.ifft(power)[:n].real / (n - np.arange(n))
    if correlation[0] < 1e-12:  # it never moved
        return float("nan")
    correlation = correlation / correlation[0]
    gone = np.flatnonzero(correlation <= 0.0)
    return 0.5 + float(correlation[1 : gone[0] if len(gone) else n].sum())


def turnings(numbers: NDArray[np.int64], positions: FloatArray, most: int = 12) -> list[Turning]:
    """Of the first `most` rotatable bonds of a molecule: numbers (n_atoms,), positions (n_frames, n_atoms, 3) Å."""
    found = []
    for dihedral in rotatable(numbers, positions[0])[:most]:
        angles = dihedral_angles(positions, dihedral)
        count = crossings(angles)
        found.append(Turning(named(numbers, dihedral), count, memory(angles) if count else float("nan")))
    return found


def named(numbers: NDArray[np.int64], dihedral: Dihedral) -> str:
    """ "C1-C2-O3-H9"."""
    return "-".join(f"{symbol(int(numbers[k]))}{k + 1}" for k in dihedral)
