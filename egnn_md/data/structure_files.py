"""Files of structures, one reader for every verb: what a file says of charge, spin and disorder is heard here.

xyz and extxyz, sdf and npz are read here, PDB by mdtraj, drawings (mol, mol2, SMILES) by RDKit, everything else by ase;
each may be packed (.gz). A charge or a multiplicity goes into the structure's info; what it means is the model's
business (`chemistry.structures`).
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from egnn_md.chemistry.elements import NUMBER_OF
from egnn_md.chemistry.structures import CHARGE_NAMES, SPIN_NAMES, name_plainly
from egnn_md.data.reading import MOST_ATOMS, DataError, Plain, lines_of, read_npz, unpacked

MOST_BYTES: Final = 256 * 1024**2
"""Of a file that a reader takes as a whole; it needs several times that."""
DEUTERIUM: Final = 2.014
"""amu."""
_NUMBER_OF: Final = NUMBER_OF | {str(z): z for z in NUMBER_OF.values()} | {"D": 1}
_PLAIN_COLUMNS: Final = "properties=species:s:1:pos:r:3"
_CHARGE, _SPIN = (
    re.compile(rf"(?<![a-z_])(?:{'|'.join(names)})\s*[=:]\s*[\"']?([-+]?\d+(?:\.\d*)?)")
    for names in (CHARGE_NAMES, SPIN_NAMES)
)
"""Of a comment in lower case, however freely written."""
_QM9: Final = re.compile(r"gdb[ _]\d+(\s+\S+){10}")
"""Comment of an original file of QM9, with the properties; three lines more follow its atoms."""
_NAMED: Final = re.compile(r"(?<!\w)(?:name|title)=(?:\"([^\"]*)\"|(\S+))", re.IGNORECASE)
_SMILES: Final = re.compile(r"(?<!\w)smiles=(?:\"([^\"]*)\"|(\S+))", re.IGNORECASE)
_KEYED: Final = re.compile(r"(?<!\S)\w+\s?=")
"""A comment that says more than a name; CC(=O)N is one."""
_LONGEST_NAME: Final = 80
_COLUMNS: Final = re.compile(r":[a-zA-Z]:(\d{1,18})")
"""Number of columns of a property in an extxyz comment."""
_SPEAKING: Final = ("lattice=", "pbc=", "charge=", "spin=", "multiplicity=", "mult=", "charges:r:1", "magmoms:r:1")
"""What a comment line may say that ase must read."""


Item = tuple[int, "Plain | Any | DataError"]
"""Place in the file, counted from 0, and a `Plain` or an `ase.Atoms`, or what is wrong with it."""
Reader = Callable[[Path, int, bool], Iterator[Item]]


def read_structures(path: str | Path, start: int = 0, *, labels: bool = False) -> Iterator[Item]:
    """The structures of a file from number `start` on; those that cannot be read come as a DataError.

    `labels`: with the energies and forces that comment lines name. Raises DataError if the file is missing, empty or so
    broken that the next structure cannot be found.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no such file: {path}" if not path.exists() else f"{path} is a folder: give a file")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    return _items(path, start, labels)


def _items(path: Path, start: int, labels: bool) -> Iterator[Item]:
    found = 0
    with unpacked(path) as plain:
        for index, item in READERS.get(plain.suffix.lower(), _read_ase)(plain, start, labels):
            found += 1
            yield index, item
    if found == 0 and start == 0:
        raise DataError(f"{path} holds no structures")


def as_atoms(item: Plain | Any) -> Any:
    """An `ase.Atoms` of what `read_structures` gave; a charge and a multiplicity stand in info["charge"], ["spin"]."""
    from ase import Atoms

    if not isinstance(item, Plain):
        name_plainly(item)
        return item
    info: dict[str, Any] = {"charge": item.charge} if item.charge else {}
    if item.multiplicity != 1:
        info["spin"] = item.multiplicity
    if item.name:
        info["name"] = item.name
    return Atoms(item.numbers, item.positions, info=info)


