"""Structures of a file one after another, however many there are: nothing is kept but the one at hand."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.elements import NUMBER_OF
from egnn_md.chemistry.structures import CHARGED, PERIODIC, RADICAL, Structure, structure_of
from egnn_md.data.frames import DataError

_NUMBER_OF: Final = NUMBER_OF | {str(z): z for z in NUMBER_OF.values()}
_PLAIN_COLUMNS: Final = "properties=species:s:1:pos:r:3"
_CHARGE: Final = re.compile(r"(?<![a-z_])(?:total_?)?charge\s*[=:]\s*[\"']?([-+]?\d+(?:\.\d*)?)")
_QM9: Final = re.compile(r"gdb[ _]\d+(\s+\S+){10}")
"""Comment of an original file of QM9, with the properties; three lines more follow its atoms."""
_SPEAKING: Final = ("lattice=", "pbc=", "charge=", "spin=", "charges:r:1", "magmoms:r:1")
"""What a comment line may say that ase must read."""
_NAMED: Final = re.compile(r"(?<!\w)(?:name|title|smiles)=(?:\"([^\"]*)\"|(\S+))", re.IGNORECASE)
_LONGEST_NAME: Final = 80
_FRAMES_OF_NPZ: Final = 10_000

Item = tuple[int, "Structure | DataError"]
"""Place in the file, counted from 0, and the structure, or what is wrong with it."""


def stream(path: str | Path, start: int = 0) -> Iterator[Item]:
    """The structures of a file from number `start` on; those that cannot be read come as a DataError.

    xyz and extxyz, .sdf (V2000) and npz (`n_atoms`, `atomic_numbers`, `positions`) are read here, everything else by
    ase. Raises DataError if the file is missing, empty or so broken that the next structure cannot be found.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    readers = {".xyz": _stream_xyz, ".extxyz": _stream_xyz, ".sdf": _stream_sdf, ".npz": _stream_npz}
    return readers.get(path.suffix.lower(), _stream_ase)(path, start)


