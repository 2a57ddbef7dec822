"""Which of a file's columns are energies, forces and stress: by names that were given, or by those in common use."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from egnn_md.data.reading import Array, DataError

_METHOD: Final = "(?:ref|dft|qm|xtb|ccsd|target|true|label)"
_COMMON: Final = {
    "energy": re.compile(f"(?:{_METHOD}|total|tot)?[_-]?energy(?:[_-]?{_METHOD})?", re.IGNORECASE),
    "forces": re.compile(f"{_METHOD}?[_-]?forces?(?:[_-]?{_METHOD})?", re.IGNORECASE),
    "stress": re.compile(f"{_METHOD}?[_-]?stress(?:[_-]?{_METHOD})?", re.IGNORECASE),
}
_KNOWN_VECTORS: Final = {"positions", "momenta", "velocities", "velo", "vel", "initial_magmoms", "magmoms"}


@dataclass(frozen=True)
class LabelKeys:
    """Names of the labels in a file; None: "energy", "forces", "stress", or a common name in their place."""

    energy: str | None = None
    """eV, of the whole structure."""
    forces: str | None = None
    """(n_atoms, 3) eV/Å."""
    stress: str | None = None
    """(6,) in Voigt's order or (3, 3), eV/Å³."""


def found_in(atoms: Any) -> dict[str, Any]:
    """All that an `ase.Atoms` carries: results of a calculator, then per-atom arrays, then its info."""
    results = getattr(atoms.calc, "results", None) or {}
    return {**atoms.info, **atoms.arrays, **results}


def resolve_keys(structures: Sequence[dict[str, Any]], keys: LabelKeys, path: Path) -> LabelKeys:
    """The names that this file uses, from a sample of what its structures carry (`found_in`).

    Warns where another than the standard name is taken, and of per-atom vectors that nothing uses. Raises DataError if
    a name that was asked for is not there, or several might be meant.
    """
    names = resolve_names({name for values in structures for name in values}, keys, path)
    vectors = {
        name
        for values in structures
        for name, value in values.items()
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.shape == values["positions"].shape
    }
    warn_of_unused(vectors, vars(names), path)
    return names


def resolve_names(there: Iterable[str], keys: LabelKeys, path: Path) -> LabelKeys:
    """As `resolve_keys`, from all the names that a file has; vectors are not looked at."""
    there = set(there)
    return LabelKeys(**{f.name: _resolve(f.name, getattr(keys, f.name), there, path) for f in fields(keys)})


def warn_of_unused(vectors: Iterable[str], names: Mapping[str, str | None], path: Path) -> None:
    """Warn of per-atom vectors, of which `names` holds those that are used."""
    if unused := sorted(set(vectors) - set(names.values()) - _KNOWN_VECTORS):
        warnings.warn(
            f"{path}: the per-atom vectors {', '.join(unused)} are not used; data.forces_key names the forces",
            stacklevel=4,
        )


def _resolve(kind: str, asked: str | None, there: set[str], path: Path) -> str | None:
    if asked is not None:
        if asked not in there:
            raise DataError(f"{path} has no {asked!r} (data.{kind}_key); it has {', '.join(sorted(there))}")
        return asked
    if kind in there:
        return kind
    common = sorted(name for name in there if _COMMON[kind].fullmatch(name))
    if len(common) > 1:
        raise DataError(f"{path}: is {kind} {' or '.join(common)}? Say it with data.{kind}_key")
    if common:
        warnings.warn(f"{path}: {kind} is read from {common[0]!r}; data.{kind}_key names another", stacklevel=5)
    return common[0] if common else None


def energy_of(values: dict[str, Any], name: str | None) -> float:
    """eV; NaN where there is none. Raises ValueError unless it is one number."""
    given = None if name is None else values.get(name)
    return np.nan if given is None else float(_numbers(given, name, ((), (1,))).reshape(()))


def forces_of(values: dict[str, Any], name: str | None, n_atoms: int) -> Array:
    """(n_atoms, 3) eV/Å, NaN where there are none. Raises ValueError for another shape."""
    given = None if name is None else values.get(name)
    return np.full((n_atoms, 3), np.nan) if given is None else _numbers(given, name, ((n_atoms, 3),))


def stress_of(values: dict[str, Any], name: str | None) -> Array:
    """(3, 3) eV/Å³, NaN where there is none. Raises ValueError for another shape."""
    given = None if name is None else values.get(name)
    if given is None:
        return np.full((3, 3), np.nan)
    stress = _numbers(given, name, ((6,), (9,), (3, 3)))
    if stress.size == 9:
        return stress.reshape(3, 3)
    xx, yy, zz, yz, xz, xy = stress
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def _numbers(given: Any, name: str | None, shapes: tuple[tuple[int, ...], ...]) -> Array:
    try:
        values = np.asarray(given, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {str(given)[:40]!r}, no number") from None
    if values.shape not in shapes:
        raise ValueError(f"{name} has the shape {values.shape}, not {' or '.join(map(str, shapes))}")
    return values