class _Lines:
    """Lines, some of which can be given back."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines, self.back = lines, list[str]()

    def take(self, n: int) -> list[str]:
        """The next n, or as many as there are."""
        taken, self.back = self.back[:n], self.back[n:]
        return taken + list(islice(self.lines, n - len(taken)))


def _read_xyz(path: Path, start: int, labels: bool) -> Iterator[Item]:
    for index, (n_atoms, block) in enumerate(xyz_blocks(path)):
        if index >= start:
            yield index, parse_xyz(n_atoms, block, labels)


def xyz_blocks(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number of atoms, and the comment and atom lines that go with it, as they stand there, of each structure.

    Raises DataError where no structure can begin.
    """
    index, lines = 0, _Lines(lines_of(path))
    while line := "".join(lines.take(1)):
        if not line.strip():  # ase's writers and people's editors leave empty lines behind
            continue
        if not (line.strip().isdecimal() and line.isascii() and len(line) <= 12 and int(line) <= MOST_ATOMS):
            raise DataError(
                f"{path}: where structure {index} should begin with its number of atoms, there is "
                f"{line.strip()[:60]!r}" + (f". Has structure {index - 1} more atoms than it says?" if index else "")
            )
        n_atoms = int(line)
        block = lines.take(n_atoms + 1)
        # A number alone is no atom: the next structure begins before this one has all its atoms.
        end = next((k for k in range(1, len(block)) if block[k].strip().isdecimal()), len(block))
        lines.back = block[end:] + lines.back
        if block and _QM9.match(block[0]):
            lines.take(3)  # frequencies, SMILES, InChI
        yield n_atoms, block[:end]
        index += 1


def parse_xyz(n_atoms: int, block: list[str], labels: bool = False) -> Plain | Any:
    """A `Plain` or an `ase.Atoms` from the comment and atom lines of one structure, or a DataError."""
    if len(block) != n_atoms + 1:
        return DataError(f"it has {len(block) - 1} atoms, not {n_atoms} as it says")
    comment, lines = block[0].lower(), block[1:]
    speaks = any(word in comment for word in _SPEAKING) or (labels and "=" in comment)
    try:
        if speaks or ("properties=" in comment and _PLAIN_COLUMNS not in comment):
            return _speaking(n_atoms, block)
        words = "".join(lines).replace("*^", "e").split()
        width, rest = divmod(len(words), max(n_atoms, 1))
        if rest or width < 4:
            raise ValueError("not every atom has an element and three coordinates")
        names = words[::width]
        numbers = np.array([_NUMBER_OF.get(name) or _NUMBER_OF[name.capitalize()] for name in names], np.int64)
        positions = np.array([[float(word) for word in words[k::width]] for k in (1, 2, 3)]).T.copy()
        charge = next((charge for charge in map(float, _CHARGE.findall(comment)) if charge), 0.0)
        multiplicity = next((spin for spin in map(round, map(float, _SPIN.findall(comment))) if spin != 1), 1)
        smiles = _told(_SMILES, block[0]) or ""
        found = Plain(numbers, positions, charge, multiplicity, _name_of(block[0]), smiles)
        if "D" not in names:
            return found
        atoms = as_atoms(found)
        atoms.set_masses([DEUTERIUM if name == "D" else None for name in names])
        return atoms
    except KeyError as error:
        return DataError(f"it has an unknown element {error}")
    except Exception as error:  # whatever a parser says of one structure, the next may be sound
        return DataError(f"it cannot be read: {error or type(error).__name__}")


def _name_of(comment: str) -> str:
    """What a comment line calls the structure: its name= or the like, or the line itself if it has no keys."""
    named = _told(_NAMED, comment)
    if named is not None:
        return named
    without = _SMILES.sub("", comment)
    return "" if _KEYED.search(without) else " ".join(without.split())[:_LONGEST_NAME]


def _told(key: re.Pattern[str], comment: str) -> str | None:
    found = key.search(comment)
    return None if found is None else (found[1] or found[2] or "").replace(r"\\", "\\")