class _Lines:
    """The lines of a file, some of which can be given back."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.back = file, list[str]()

    def take(self, n: int) -> list[str]:
        """The next n, or as many as there are."""
        taken, self.back = self.back[:n], self.back[n:]
        return taken + list(islice(self.file, n - len(taken)))


def _stream_xyz(path: Path, start: int) -> Iterator[Item]:
    with path.open(errors="replace") as file:
        index, lines = 0, _Lines(file)
        while line := "".join(lines.take(1)):
            if not line.strip():  # ase's writers and people's editors leave empty lines behind
                continue
            if not line.strip().isdigit() or len(line) > 12:
                raise DataError(
                    f"{path}: where structure {index} should begin with its number of atoms, there is "
                    f"{line.strip()[:60]!r}. Has structure {index - 1} more atoms than it says?"
                )
            n_atoms = int(line)
            block = lines.take(n_atoms + 1)
            # A number alone is no atom: the next structure begins before this one has all its atoms.
            end = next((k for k in range(1, len(block)) if block[k].strip().isdigit()), len(block))
            lines.back = block[end:] + lines.back
            if block and _QM9.match(block[0]):
                lines.take(3)  # frequencies, SMILES, InChI
            if index >= start:
                yield index, _parse_xyz(n_atoms, block[:end])
            index += 1
        if index == 0:
            raise DataError(f"{path} holds no structures")


def _parse_xyz(n_atoms: int, block: list[str]) -> Structure | DataError:
    """Comment and atom lines of one structure."""
    if len(block) != n_atoms + 1:
        return DataError(f"it has {len(block) - 1} atoms, not {n_atoms} as it says")
    comment, lines = block[0].lower(), block[1:]
    try:
        if any(word in comment for word in _SPEAKING) or ("properties=" in comment and _PLAIN_COLUMNS not in comment):
            import ase.io

            text = f"{n_atoms}\n{''.join(block)}"
            return structure_of(ase.io.read(io.StringIO(text), format="extxyz"))
        words = "".join(lines).replace("*^", "e").split()
        width, rest = divmod(len(words), max(n_atoms, 1))
        if rest or width < 4:
            raise ValueError("not every atom has an element and three coordinates")
        numbers = [_NUMBER_OF.get(word) or _NUMBER_OF[word.capitalize()] for word in words[::width]]
        coordinates = [[float(word) for word in words[k::width]] for k in (1, 2, 3)]
        charged = any(float(charge) for charge in _CHARGE.findall(comment))
        unfit = CHARGED if charged else ""
        return Structure(np.array(numbers, np.int64), np.array(coordinates).T.copy(), unfit, _name_of(block[0]))
    except KeyError as error:
        return DataError(f"it has an unknown element {error}")
    except Exception as error:  # whatever a parser says of one structure, the next may be sound
        return DataError(f"it cannot be read: {error or type(error).__name__}")


def _name_of(comment: str) -> str:
    """What a comment line calls the structure: its name= or the like, or the line itself if it has no keys."""
    named = _NAMED.search(comment)
    if named is not None:
        return named[1] or named[2]
    return "" if "=" in comment else " ".join(comment.split())[:_LONGEST_NAME]


def _stream_sdf(path: Path, start: int) -> Iterator[Item]:
    from egnn_md.data.sdf import next_record, parse_molecule

    with path.open(errors="replace") as file:
        index = 0
        while record := next_record(file):
            if index >= start:
                try:
                    found = parse_molecule(record)
                    unfit = CHARGED if found.charge else RADICAL if found.radical else ""
                    numbers, positions = np.array(found.numbers, np.int64), np.array(found.positions)
                    yield index, Structure(numbers, positions, unfit, record[0].strip())
                except ValueError as error:
                    yield index, DataError(f"it cannot be read: {error}")
            index += 1
    if index == 0:
        raise DataError(f"{path} holds no structures")


def _stream_npz(path: Path, start: int) -> Iterator[Item]:
    try:
        with zipfile.ZipFile(path) as archive:
            n_atoms = _whole(archive, "n_atoms").astype(np.int64)
            unfit = _unfit(archive, len(n_atoms))
            with archive.open("atomic_numbers.npy") as first, archive.open("positions.npy") as second:
                numbers, positions = _Column(first), _Column(second)
                if not len(numbers) == len(positions) == n_atoms.sum():
                    raise ValueError(
                        f"n_atoms asks for {n_atoms.sum()} atoms: {len(numbers)}, {len(positions)} are there"
                    )
                if len(n_atoms) == 0:
                    raise ValueError("it holds no structures")
                for begin in range(0, len(n_atoms), _FRAMES_OF_NPZ):
                    counts = n_atoms[begin : begin + _FRAMES_OF_NPZ]
                    ends = np.cumsum(counts)
                    z, x = numbers.next(int(ends[-1])), positions.next(int(ends[-1]))
                    for k in range(max(0, start - begin), len(counts)):
                        atoms = slice(ends[k] - counts[k], ends[k])
                        here = z[atoms].astype(np.int64), x[atoms].astype(np.float64)
                        yield begin + k, Structure(*here, unfit.get(begin + k, ""))
    except (KeyError, ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{path} is no npz with n_atoms, atomic_numbers and positions, or is cut off: {error}"
        ) from error


def _whole(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _unfit(archive: zipfile.ZipFile, n: int) -> dict[int, str]:
    """What arrays `charge`, `pbc` and `cell` say against structures, if they are there: place -> why."""
    found: dict[int, str] = {}
    for name, why in (("charge", CHARGED), ("cell", PERIODIC), ("pbc", PERIODIC)):
        if f"{name}.npy" in archive.namelist():
            given = _whole(archive, name)
            if len(given) != n:
                raise ValueError(f"{name} has {len(given)} rows for {n} structures")
            found |= dict.fromkeys(np.flatnonzero(given.reshape(n, -1).any(1)).tolist(), why)
    return found


class _Column:
    """The rows of an array in a zip archive, from front to back."""

    def __init__(self, file: Any) -> None:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, self.dtype = read(file)
        if fortran or self.dtype.hasobject or shape[1:] not in ((), (3,)):
            raise ValueError("arrays must be plain numbers in C order")
        self.file, self.row, self._length = file, shape[1:], shape[0]

    def __len__(self) -> int:
        return int(self._length)

    def next(self, n_rows: int) -> NDArray[Any]:
        """The next rows. Raises ValueError if there are too few."""
        n_bytes = n_rows * int(np.prod(self.row, dtype=np.int64)) * self.dtype.itemsize
        data = self.file.read(n_bytes)
        if len(data) != n_bytes:
            raise ValueError("fewer atoms than n_atoms says")
        return np.frombuffer(data, self.dtype).reshape(n_rows, *self.row)


def _stream_ase(path: Path, start: int) -> Iterator[Item]:
    import ase.io

    frames = iter(ase.io.iread(path, index=slice(start, None)))
    for index in range(start, 2**62):
        try:
            atoms = next(frames)
        except StopIteration:
            return
        except Exception as error:
            raise DataError(f"ase cannot read structure {index} of {path}: {error or type(error).__name__}") from error
        yield index, structure_of(atoms)
