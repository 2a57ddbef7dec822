"""Structures to simulate: a file that ase reads, the name of a molecule that ase builds, or a SMILES."""

from __future__ import annotations

import difflib
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from egnn_md.chemistry.elements import CLOSEST_PAIR, MAX_ATOMIC_NUMBER, symbol
from egnn_md.data.reading import DataError
from egnn_md.data.structure_files import as_atoms, read_structures
from egnn_md.neighbors import neighbor_list

if TYPE_CHECKING:
    from ase import Atoms


class StructureError(ValueError):
    """A structure that cannot be simulated; the message says why and what to do."""


def read_structure(name_or_path: str) -> Atoms:
    """The structure of a file (its last frame; `file@0` for the first), of a molecule by name ("CH3CH2OH"), or of a
    SMILES ("CC(=O)N", with RDKit; a name that ase knows comes first: "CO" is carbon monoxide).

    Raises StructureError for missing, empty or unreadable files, unknown names, and all that `check_structure` refuses.
    """
    path, index = file_and_index(name_or_path)
    atoms = _read_file(path, index) if path.exists() else _build(name_or_path)
    check_structure(atoms, name_or_path)
    return atoms


def read_topology(name_or_path: str, atoms: Atoms) -> Any:
    """mdtraj's topology (chains, residues, bonds) of a PDB file, if it is one and has these atoms; else None."""
    path, _ = file_and_index(name_or_path)
    if path.suffix.lower() not in (".pdb", ".ent") or not path.exists():
        return None
    import mdtraj

    try:
        topology = mdtraj.load_topology(str(path))
        numbers = [atom.element.atomic_number for atom in topology.atoms]
    except Exception:  # mdtraj's reader raises whatever its parsing trips on; ase has read the structure
        return None
    return topology if numbers == atoms.get_atomic_numbers().tolist() else None


def file_and_index(name: str) -> tuple[Path, int]:
    """'file@0' -> the file and the number of its frame, -1 for the last; an "@" in the name of a file is part of it.

    Raises StructureError for a frame that is no number.
    """
    stem, at, index = name.rpartition("@")
    if not at or Path(name).exists() or not Path(stem).exists():
        return Path(name), -1
    try:
        return Path(stem), int(index)
    except ValueError:
        raise StructureError(f"{name}: one structure is needed, file@0 is the first, not {index!r}") from None


def _read_file(path: Path, index: int) -> Atoms:
    try:
        return _frame(path, index)
    except DataError as error:
        raise StructureError(str(error)) from error


def _frame(path: Path, index: int) -> Atoms:
    """Frame `index` of a file, from its end if negative, without labels: those are not ours."""
    last: deque[Any] = deque(maxlen=max(1, -index))
    for number, item in read_structures(path, max(index, 0)):
        last.append(item)
        if number == index:
            break
    if len(last) < max(1, -index):
        raise DataError(f"{path} has no structure {index}")
    if isinstance(last[0], DataError):
        raise DataError(f"{path}: {last[0]}")
    atoms: Atoms = as_atoms(last[0])
    atoms.calc = None
    return atoms


def _build(name: str) -> Atoms:
    from ase.build import molecule
    from ase.collections import g2

    if name in g2.names:
        return molecule(name)
    try:
        return molecule(name)  # knows a few more than the collection
    except (KeyError, NotImplementedError):
        pass
    found, hint = _from_smiles(name)
    if found is not None:
        return found
    if "/" in name or "." in name:
        raise StructureError(f"no such file: {name}")
    near = difflib.get_close_matches(name, g2.names, n=3)
    hint = f"; it knows {', '.join(near)}" if near else hint
    raise StructureError(f"{name!r} is neither a file nor a molecule that ase.build.molecule knows, nor a SMILES{hint}")


def _from_smiles(text: str) -> tuple[Atoms | None, str]:
    """The molecule that a SMILES says, or what to add to the message that it is none."""
    from egnn_md.data.drawings import from_smiles

    try:
        found = from_smiles(text)
    except ImportError:
        return None, " (those need RDKit: pip install 'egnn-md[chem]')"
    except DataError as error:
        raise StructureError(str(error)) from error
    if found is None:
        return None, ""
    atoms: Atoms = as_atoms(found)
    return atoms, ""


def check_structure(atoms: Atoms, name: str) -> None:
    """Raise StructureError for what no model can take: no atoms, dummies, NaN, atoms on one another, a flat cell."""
    if len(atoms) == 0:
        raise StructureError(f"{name} holds no atoms")
    unknown = sorted({int(z) for z in atoms.numbers if not 1 <= z <= MAX_ATOMIC_NUMBER})
    if unknown:
        raise StructureError(f"{name} has atoms of no element (atomic numbers {unknown}): remove them")
    if not np.isfinite(atoms.positions).all():
        bad = int(np.flatnonzero(~np.isfinite(atoms.positions).all(1))[0])
        raise StructureError(f"{name}: the position of atom {bad} is NaN or infinite")
    if atoms.has("momenta") and not np.isfinite(atoms.get_momenta()).all():
        raise StructureError(f"{name}: velocities are NaN or infinite")
    cell, pbc = np.asarray(atoms.cell, dtype=np.float64), np.asarray(atoms.pbc, dtype=bool)
    _check_distances(atoms, cell, pbc, name)


def _check_distances(atoms: Atoms, cell: np.ndarray, pbc: np.ndarray, name: str) -> None:
    # The list is made for 1 Å because cells of a cell list must not be much smaller than an atom.
    try:
        (i, j), shift = neighbor_list(atoms.positions, cell, pbc, 1.0)
    except ValueError as error:
        raise StructureError(f"{name}: {error}") from error
    vectors = atoms.positions[j] - atoms.positions[i] + (0.0 if shift is None else shift @ cell)
    distances = np.linalg.norm(vectors, axis=1)
    if len(distances) and distances.min() < CLOSEST_PAIR:
        k = int(distances.argmin())
        one, other = (f"{symbol(int(atoms.numbers[a]))}{a}" for a in (i[k], j[k]))
        raise StructureError(
            f"{name}: atoms {one} and {other} are {distances[k]:.3f} Å apart, closer than {CLOSEST_PAIR} Å: "
            "mend the structure (atoms twice in the file, or a wrong cell or unit)"
        )
