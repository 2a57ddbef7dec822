"""Files of labelled structures: npz of ragged arrays, or any file of structures."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.structures import charge_of, multiplicity_of
from egnn_md.data.checks import CLAIMS, check_arrays, check_frames, rename_claims
from egnn_md.data.frames import Frames
from egnn_md.data.labels import (
    LabelKeys,
    energy_of,
    forces_of,
    found_in,
    resolve_keys,
    resolve_names,
    stress_of,
    warn_of_unused,
)
from egnn_md.data.reading import DataError, read_npz, shapes_of_npz
from egnn_md.data.structure_files import as_atoms, read_structures
from egnn_md.storage import sha256


def read_frames(path: str | Path, keys: LabelKeys | None = None) -> Frames:
    """Frames from an npz of ragged arrays (`n_atoms`, `atomic_numbers`, `positions`, `energy`, `forces`, optional
    `cell`, `pbc`, `stress`, `gdb` or `group`, `tag`, `charge`, `multiplicity`, `charges`, `dipole`) or from anything
    ase reads with energies.

    Energies in eV, forces in eV/Å, charges in e, dipole moments in e·Å; `keys` are the names of labels in the file.
    Raises DataError for missing, empty, broken or unlabelled files and for numbers that cannot be, naming the file and
    the frame.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"no such file: {path}")
    if path.is_dir() or path.stat().st_size == 0:
        raise DataError(f"{path} is {'a folder' if path.is_dir() else 'empty'}: give a file with structures")
    frames = (_read_npz if path.suffix == ".npz" else _read_structures)(path, keys or LabelKeys())
    if len(frames) == 0:
        raise DataError(f"{path} holds no structures")
    check_frames(frames, path)
    return replace(frames, sources=(f"{path.name} {sha256(path)}",))


_OPTIONAL: Final = ("has_forces", "cell", "pbc", "gdb", "group", "tag", "charges", "dipole", *CLAIMS)


def _read_npz(path: Path, keys: LabelKeys) -> Frames:
    shapes = shapes_of_npz(path)
    names = {kind: name for kind, name in vars(resolve_names(shapes, keys, path)).items() if name is not None}
    data = read_npz(path, ("n_atoms", "atomic_numbers", "positions"), (*names.values(), *_OPTIONAL))
    data |= {kind: data.pop(name) for kind, name in names.items()}
    rename_claims(data)
    warn_of_unused([name for name, shape in shapes.items() if shape == data["positions"].shape], names, path)
    check_arrays(data, path, per_frame=("energy", "gdb", "group", "tag", "has_forces", "charge", "multiplicity"))
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
        energy=data["energy"].astype(np.float64) if "energy" in data else np.full(n, np.nan),
        forces=forces,
        cell=cell,
        pbc=np.broadcast_to(pbc, (n, 3)) if pbc.ndim == 2 else np.repeat(pbc[:, None], 3, 1),
        stress=data.get("stress"),
        group=np.zeros(n, "U1"),
        tag=data["tag"].astype(str) if "tag" in data else np.full(n, ""),
        charge=data["charge"].astype(np.float64) if "charge" in data else None,
        multiplicity=data["multiplicity"].astype(np.float64) if "multiplicity" in data else None,
        charges=data.get("charges"),
        dipole=data.get("dipole"),
    )
    named = data.get("group", data.get("gdb"))
    return replace(frames, group=_formulas(frames) if named is None else named.astype(str))


def _formulas(frames: Frames) -> NDArray[np.str_]:
    """The composition of each frame as a string: the group of frames that name none."""
    starts = frames.starts
    parts = (np.unique(frames.atomic_numbers[a:b], return_counts=True) for a, b in pairwise(starts))
    return np.array(["-".join(f"{z}:{c}" for z, c in zip(*counted, strict=True)) for counted in parts])


def _read_structures(path: Path, keys: LabelKeys) -> Frames:
    """Everything but npz, structure by structure; see `structure_files`."""
    read = [as_atoms(sound(item, index, path)) for index, item in read_structures(path, labels=True)]
    carried = [found_in(atoms) for atoms in read]
    names = resolve_keys(carried, keys, path)
    energy, forces, stress = np.empty(len(read)), [], np.empty((len(read), 3, 3))
    for k, (atoms, values) in enumerate(zip(read, carried, strict=True)):
        try:
            energy[k], stress[k] = energy_of(values, names.energy), stress_of(values, names.stress)
            forces.append(forces_of(values, names.forces, len(atoms)))
        except ValueError as error:
            raise DataError(f"{path}: frame {k}: {error}") from error
    joined = np.concatenate(forces)
    frames = Frames(
        n_atoms=np.array([len(atoms) for atoms in read], np.int64),
        atomic_numbers=np.concatenate([atoms.numbers for atoms in read]).astype(np.int64),
        positions=np.concatenate([atoms.positions for atoms in read]),
        energy=energy,
        forces=None if np.isnan(joined).all() else joined,
        cell=np.stack([np.asarray(atoms.cell) for atoms in read]),
        pbc=np.stack([atoms.pbc for atoms in read]),
        stress=None if np.isnan(stress).all() else stress,
        group=np.zeros(len(read), "U1"),
        tag=np.array([str(atoms.info.get("tag", "")) for atoms in read]),
        charge=np.array([charge_of(atoms) for atoms in read]),
        multiplicity=np.array([multiplicity_of(atoms) for atoms in read]),
    )
    charges, dipole = _results(read, "charges", ()), _results(read, "dipole", (3,))
    frames = replace(frames, charges=charges, dipole=dipole)
    named = [atoms.info.get("group", atoms.info.get("gdb")) for atoms in read]
    groups = [g if name is None else str(name) for name, g in zip(named, _formulas(frames), strict=True)]
    return replace(frames, group=np.array(groups))


def _results(read: list[Any], name: str, per_frame: tuple[int, ...]) -> NDArray[np.float64] | None:
    """Charges (one for each atom) or dipoles that calculators left with the structures; NaN where there are none."""
    rows, some = [], False
    for atoms in read:
        shape = per_frame or (len(atoms),)
        value = None if atoms.calc is None else atoms.calc.results.get(name)
        try:
            numbers = np.asarray(value, np.float64)
        except (TypeError, ValueError, OverflowError):  # None, or what is no number
            numbers = np.empty(0)
        there = numbers.shape == shape
        rows.append(numbers if there else np.full(shape, np.nan))
        some = some or there
    return (np.stack(rows) if per_frame else np.concatenate(rows)) if some else None


def sound(item: Any, index: int, path: Path) -> Any:
    """What `read_structures` gave. Raises DataError, naming the file and the structure, if that is what it gave."""
    if isinstance(item, DataError):
        raise DataError(f"{path}: frame {index}: {item}")
    return item
