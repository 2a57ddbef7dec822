"""Structures of a file for workers: xyz files as text, which costs the dispatcher little, everything else as atoms."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from egnn_md.data.reading import DataError
from egnn_md.data.stream import as_structure as as_molecule
from egnn_md.data.stream import stream
from egnn_md.data.structure_files import as_atoms as as_ase_atoms
from egnn_md.data.structure_files import parse_xyz, read_structures, xyz_blocks

if TYPE_CHECKING:
    from ase import Atoms

    from egnn_md.chemistry.structures import Structure

Item: TypeAlias = "str | Atoms | Structure | DataError"
"""One structure: a frame of an (ext)xyz file as it stands there, atoms, a molecule, or why it cannot be read."""


XYZ: Final = (".xyz", ".extxyz")


def read_molecules(path: Path) -> Iterator[Item]:
    """The structures of a file as `read_items`, for `as_structure`: names are kept, cells and labels are not."""
    if path.is_file() and path.stat().st_size and path.suffix.lower() in XYZ:
        return _xyz(path)
    return (item for _, item in stream(path))


def read_items(path: Path) -> Iterator[Item]:
    """The structures of an (ext)xyz file as text, or of what else `read_structures` reads as atoms.

    Raises DataError if the file is missing, empty, or its next structure cannot be found.
    """
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    suffix = path.suffix.lower()
    if suffix in XYZ:
        return _xyz(path)
    return (item if isinstance(item, DataError) else as_ase_atoms(item) for _, item in read_structures(path))


def holds_several(path: Path) -> bool:
    """Whether the file has more than one structure. Raises DataError as `read_items`."""
    return len(list(islice(read_items(path), 2))) > 1


def as_atoms(item: Item) -> Atoms:
    """The structure, without labels. Raises ValueError if it cannot be read."""
    found = _parsed(item)
    if isinstance(found, DataError):
        raise found
    atoms: Atoms = as_ase_atoms(found)
    atoms.calc = None
    return atoms


def as_structure(item: Item) -> Structure | DataError:
    """The molecule with its name, or what is wrong with it."""
    return as_molecule(_parsed(item))


def _parsed(item: Item) -> Any:
    if not isinstance(item, str):
        return item
    count, *block = io.StringIO(item)  # comments may hold what str.splitlines takes for ends
    return parse_xyz(int(count), block)


def _xyz(path: Path) -> Iterator[Item]:
    n_found = 0
    for n_found, (n_atoms, block) in enumerate(xyz_blocks(path), 1):  # noqa: B007
        yield f"{n_atoms}\n{''.join(block)}"
    if n_found == 0:
        raise DataError(f"{path} holds no structures")
