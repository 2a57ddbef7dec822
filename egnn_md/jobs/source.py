"""Structures of a file for workers: xyz files as text, which costs the dispatcher nothing, everything else by ase."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from egnn_md.data.frames import DataError, check_arrays, read_npz

if TYPE_CHECKING:
    from ase import Atoms

Item: TypeAlias = "str | Atoms | DataError"
"""One structure: a frame of an (ext)xyz file as it stands there, atoms, or why it cannot be read."""


def read_items(path: Path) -> Iterator[Item]:
    """The structures of an (ext)xyz file, an npz with `n_atoms`, `atomic_numbers` and `positions`, or what ase reads.

    Raises DataError if the file is missing, empty, or its next structure cannot be found.
    """
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    suffix = path.suffix.lower()
    return _xyz(path) if suffix in (".xyz", ".extxyz") else _npz(path) if suffix == ".npz" else _ase(path)


def holds_several(path: Path) -> bool:
    """Whether the file has more than one structure. Raises DataError as `read_items`."""
    return len(list(islice(read_items(path), 2))) > 1


def as_atoms(item: Item) -> Atoms:
    """The structure, without labels. Raises ValueError if it cannot be read."""
    if isinstance(item, str):
        import ase.io

        try:
            atoms: Any = ase.io.read(io.StringIO(item), format="extxyz")
        except Exception as error:  # whatever a parser says of one structure, the next may be sound
            raise DataError(f"it cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from None
    elif isinstance(item, DataError):
        raise item
    else:
        atoms = item
    atoms.calc = None
    return atoms


def _xyz(path: Path) -> Iterator[Item]:
    with path.open(errors="replace") as file:
        index = 0
        while line := file.readline():
            if not line.strip():
                continue
            if not line.strip().isdigit() or len(line) > 12:
                raise DataError(
                    f"{path}: where structure {index} should begin with its number of atoms, there is "
                    f"{line.strip()[:60]!r}"
                )
            yield line + "".join(islice(file, int(line) + 1))
            index += 1


def _npz(path: Path) -> Iterator[Item]:
    from ase import Atoms

    data = read_npz(path, ("n_atoms", "atomic_numbers", "positions"))
    check_arrays(data, path, per_frame=("charge",))
    ends = np.cumsum(data["n_atoms"].astype(np.int64))
    for k, end in enumerate(ends):
        rows = slice(end - int(data["n_atoms"][k]), end)
        atoms = Atoms(data["atomic_numbers"][rows], data["positions"][rows].astype(np.float64))
        if "cell" in data:
            atoms.cell = data["cell"][k]
            atoms.pbc = data["pbc"][k] if "pbc" in data else data["cell"][k].any(1)
        if "charge" in data and data["charge"][k]:
            atoms.info["charge"] = int(data["charge"][k])
        yield atoms


def _ase(path: Path) -> Iterator[Item]:
    import ase.io

    try:
        yield from ase.io.iread(path)
    except Exception as error:  # ase's readers raise whatever their parsing trips on
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"ase cannot read {path}: {reason}") from error