def _speaking(n_atoms: int, block: list[str]) -> Any:
    """A block whose comment ase must read. Deuterium, which it does not know, becomes hydrogen of that mass."""
    import ase.io

    width = max((len(line.split()) for line in block[1:]), default=0)
    if any(int(count) > width for count in _COLUMNS.findall(block[0])):
        raise ValueError(f"its comment line tells more columns than the {width} that there are")
    heavy = [line.split()[:1] == ["D"] for line in block[1:]]
    lines = [line.replace("D", "H", 1) if of_d else line for line, of_d in zip(block[1:], heavy, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        atoms: Any = ase.io.read(io.StringIO(f"{n_atoms}\n{block[0]}{''.join(lines)}"), format="extxyz")
    if any(heavy):
        atoms.set_masses([DEUTERIUM if of_d else None for of_d in heavy])
    return atoms


def _read_sdf(path: Path, start: int, labels: bool) -> Iterator[Item]:
    from egnn_md.data.sdf import parse_molecule, records

    for index, record in enumerate(records(lines_of(path))):
        if index < start:
            continue
        try:
            found = parse_molecule(record)
            numbers, positions = np.array(found.numbers), np.array(found.positions)
            yield index, Plain(numbers, positions, found.charge, found.multiplicity, record[0].strip())
        except ValueError as error:
            yield index, DataError(f"it cannot be read: {error}")


def _read_pdb(path: Path, start: int, labels: bool) -> Iterator[Item]:
    from egnn_md.data.pdb import models

    yield from islice(enumerate(models(path)), start, None)


def _read_drawings(path: Path, start: int, labels: bool) -> Iterator[Item]:
    from egnn_md.data.drawings import molecules

    yield from islice(enumerate(molecules(path)), start, None)


def _read_npz(path: Path, start: int, labels: bool) -> Iterator[Item]:
    from ase import Atoms

    from egnn_md.data.checks import CLAIMS, check_arrays, rename_claims

    data = read_npz(path, ("n_atoms", "atomic_numbers", "positions"), ("cell", "pbc", *CLAIMS))
    rename_claims(data)
    check_arrays(data, path, per_frame=("charge", "multiplicity"))
    ends = np.cumsum(data["n_atoms"].astype(np.int64))
    for k, end in islice(enumerate(ends), start, None):
        rows = slice(end - int(data["n_atoms"][k]), end)
        atoms = Atoms(data["atomic_numbers"][rows], data["positions"][rows].astype(np.float64))
        if "cell" in data:
            atoms.cell = data["cell"][k]
            atoms.pbc = data["pbc"][k] if "pbc" in data else data["cell"][k].any(1)
        if "charge" in data and data["charge"][k]:
            charge = float(data["charge"][k])  # a whole number, or what the model or the teacher will not take
            atoms.info["charge"] = int(charge) if charge.is_integer() else charge
        if "multiplicity" in data and data["multiplicity"][k] != 1:
            atoms.info["spin"] = float(data["multiplicity"][k])
        yield k, atoms


def _read_database(path: Path, start: int, labels: bool) -> Iterator[Item]:
    """Of ase.db; what a row says of itself goes into the info."""
    import ase.db

    try:
        for index, row in enumerate(ase.db.connect(str(path)).select(offset=start), start):
            atoms = row.toatoms()
            atoms.info |= row.key_value_pairs
            yield index, atoms
    except Exception as error:  # of sqlite, json and ase alike
        raise DataError(f"{path} is no database that ase.db reads: {error or type(error).__name__}") from error


def _gaussian(path: Path) -> dict[str, Any]:
    """What ase must be told to keep charge and multiplicity of an input of Gaussian."""
    return {"attach_calculator": True} if path.suffix.lower() in (".com", ".gjf") else {}


def _read_ase(path: Path, start: int, labels: bool) -> Iterator[Item]:
    import ase.io
    from ase.io.formats import UnknownFileTypeError

    if path.stat().st_size > MOST_BYTES and path.suffix.lower() != ".traj":
        raise DataError(f"{path} has {path.stat().st_size / 1e9:.1f} GB: too large for this format, convert it to xyz")
    for index in range(start, 2**62):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if index == start:
                    options = _gaussian(path)
                    frames = iter(ase.io.iread(path, index=slice(start, None), do_not_split_by_at_sign=True, **options))
                atoms = next(frames)
                if options:
                    atoms.info |= {key: atoms.calc.parameters[key] for key in ("charge", "mult")}
                    atoms.calc = None
            problem = _disorder(atoms)
        except StopIteration:
            return
        except UnknownFileTypeError as error:
            raise DataError(f"{path} is of no format that ase knows: convert it to xyz") from error
        except Exception as error:  # ase's readers raise whatever their parsing trips on
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"ase cannot read structure {index} of {path}: {reason}") from error
        yield index, problem or atoms


def _disorder(atoms: Any) -> DataError | None:
    """What a crystal structure says of places that are only partly taken."""
    for taken in atoms.info.get("occupancy", {}).values():
        if abs(sum(map(float, taken.values())) - 1.0) > 1e-3 or len(taken) > 1:
            said = ", ".join(f"{name} {part:g}" for name, part in taken.items())
            return DataError(f"it is disordered (occupancy {said}): choose one arrangement of its atoms")
    return None


READERS: Final[dict[str, Reader]] = {
    ".xyz": _read_xyz,
    ".extxyz": _read_xyz,
    ".sdf": _read_sdf,
    ".pdb": _read_pdb,
    ".ent": _read_pdb,
    ".npz": _read_npz,
    ".db": _read_database,
    **dict.fromkeys((".mol", ".mol2", ".smi", ".smiles"), _read_drawings),
}
