"""QM9 as people have it: the original archive, a folder of its files, MoleculeNet's SDF and CSV, or npz.

The paper's split (Satorras et al. 2021; Cormorant's, Anderson et al. 2019) is a permutation, with seed 0, of the
130,831 molecules that remain of 133,885 when the uncharacterized ones are left out: 100,000 for training, 17,748 for
validation, 13,083 for testing.
"""

from __future__ import annotations

import csv
import hashlib
import tarfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.elements import NUMBER_OF
from egnn_md.chemistry.targets import BY_NAME, NAMES, TARGETS
from egnn_md.data.checks import check_arrays
from egnn_md.data.frames import ragged_rows
from egnn_md.data.reading import Array, DataError, read_npz
from egnn_md.data.sdf import parse_molecule, records
from egnn_md.storage import write_npz

N_MOLECULES: Final = 133_885
N_UNCHARACTERIZED: Final = 3_054
SPLIT_SIZES: Final = {"train": 100_000, "valid": 17_748, "test": 13_083}
SIDES: Final = ("train", "valid", "test")
NO_SIDE: Final = -1
N_ROTATIONAL: Final = 3
"""Line 2 of an original file: "gdb", the number, the rotational constants A, B, C, then the properties."""


@dataclass(frozen=True)
class Molecules:
    """Isolated molecules with QM9's properties. Per-atom arrays of all molecules stand one after another."""

    index: NDArray[np.int64]
    """(n_molecules,) QM9's number, from 1."""
    n_atoms: NDArray[np.int64]
    """(n_molecules,)."""
    atomic_numbers: NDArray[np.int64]
    """(total,)."""
    positions: Array
    """(total, 3) Å."""
    targets: NDArray[np.float64]
    """(n_molecules, 12) in the order of `egnn_md.chemistry.targets.NAMES` and QM9's own units; NaN where unknown."""
    split: NDArray[np.int8]
    """(n_molecules,): position in `SIDES`, or NO_SIDE."""
    sources: tuple[str, ...] = ()
    """Files they came from, each with the SHA-256 of its bytes: "name sha256"."""

    def __len__(self) -> int:
        return len(self.n_atoms)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(n_molecules + 1,): where each molecule's atoms begin."""
        return np.concatenate([[0], np.cumsum(self.n_atoms)]).astype(np.int64)

    def select(self, indices: NDArray[np.int64]) -> Molecules:
        """The molecules at these places, in this order."""
        rows = ragged_rows(self.starts[indices], self.n_atoms[indices])
        return replace(
            self,
            atomic_numbers=self.atomic_numbers[rows],
            positions=self.positions[rows],
            **{name: getattr(self, name)[indices] for name in ("index", "n_atoms", "targets", "split")},
        )

    def side(self, name: str) -> Molecules:
        """The molecules of "train", "valid" or "test"."""
        return self.select(np.flatnonzero(self.split == SIDES.index(name)))

    def having(self, elements: Iterable[int]) -> Molecules:
        """The molecules all of whose atoms are among `elements`."""
        foreign = ~np.isin(self.atomic_numbers, list(elements))
        molecule = np.repeat(np.arange(len(self)), self.n_atoms)
        return self.select(np.setdiff1d(np.arange(len(self)), molecule[foreign]))

    def counts(self, elements: Iterable[int]) -> NDArray[np.float64]:
        """(n_molecules, n_elements): atoms of each element."""
        molecule = np.repeat(np.arange(len(self)), self.n_atoms)
        columns = [np.bincount(molecule[self.atomic_numbers == z], minlength=len(self)) for z in elements]
        return np.stack(columns, 1).astype(np.float64)

    def labels(self) -> NDArray[np.float64]:
        """(n_molecules, 12) in the units reported: energies in meV, the thermochemical ones relative to free atoms.

        See `egnn_md.chemistry.targets`. NaN where unknown, and for relative energies of elements without a reference.
        """
        labels = self.targets * [target.factor for target in TARGETS]
        elements = np.unique(self.atomic_numbers)
        counts = self.counts(elements)
        for k, target in enumerate(TARGETS):
            if target.relative:
                labels[:, k] -= target.factor * (counts @ [target.atoms.get(int(z), np.nan) for z in elements])
        return labels


def concatenate(parts: Sequence[Molecules]) -> Molecules:
    """All molecules of all parts, one part after another."""
    names = ("index", "n_atoms", "atomic_numbers", "positions", "targets", "split")
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Molecules(**arrays, sources=sum((part.sources for part in parts), ()))


