"""Numbers in labelled structures that cannot be: each is refused by file and frame, before anything learns from it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from egnn_md.chemistry.elements import CLOSEST_PAIR, COVALENT_RADII, MAX_ATOMIC_NUMBER
from egnn_md.chemistry.structures import CHARGE_NAMES, SPIN_NAMES
from egnn_md.data.frames import Frames
from egnn_md.data.reading import MOST_ATOMS, Array, DataError, whole_numbers
from egnn_md.neighbors import neighbor_list

LARGEST_ATOM_ENERGY: Final = 2e6
"""eV: the total energy of the heaviest atoms is 1e6."""
LARGEST_FORCE: Final = 1e5
"""eV/Å."""
LARGEST_COORDINATE: Final = 1e6
"""Å."""
BOND_RATIOS: Final = (0.45, 1.6)
"""Typical shortest distances of frames, in sums of covalent radii, lie between: 1.0 where atoms are bound, a tenth of
that read from nm, 1.9 times that from Bohr."""
_ON_ONE_ANOTHER: Final = 0.02
"""Less than this no unit explains."""
_ALL_PAIRS: Final = 200
_BLOCK_ELEMENTS: Final = 4_000_000
_NEAR: Final = 3.0


def check_frames(frames: Frames, path: Path) -> None:
    """Raise DataError for atoms, energies, forces, cells or distances that no structure has, naming the first frame."""
    if frames.n_atoms.min() < 1:
        raise DataError(f"{path}: frame {int(frames.n_atoms.argmin())} has no atoms; remove it")
    if frames.atomic_numbers.min() < 1 or frames.atomic_numbers.max() > MAX_ATOMIC_NUMBER:
        raise DataError(f"{path}: atomic numbers must lie between 1 and {MAX_ATOMIC_NUMBER}")
    for what, indices in _wrong_numbers(frames):
        if len(indices):
            raise DataError(f"{path}: frame {int(indices[0])} has {what}; remove it")
    if not np.isfinite(frames.energy).any() and (frames.forces is None or np.isnan(frames.forces).all()):
        raise DataError(
            f"{path} has no energies and no forces: labels are needed (extxyz: energy=… in the comment line, eV, and a "
            "column forces); data.energy_key and data.forces_key tell other names"
        )
    _check_distances(frames, path)


def _wrong_numbers(frames: Frames) -> Iterator[tuple[str, Array]]:
    """What is wrong, and the frames of which it is."""
    of_atom = frames.frame_of_atom
    with np.errstate(invalid="ignore"):
        yield "NaN or infinite positions", of_atom[~(np.abs(frames.positions) < LARGEST_COORDINATE).all(1)]
        wild = np.abs(frames.energy) > LARGEST_ATOM_ENERGY * frames.n_atoms
        yield "an energy that no atoms have", np.flatnonzero(wild)
        if frames.forces is not None:
            yield "forces that no atoms have", of_atom[(np.abs(frames.forces) > LARGEST_FORCE).any(1)]
            missing = np.bincount(of_atom, np.isnan(frames.forces).any(1))
            yield "forces of some of its atoms only", np.flatnonzero((missing > 0) & (missing < frames.n_atoms))
        if frames.stress is not None:
            yield "a stress that is infinite", np.flatnonzero(np.isinf(frames.stress).any((1, 2)))
        yield "a cell that is no number", np.flatnonzero(~(np.abs(frames.cell) < LARGEST_COORDINATE).all((1, 2)))


def _check_distances(frames: Frames, path: Path) -> None:
    shortest, closest = np.full(len(frames), np.inf), np.full(len(frames), np.inf)
    for indices, ratios, distances in _nearest(frames, path):
        shortest[indices], closest[indices] = ratios, distances
    # Only structures of three atoms and more, of which one is H, C, N or O, have to hold together.
    organic = np.bincount(frames.frame_of_atom[np.isin(frames.atomic_numbers, (1, 6, 7, 8))], minlength=len(frames))
    bound = np.isfinite(shortest) & (organic > 0) & (frames.n_atoms >= 3)
    typical = float(np.median(shortest[bound])) if bound.any() else 1.0
    if _ON_ONE_ANOTHER < typical < BOND_RATIOS[0] or typical > BOND_RATIOS[1]:
        unit = "nm" if typical < 1.0 else "Bohr"
        raise DataError(
            f"{path}: the nearest atoms of its frames are typically {typical:.2f} bond lengths apart: are positions in "
            f"{unit}? They must be in Å"
        )
    if (close := np.flatnonzero(closest < CLOSEST_PAIR)).size:
        raise DataError(f"{path}: frame {close[0]} has atoms {closest[close[0]]:.3f} Å apart; remove it")
    if (loose := np.flatnonzero(bound & (shortest > BOND_RATIOS[1]))).size:
        warnings.warn(
            f"{path}: {len(loose)} of {len(frames)} frames have no atoms that are bound (the first is frame "
            f"{loose[0]}: {shortest[loose[0]]:.2f} bond lengths apart): are these in Bohr? Positions must be in Å",
            stacklevel=4,
        )


def _nearest(frames: Frames, path: Path) -> Iterator[tuple[Array, Array, Array]]:
    """Indices of frames, their shortest distance in sums of covalent radii, and in Å; infinite where none is near."""
    radii = np.array(COVALENT_RADII)
    small = ~frames.pbc.any(1) & (frames.n_atoms <= _ALL_PAIRS)
    for n in np.unique(frames.n_atoms[small]):
        same = np.flatnonzero(small & (frames.n_atoms == n))
        for indices in np.array_split(same, max(1, len(same) * int(n) ** 2 * 3 // _BLOCK_ELEMENTS)):
            rows = frames.starts[indices][:, None] + np.arange(n)
            x, r = frames.positions[rows].astype(np.float64), radii[frames.atomic_numbers[rows]]
            distances = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1)
            distances[:, np.arange(n), np.arange(n)] = np.inf
            ratios = (distances / (r[:, :, None] + r[:, None])).min((1, 2))
            yield indices, ratios, distances.min((1, 2))
    for k in np.flatnonzero(~small):
        atoms = slice(frames.starts[k], frames.starts[k + 1])
        x, r = frames.positions[atoms].astype(np.float64), radii[frames.atomic_numbers[atoms]]
        try:
            (i, j), shift = neighbor_list(x, frames.cell[k], frames.pbc[k], _NEAR)
        except ValueError as error:
            raise DataError(f"{path}: frame {k}: {error}") from error
        vectors = x[j] - x[i] + (0.0 if shift is None else shift @ frames.cell[k])
        distances = np.linalg.norm(vectors, axis=1)
        ratio = np.array([(distances / (r[i] + r[j])).min(initial=np.inf)])
        yield np.array([k]), ratio, np.array([distances.min(initial=np.inf)])


CLAIMS: Final = (*CHARGE_NAMES, *SPIN_NAMES)
"""Arrays of an npz that say what a structure is: one number for each."""


def rename_claims(data: dict[str, Array]) -> None:
    """Let charges and multiplicities of an npz stand under "charge" and "multiplicity", whatever its names are."""
    for name, names in (("charge", CHARGE_NAMES), ("multiplicity", SPIN_NAMES)):
        if (given := next((other for other in names if other in data), None)) is not None:
            data[name] = data.pop(given)


def check_arrays(data: dict[str, Array], path: Path, per_frame: Sequence[str]) -> None:
    """Raise DataError unless ragged arrays fit each other, `per_frame` being those with one number a frame, and hold
    numbers.
    """
    labels = ("tag", "gdb", "group", "target_names")
    words = [name for name in data if name not in labels and data[name].dtype.kind not in "iufb"]
    if words:
        raise DataError(f"{path}: {', '.join(words)} are not numbers")
    try:
        data["n_atoms"] = whole_numbers(data["n_atoms"], "n_atoms", MOST_ATOMS)
        data["atomic_numbers"] = whole_numbers(data["atomic_numbers"], "atomic_numbers", MAX_ATOMIC_NUMBER)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    n, total = len(data["n_atoms"].ravel()), int(data["n_atoms"].sum())
    shapes = {"atomic_numbers": (total,), "positions": (total, 3), "forces": (total, 3), "charges": (total,)}
    shapes |= {"dipole": (n, 3)}
    shapes |= dict.fromkeys(("n_atoms", *per_frame), (n,))
    shapes |= dict.fromkeys(("cell", "stress"), (n, 3, 3))
    wrong = [name for name, shape in shapes.items() if name in data and data[name].shape != shape]
    wrong += ["pbc"] if "pbc" in data and data["pbc"].shape not in ((n,), (n, 3)) else []
    if wrong:
        raise DataError(f"{path}: {', '.join(wrong)} do not fit {n} frames with {total} atoms in all")
