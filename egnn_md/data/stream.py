"""Molecules of a file one after another, however many there are: nothing is kept but the one at hand."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.structures import (
    CHARGE_NAMES,
    CHARGED,
    OPEN_SHELL,
    PERIODIC,
    SPIN_NAMES,
    Structure,
    structure_of,
    unfit_of,
)
from egnn_md.data.reading import MOST_ATOMS, DataError, Plain, check_room, read_array, read_header, whole_numbers
from egnn_md.data.structure_files import read_structures

_FRAMES_OF_NPZ: Final = 10_000

Item = tuple[int, "Structure | DataError"]
"""Place in the file, counted from 0, and the structure, or what is wrong with it."""


def stream(path: str | Path, start: int = 0) -> Iterator[Item]:
    """The structures of a file from number `start` on; those that cannot be read come as a DataError.

    An npz has `n_atoms`, `atomic_numbers` and `positions`; all else as `read_structures`. Raises DataError if the file
    is missing, empty or so broken that the next structure cannot be found.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz" or not path.is_file() or path.stat().st_size == 0:
        return ((index, as_structure(item)) for index, item in read_structures(path, start))
    return _stream_npz(path, start)


def as_structure(item: Any) -> Structure | DataError:
    """Of what a reader gave: a `Plain`, an `ase.Atoms`, or what is wrong with it."""
    if isinstance(item, Plain):
        unfit = unfit_of(False, item.charge, item.multiplicity)
        return Structure(item.numbers, item.positions, unfit, item.name, item.smiles)
    return item if isinstance(item, DataError | Structure) else structure_of(item)


def _stream_npz(path: Path, start: int) -> Iterator[Item]:
    try:
        with path.open("rb") as opened, zipfile.ZipFile(opened) as archive:
            check_room(path, archive, {name.removesuffix(".npy"): None for name in archive.namelist()})
            n_atoms = whole_numbers(read_array(archive, "n_atoms").reshape(-1), "n_atoms", MOST_ATOMS)
            unfit = _unfit(archive, len(n_atoms))
            with archive.open("atomic_numbers.npy") as first, archive.open("positions.npy") as second:
                numbers, positions = _Column(first, "iu"), _Column(second, "iuf")
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
    except DataError:
        raise
    except Exception as error:  # whatever zip and npy trip on in damaged bytes
        raise DataError(
            f"{path} is no npz with n_atoms, atomic_numbers and positions, or is cut off: {error}"
        ) from error


def _unfit(archive: zipfile.ZipFile, n: int) -> dict[int, str]:
    """What arrays of charges, multiplicities, `pbc` and `cell` say against structures: place -> why."""
    found: dict[int, str] = {}
    for name, (harmless, why) in _AGAINST.items():
        if f"{name}.npy" in archive.namelist():
            given = read_array(archive, name)
            if len(given) != n:
                raise ValueError(f"{name} has {len(given)} rows for {n} structures")
            found |= dict.fromkeys(np.flatnonzero((given.reshape(n, -1) != harmless).any(1)).tolist(), why)
    return found


_AGAINST: Final = {
    **dict.fromkeys(CHARGE_NAMES, (0, CHARGED)),
    **dict.fromkeys(SPIN_NAMES, (1, OPEN_SHELL)),
    **dict.fromkeys(("cell", "pbc"), (0, PERIODIC)),
}
"""Arrays of an npz: the value that says nothing, and what any other means."""


class _Column:
    """The rows of an array in a zip archive, from front to back."""

    def __init__(self, file: Any, kinds: str) -> None:
        shape, fortran, self.dtype = read_header(file)
        if fortran or self.dtype.kind not in kinds or len(shape) not in (1, 2) or shape[1:] not in ((), (3,)):
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