def read_qm9(path: str | Path, uncharacterized: str | Path | None = None) -> Molecules:
    """QM9, or part of it, with the uncharacterized molecules left out and the paper's split.

    `path` is the original archive of dsgdb9nsd_*.xyz (any tar), a folder of such files, MoleculeNet's .sdf (its
    .sdf.csv or .csv beside it) or an npz (`index`, `n_atoms`, `atomic_numbers`, `positions`, `targets`,
    `target_names`, optional `split`). `uncharacterized` is QM9's own list; None looks for uncharacterized.txt beside
    `path`; an npz needs none. Without it part of QM9 comes with a warning, without a split. Raises DataError for the
    whole of QM9 without the list, and for missing, empty, broken or incomplete files.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"no such file or folder: {path}")
    if path.suffix == ".npz":
        return replace(_read_npz(path), sources=(_source(path),))
    if path.is_dir():
        molecules = _from_xyz(_folder(path), path)
    else:
        molecules = _read_sdf(path) if path.suffix == ".sdf" else _from_xyz(_archive(path), path)
    sources = () if path.is_dir() else (_source(path),)
    return replace(_divided(molecules, path, uncharacterized), sources=sources)


def paper_split(index: NDArray[np.int64], excluded: NDArray[np.int64]) -> NDArray[np.int8]:
    """The side of each molecule by its QM9 number, given the numbers of all uncharacterized ones.

    NO_SIDE for these. Raises DataError unless there are 3,054 of them.
    """
    excluded = np.unique(excluded)
    if len(excluded) != N_UNCHARACTERIZED:
        raise DataError(f"{len(excluded)} uncharacterized molecules, not {N_UNCHARACTERIZED}: that list is not QM9's")
    order = np.random.RandomState(0).permutation(N_MOLECULES - N_UNCHARACTERIZED)
    side_of_rank = np.empty(len(order), np.int8)
    side_of_rank[order] = np.repeat(np.arange(3), list(SPLIT_SIZES.values()))
    kept = ~np.isin(index, excluded)
    split = np.full(len(index), NO_SIDE, np.int8)
    split[kept] = side_of_rank[index[kept] - 1 - np.searchsorted(excluded, index[kept])]
    return split


def read_uncharacterized(path: Path) -> NDArray[np.int64]:
    """The numbers in QM9's uncharacterized.txt: the first word of each line that starts with one."""
    lines = (line.split() for line in path.read_text(errors="replace").splitlines())
    return np.array([int(words[0]) for words in lines if words and words[0].isdigit()], np.int64)


def _divided(molecules: Molecules, path: Path, uncharacterized: str | Path | None) -> Molecules:
    """Without the uncharacterized molecules, and with the split."""
    listed = path.parent / "uncharacterized.txt" if uncharacterized is None else Path(uncharacterized)
    if not listed.is_file():
        if uncharacterized is not None or len(molecules) > N_MOLECULES - N_UNCHARACTERIZED:
            raise DataError(
                f"{listed} is missing: QM9's list of the {N_UNCHARACTERIZED} molecules to leave out. It comes with "
                "QM9 (egnn-md data qm9 fetches both); put it beside the data"
            )
        warnings.warn(f"no {listed}: uncharacterized molecules are not left out, and there is no split", stacklevel=3)
        return molecules
    split = paper_split(molecules.index, read_uncharacterized(listed))
    return replace(molecules, split=split).select(np.flatnonzero(split != NO_SIDE))


def _source(path: Path) -> str:
    with path.open("rb") as file:
        return f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}"


