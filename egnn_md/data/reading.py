"""What all readers of data share: one error, and sizes that are looked at before anything is allocated."""

from __future__ import annotations

import gzip
import math
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ROOM: Final = 256 * 1024**2
"""Bytes that any file may unpack to."""
RATIO: Final = 30
"""Times its own size that a larger one may; coordinates shrink to a third at best."""
MOST_ATOMS: Final = 2_000_000
"""Of one structure."""
LONGEST_LINE: Final = 65_536
"""Of text: longer ones are no structure."""


class DataError(ValueError):
    """A data file that cannot be used; the message says why and what to do."""


class Plain(NamedTuple):
    """A structure without a cell, labels or masses of its own: quicker than an `ase.Atoms` where there are many."""

    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    """(n_atoms, 3) Å."""
    charge: float = 0.0
    multiplicity: int = 1
    name: str = ""
    smiles: str = ""


def room(path: Path) -> int:
    """How many bytes a compressed file may unpack to."""
    return max(ROOM, RATIO * path.stat().st_size)


def read_npz(path: Path, required: Sequence[str], others: Sequence[str] | None = None) -> dict[str, Array]:
    """Arrays of an npz: the `required` ones and those of `others` that it has (None: all that it has).

    Raises DataError if it cannot be read, lacks one of `required` or unpacks to far more than a file of its size holds.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = [name for name in required if name not in members]
            if missing:
                raise DataError(f"{path} lacks {', '.join(missing)}; it has {', '.join(sorted(members)) or 'nothing'}")
            wanted = members if others is None else [name for name in (*required, *others) if name in members]
            check_room(path, archive, wanted)
            return {name: read_array(archive, name) for name in wanted}
    except DataError:
        raise
    except Exception as error:  # whatever zip and npy trip on in damaged bytes
        raise DataError(f"{path} is not a readable npz: {error or type(error).__name__}") from error


def shapes_of_npz(path: Path) -> dict[str, tuple[int, ...]]:
    """Of all arrays of an npz that are numbers or text, without reading them. Raises DataError."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with path.open("rb") as opened, zipfile.ZipFile(opened) as archive:
            for info in archive.infolist():
                with archive.open(info) as file, suppress(ValueError):
                    shapes[info.filename.removesuffix(".npy")] = read_header(file)[0]
    except Exception as error:  # whatever zip and npy trip on in damaged bytes
        raise DataError(f"{path} is not a readable npz: {error or type(error).__name__}") from error
    return shapes


def check_room(path: Path, archive: zipfile.ZipFile, names: Sequence[str] | dict[str, Any]) -> None:
    """Raise DataError if these arrays of an npz unpack to far more than a file of its size can hold."""
    total = sum(info.file_size for info in archive.infolist() if info.filename.removesuffix(".npy") in names)
    if total > room(path):
        raise DataError(f"{path} would unpack to {total / 1e9:.1f} GB: this is no file of data")


def read_array(archive: zipfile.ZipFile, name: str) -> Array:
    """One array. Raises ValueError unless it is plain numbers or text, as many as its header says."""
    info = archive.getinfo(f"{name}.npy" if f"{name}.npy" in archive.NameToInfo else name)
    with archive.open(info) as file:
        shape, _, dtype = read_header(file)
    if math.prod(shape) * dtype.itemsize > info.file_size:
        raise ValueError(f"{name} is cut off")
    with archive.open(info) as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array


def read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of the npy array that begins here. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject or dtype.kind not in "biufSU" or dtype.itemsize > LONGEST_LINE:
        raise ValueError(f"an array of {dtype} is neither numbers nor text")
    return shape, fortran, dtype


def whole_numbers(values: Array, name: str, largest: int) -> NDArray[np.int64]:
    """As int64. Raises ValueError unless all are whole numbers from 0 to `largest`."""
    if (
        values.dtype.kind not in "iufb"
        or not ((values >= 0) & (values <= largest) & (values == np.floor(values))).all()
    ):
        raise ValueError(f"{name} must be whole numbers from 0 to {largest}")
    return values.astype(np.int64)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The file itself, or what a .gz unpacks to, as a temporary file of the name without .gz.

    Raises DataError for damaged bytes, and if they unpack to far more than a file of its size can hold.
    """
    if path.suffix.lower() != ".gz":
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="egnn-md-") as folder:
        plain, left = Path(folder) / path.stem, room(path)
        try:
            with gzip.open(path) as packed, plain.open("wb") as file:
                while chunk := packed.read(2**20):
                    left -= len(chunk)
                    if left < 0:
                        raise DataError(f"{path} unpacks to more than {room(path) / 1e9:.1f} GB: no file of data")
                    file.write(chunk)
        except (OSError, EOFError) as error:
            raise DataError(f"{path} cannot be unpacked: {error}") from error
        except Exception as error:  # zlib's own
            raise DataError(f"{path} cannot be unpacked: {error}") from error
        yield plain


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a text file: any encoding's, without a byte-order mark. Raises DataError for a line without end."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        while line := file.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise DataError(
                    f"{path} has a line of more than {LONGEST_LINE} characters: it is no text of structures"
                )
            yield line
