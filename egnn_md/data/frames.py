"""Labelled structures: many frames in flat arrays, from npz or anything ase reads.

Flat ("ragged") arrays keep a hundred thousand molecules in a few arrays, so that a batch is a few numpy calls.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.elements import MAX_ATOMIC_NUMBER, symbols
from egnn_md.chemistry.structures import NEUTRAL, charge_of, multiplicity_of

Array = NDArray[Any]


class DataError(ValueError):
    """A data file that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Frames:
    """Structures with labels. Per-atom arrays of all frames stand one after another."""

    n_atoms: NDArray[np.int64]
    """(n_frames,)."""
    atomic_numbers: NDArray[np.int64]
    """(total,)."""
    positions: Array
    """(total, 3) Å."""
    energy: NDArray[np.float64]
    """(n_frames,) eV; NaN where unknown."""
    forces: Array | None
    """(total, 3) eV/Å; None if the source has none, NaN in single frames without."""
    cell: NDArray[np.float64]
    """(n_frames, 3, 3) Å, rows are vectors; zero for molecules."""
    pbc: NDArray[np.bool_]
    """(n_frames, 3)."""
    stress: Array | None
    """(n_frames, 3, 3) eV/Å³, NaN where unknown; None if the source has none."""
    group: NDArray[np.str_]
    """(n_frames,): frames of one group are never divided between training and test (a molecule's number, a formula)."""
    tag: NDArray[np.str_]
    """(n_frames,): a free label of how the frame was made, for errors by kind."""
    charge: NDArray[np.float64] | None = None
    """(n_frames,) total charges, e; None: all neutral."""
    multiplicity: NDArray[np.float64] | None = None
    """(n_frames,) of the spin; None: all closed shells."""
    sources: tuple[str, ...] = field(default=())
    """Files the frames came from, each with the SHA-256 of its bytes: "name sha256"."""

    def __len__(self) -> int:
        return len(self.n_atoms)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(n_frames + 1,): where each frame's atoms begin."""
        return np.concatenate([[0], np.cumsum(self.n_atoms)]).astype(np.int64)

    def atoms_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the per-atom arrays that belong to these frames, in their order."""
        return ragged_rows(self.starts[indices], self.n_atoms[indices])

    def select(self, indices: NDArray[np.int64]) -> Frames:
        """The frames with these indices, in this order."""
        rows = self.atoms_of(indices)
        return replace(
            self,
            n_atoms=self.n_atoms[indices],
            atomic_numbers=self.atomic_numbers[rows],
            positions=self.positions[rows],
            energy=self.energy[indices],
            forces=None if self.forces is None else self.forces[rows],
            cell=self.cell[indices],
            pbc=self.pbc[indices],
            stress=None if self.stress is None else self.stress[indices],
            group=self.group[indices],
            tag=self.tag[indices],
            charge=None if self.charge is None else self.charge[indices],
            multiplicity=None if self.multiplicity is None else self.multiplicity[indices],
        )

    def check_closed_shells(self) -> None:
        """Raise DataError if a frame has a charge or unpaired electrons: a potential without such inputs would learn
        their energies as if they were those of neutral closed shells.
        """
        charged = np.zeros(len(self)) if self.charge is None else self.charge
        open_shell = np.ones(len(self)) if self.multiplicity is None else self.multiplicity
        wrong = np.flatnonzero(~(np.abs(charged) <= NEUTRAL) | (open_shell != 1))
        if len(wrong):
            raise DataError(
                f"{len(wrong)} of {len(self)} frames are charged or open shells (the first is frame {wrong[0]}: charge "
                f"{charged[wrong[0]]:g}, multiplicity {open_shell[wrong[0]]:g}): this potential knows neutral closed "
                "shells only; leave them out"
            )

    def composition(self, elements: Sequence[int]) -> NDArray[np.float64]:
        """(n_frames, n_elements): how many atoms of each element a frame has.

        Raises DataError if a frame has another element.
        """
        frame = np.repeat(np.arange(len(self)), self.n_atoms)
        position = np.full(256, -1)
        position[list(elements)] = np.arange(len(elements))
        column = position[self.atomic_numbers]
        if (column < 0).any():
            raise DataError(f"frames hold {symbols(np.unique(self.atomic_numbers[column < 0]))}, not among {elements}")
        counts = np.zeros((len(self), len(elements)))
        np.add.at(counts, (frame, column), 1.0)
        return counts


def ragged_rows(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenation of range(start, start + length) for each pair."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)


def read_frames(path: str | Path) -> Frames:
    """Frames from an npz of ragged arrays (`n_atoms`, `atomic_numbers`, `positions`, `energy`, `forces`, optional
    `cell`, `pbc`, `stress`, `gdb`, `tag`, `charge`, `multiplicity`) or from anything ase reads with energies.

    Energies in eV, forces in eV/Å. Raises DataError for missing, empty, broken or unlabelled files, naming the file.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"no such file: {path}")
    if path.is_dir() or path.stat().st_size == 0:
        raise DataError(f"{path} is {'a folder' if path.is_dir() else 'empty'}: give a file with structures")
    frames = _read_npz(path) if path.suffix == ".npz" else _read_ase(path)
    if len(frames) == 0:
        raise DataError(f"{path} holds no structures")
    _check(frames, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return replace(frames, sources=(f"{path.name} {digest}",))


def concatenate(parts: Sequence[Frames]) -> Frames:
    """Frames of several sources, one after another."""
    if len(parts) == 1:
        return parts[0]

    def join(name: str, per_frame: tuple[int, ...] | None) -> Array | None:
        values = [getattr(part, name) for part in parts]
        if all(value is None for value in values):
            return None
        filled = []
        for part, value in zip(parts, values, strict=True):
            shape = (len(part.positions), 3) if per_frame is None else (len(part), *per_frame)
            filled.append(np.full(shape, np.nan, np.float32) if value is None else value)
        return np.concatenate(filled)

    plain = ("n_atoms", "atomic_numbers", "positions", "energy", "cell", "pbc", "group", "tag")
    return Frames(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in plain},
        forces=join("forces", None),
        stress=join("stress", (3, 3)),
        charge=_per_frame(parts, "charge", 0.0),
        multiplicity=_per_frame(parts, "multiplicity", 1.0),
        sources=tuple(source for part in parts for source in part.sources),
    )