def _folder(path: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(path.glob("*.xyz")):
        yield file.name, file.read_text()


def _archive(path: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each xyz file of a tar, compressed or not, read once from front to back."""
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() and member.name.endswith(".xyz") else None
                if file is not None:
                    yield Path(member.name).name, file.read().decode()
    except (tarfile.TarError, EOFError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a readable tar archive, or is cut off: {error}") from error


def _from_xyz(files: Iterable[tuple[str, str]], path: Path) -> Molecules:
    rows = []
    for name, text in files:
        try:
            rows.append(parse_xyz(text))
        except (ValueError, IndexError, KeyError) as error:
            raise DataError(f"{path}: {name} is not a file of QM9: {error!r}") from error
    return _gathered(rows, path)


_Row = tuple[int, list[int], list[list[float]], list[float]]


def parse_xyz(text: str) -> _Row:
    """One original file -> number, atomic numbers, positions (Å), the twelve properties.

    Exponents may be written *^ (6.1e-6 as 6.1*^-6), as Mathematica did. Raises ValueError, IndexError or KeyError.
    """
    lines = text.replace("*^", "e").splitlines()
    n_atoms = int(lines[0])
    tag, *words = lines[1].replace("gdb_", "gdb ").split()
    if tag != "gdb" or len(words) != 1 + N_ROTATIONAL + len(NAMES):
        raise ValueError("its second line does not hold a number, three constants and twelve properties")
    atoms = [line.split() for line in lines[2 : 2 + n_atoms]]
    if n_atoms < 1 or len(atoms) != n_atoms:
        raise ValueError(f"{len(atoms)} atoms, not {n_atoms}")
    properties = [float(word) for word in words[1 + N_ROTATIONAL :]]
    return int(words[0]), [NUMBER_OF[a[0]] for a in atoms], [[float(x) for x in a[1:4]] for a in atoms], properties


def _read_sdf(path: Path) -> Molecules:
    """MoleculeNet: structures in gdb9.sdf, properties in gdb9.sdf.csv, in the same order."""
    tables = [file for file in (path.with_name(path.name + ".csv"), path.with_suffix(".csv")) if file.is_file()]
    if not tables:
        raise DataError(f"{path.name}.csv, the table with the properties, is missing beside {path}")
    with tables[0].open(newline="") as file:
        properties = list(csv.DictReader(file))
    missing = [name for name in ("mol_id", *NAMES) if not properties or name not in properties[0]]
    if missing:
        raise DataError(f"{tables[0]} lacks the columns {', '.join(missing)}")
    rows = []
    with path.open() as sdf:
        found = records(sdf)
        for row in properties:
            try:
                numbers, positions, *_ = parse_molecule(next(found, []))
                values = [float(row[name]) if row[name] else np.nan for name in NAMES]
                rows.append((int(row["mol_id"].removeprefix("gdb_")), numbers, positions, values))
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise DataError(f"{path}: molecule {len(rows)} ({row['mol_id']}) is broken: {error!r}") from error
        if next(found, None) is not None:
            raise DataError(f"{path} holds more molecules than the {len(rows)} of {tables[0]}")
    return _gathered(rows, path)


def _gathered(rows: list[_Row], path: Path) -> Molecules:
    if not rows:
        raise DataError(f"{path} holds no molecules of QM9 (files named dsgdb9nsd_*.xyz)")
    rows.sort(key=lambda row: row[0])
    index = np.array([row[0] for row in rows], np.int64)
    if index[0] < 1 or index[-1] > N_MOLECULES or len(np.unique(index)) != len(index):
        raise DataError(f"{path}: molecules must have distinct numbers from 1 to {N_MOLECULES}")
    molecules = Molecules(
        index=index,
        n_atoms=np.array([len(row[1]) for row in rows], np.int64),
        atomic_numbers=np.concatenate([row[1] for row in rows]).astype(np.int64),
        positions=np.concatenate([row[2] for row in rows]),
        targets=np.array([row[3] for row in rows], np.float64),
        split=np.full(len(rows), NO_SIDE, np.int8),
    )
    return _checked(molecules, path)


def _checked(molecules: Molecules, path: Path) -> Molecules:
    if len(molecules) == 0 or molecules.n_atoms.min() < 1:
        raise DataError(f"{path} holds no molecules, or some without atoms")
    if not np.isfinite(molecules.positions).all():
        atom = int(np.flatnonzero(~np.isfinite(molecules.positions).all(1))[0])
        row = int(np.searchsorted(molecules.starts, atom, "right")) - 1
        raise DataError(f"{path}: molecule {molecules.index[row]} has NaN or infinite positions; remove it")
    return molecules


def _read_npz(path: Path) -> Molecules:
    data = read_npz(path, ("n_atoms", "atomic_numbers", "positions", "targets", "target_names"))
    check_arrays(data, path, per_frame=("index", "split"))
    n = len(data["n_atoms"])
    names = [str(name) for name in np.atleast_1d(data["target_names"])]
    known = len(set(names)) == len(names) and set(names) <= set(BY_NAME)
    if not known or data["targets"].shape != (n, len(names)):
        raise DataError(f"{path}: targets must be {n} rows of {', '.join(NAMES)}, or some of these; not {names}")
    targets = np.full((n, len(NAMES)), np.nan)
    targets[:, [NAMES.index(name) for name in names]] = data["targets"]
    molecules = Molecules(
        index=data.get("index", np.arange(1, n + 1)).astype(np.int64),
        n_atoms=data["n_atoms"].astype(np.int64),
        atomic_numbers=data["atomic_numbers"].astype(np.int64),
        positions=data["positions"],
        targets=targets,
        split=data["split"].astype(np.int8) if "split" in data else np.full(n, NO_SIDE, np.int8),
    )
    return _checked(molecules, path)


def write_qm9(molecules: Molecules, path: str | Path) -> None:
    """Write an npz that `read_qm9` reads, in a second where an archive takes a minute."""
    arrays = {name: getattr(molecules, name) for name in ("index", "n_atoms", "atomic_numbers", "targets", "split")}
    arrays |= {"positions": molecules.positions.astype(np.float32), "target_names": np.array(NAMES)}
    write_npz(Path(path), arrays)