def _per_frame(parts: Sequence[Frames], name: str, missing: float) -> Array | None:
    values = [getattr(part, name) for part in parts]
    if all(value is None for value in values):
        return None
    return np.concatenate(
        [np.full(len(part), missing) if value is None else value for part, value in zip(parts, values, strict=True)]
    )


def _check(frames: Frames, path: Path) -> None:
    if frames.n_atoms.min() < 1:
        raise DataError(f"{path}: frame {int(frames.n_atoms.argmin())} has no atoms; remove it")
    if not np.isfinite(frames.positions).all():
        bad = int(np.searchsorted(frames.starts, np.flatnonzero(~np.isfinite(frames.positions).all(1))[0], "right")) - 1
        raise DataError(f"{path}: frame {bad} has NaN or infinite positions; remove it")
    if frames.atomic_numbers.min() < 1 or frames.atomic_numbers.max() > MAX_ATOMIC_NUMBER:
        raise DataError(f"{path}: atomic numbers must lie between 1 and {MAX_ATOMIC_NUMBER}")
    if not np.isfinite(frames.energy).any():
        raise DataError(f"{path} has no energies: labels are needed (extxyz: energy=… in the comment line, eV)")


def read_npz(path: Path, required: Sequence[str]) -> dict[str, Array]:
    """All arrays of an npz. Raises DataError if it cannot be read or lacks one of `required`."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            data = {name: archive[name] for name in archive.files}
    except Exception as error:
        raise DataError(f"{path} is not a readable npz: {error}") from error
    missing = [name for name in required if name not in data]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it has {', '.join(sorted(data)) or 'nothing'}")
    return data


def _read_npz(path: Path) -> Frames:
    data = read_npz(path, ("n_atoms", "atomic_numbers", "positions", "energy"))
    check_arrays(data, path, per_frame=("energy", "gdb", "tag", "has_forces", "charge", "multiplicity"))
    n_atoms = data["n_atoms"].astype(np.int64)
    n = len(n_atoms)
    cell = data.get("cell", np.zeros((n, 3, 3))).astype(np.float64)
    pbc = data["pbc"].astype(bool) if "pbc" in data else (np.abs(cell).sum(-1) > 0)
    forces = data.get("forces")
    if forces is not None and "has_forces" in data:
        forces = np.where(np.repeat(data["has_forces"].astype(bool), n_atoms)[:, None], forces, np.nan)
    frames = Frames(
        n_atoms=n_atoms,
        atomic_numbers=data["atomic_numbers"].astype(np.int64),
        positions=data["positions"],
        energy=data["energy"].astype(np.float64),
        forces=forces,
        cell=cell,
        pbc=np.broadcast_to(pbc, (n, 3)) if pbc.ndim == 2 else np.repeat(pbc[:, None], 3, 1),
        stress=data.get("stress"),
        group=np.zeros(n, "U1"),
        tag=data["tag"].astype(str) if "tag" in data else np.full(n, ""),
        charge=data["charge"].astype(np.float64) if "charge" in data else None,
        multiplicity=data["multiplicity"].astype(np.float64) if "multiplicity" in data else None,
    )
    return replace(frames, group=data["gdb"].astype(str) if "gdb" in data else _formulas(frames))


def check_arrays(data: dict[str, Array], path: Path, per_frame: Sequence[str]) -> None:
    """Raise DataError unless ragged arrays fit each other, `per_frame` being those with one number a frame, and hold
    numbers.
    """
    labels = ("tag", "gdb", "target_names")
    words = [name for name in data if name not in labels and data[name].dtype.kind not in "iufb"]
    if words:
        raise DataError(f"{path}: {', '.join(words)} are not numbers")
    n, total = len(data["n_atoms"].ravel()), int(data["n_atoms"].sum())
    shapes = {"atomic_numbers": (total,), "positions": (total, 3), "forces": (total, 3)}
    shapes |= dict.fromkeys(("n_atoms", *per_frame), (n,))
    shapes |= dict.fromkeys(("cell", "stress"), (n, 3, 3))
    wrong = [name for name, shape in shapes.items() if name in data and data[name].shape != shape]
    if wrong or data["n_atoms"].min(initial=0) < 0:
        raise DataError(f"{path}: {', '.join(wrong) or 'n_atoms'} do not fit {n} frames with {total} atoms in all")


def _formulas(frames: Frames) -> NDArray[np.str_]:
    """The composition of each frame as a string: the group of frames that name none."""
    starts = frames.starts
    parts = (np.bincount(frames.atomic_numbers[a:b]) for a, b in pairwise(starts))
    return np.array(["-".join(f"{z}:{c}" for z, c in enumerate(counts) if c) for counts in parts])


def _read_ase(path: Path) -> Frames:
    import ase.io
    from ase.calculators.calculator import PropertyNotImplementedError

    try:
        structures = ase.io.read(path, index=":")
    except Exception as error:
        raise DataError(f"ase cannot read {path}: {error or type(error).__name__}") from error

    def label(atoms: Any, name: str, shape: tuple[int, ...]) -> Array:
        try:
            value = atoms.calc.get_property(name, atoms, allow_calculation=False) if atoms.calc else None
        except PropertyNotImplementedError:
            value = None
        if value is None:
            value = atoms.arrays.get(name) if name == "forces" else atoms.info.get(name)
        return np.full(shape, np.nan) if value is None else np.asarray(value, dtype=np.float64)

    if not structures:
        raise DataError(f"{path} holds no structures")
    forces = np.concatenate([label(atoms, "forces", (len(atoms), 3)) for atoms in structures])
    stress = np.stack([_full_stress(label(atoms, "stress", (6,))) for atoms in structures])
    frames = Frames(
        n_atoms=np.array([len(atoms) for atoms in structures], np.int64),
        atomic_numbers=np.concatenate([atoms.numbers for atoms in structures]).astype(np.int64),
        positions=np.concatenate([atoms.positions for atoms in structures]),
        energy=np.array([float(label(atoms, "energy", ())) for atoms in structures]),
        forces=None if np.isnan(forces).all() else forces,
        cell=np.stack([np.asarray(atoms.cell) for atoms in structures]),
        pbc=np.stack([atoms.pbc for atoms in structures]),
        stress=None if np.isnan(stress).all() else stress,
        group=np.zeros(len(structures), "U1"),
        tag=np.array([str(atoms.info.get("tag", "")) for atoms in structures]),
        charge=np.array([charge_of(atoms) for atoms in structures]),
        multiplicity=np.array([multiplicity_of(atoms) for atoms in structures]),
    )
    named = [atoms.info.get("group", atoms.info.get("gdb")) for atoms in structures]
    return replace(
        frames,
        group=np.array(
            [formula if name is None else str(name) for name, formula in zip(named, _formulas(frames), strict=True)]
        ),
    )


def _full_stress(stress: Array) -> Array:
    if stress.size == 9:
        return stress.reshape(3, 3)
    xx, yy, zz, yz, xz, xy = stress
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
