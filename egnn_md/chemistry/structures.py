"""Isolated molecules from outside: checked, and in batches that fit the processor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.elements import CLOSEST_PAIR, UnsupportedElement, symbols
from egnn_md.chemistry.molecules import formula

PAIRS_AT_ONCE: Final = 32_000
"""Of a batch, padded: enough that torch's own cost vanishes; twice as many gain nothing."""
MOST_ATOMS: Final = 1_000
"""Far more than molecules have whose properties can be had from QM9; bounds the memory."""


@dataclass(frozen=True)
class Structure:
    """One isolated molecule."""

    atomic_numbers: NDArray[np.int64]
    """(n_atoms,)."""
    positions: NDArray[np.float64]
    """(n_atoms, 3) Å."""
    unfit: str = ""
    """Why it is no neutral closed-shell molecule in vacuum, if it says so itself."""
    name: str = ""
    """What its file calls it: a name, a title, a comment."""
    smiles: str = ""
    """What its file says of its bonds, if it does."""

    def formula(self) -> str:
        """Hill's: carbon, hydrogen, the rest by the alphabet; C2H6O."""
        return formula(self.atomic_numbers)

    def problem(self, elements: Sequence[int]) -> ValueError | None:
        """What is wrong with it for a model that knows these elements; None if nothing is."""
        n = len(self.atomic_numbers)
        if not 1 <= n <= MOST_ATOMS:
            return ValueError(f"it has {n} atoms; a molecule has 1 to {MOST_ATOMS}")
        if self.unfit:
            return ValueError(self.unfit)
        if unknown := set(self.atomic_numbers.tolist()) - set(elements):
            return UnsupportedElement(f"it has {symbols(sorted(unknown))}; the model knows {symbols(elements)}")
        if int(self.atomic_numbers.sum()) % 2:
            return ValueError(
                "it has an odd number of electrons: a radical or an ion; the model knows closed shells only"
            )
        if not np.isfinite(self.positions).all():
            return ValueError("it has positions that are NaN or infinite")
        squared = ((self.positions[:, None] - self.positions) ** 2).sum(-1)
        np.fill_diagonal(squared, math.inf)
        if squared.min() < CLOSEST_PAIR**2:
            return ValueError(f"it has atoms closer than {CLOSEST_PAIR} Å to each other")
        return None


NEUTRAL: Final = 0.01
"""e: charges that are no larger add up to nothing."""
PERIODIC: Final = "it is periodic; the model knows isolated molecules: set pbc=False if it is one"
CHARGED: Final = "it is charged; the model knows neutral molecules only"
OPEN_SHELL: Final = "its multiplicity is not 1; the model knows closed shells only"
CHARGE_NAMES: Final = ("charge", "total_charge", "totalcharge", "net_charge", "molecular_charge")
"""Of a total charge, e, in `atoms.info` and in arrays of an npz; the first is ours."""
SPIN_NAMES: Final = ("spin", "multiplicity", "spin_multiplicity", "mult")
"""Of a spin multiplicity 2S+1."""


def charge_of(atoms: Any) -> float:
    """Total charge, e, that an `ase.Atoms` claims: of its info (`CHARGE_NAMES`), or of its initial charges.

    0 if it says nothing, NaN if it says no number.
    """
    charges = said_in(atoms.info, CHARGE_NAMES)
    charges.append(atoms.get_initial_charges())
    try:
        totals = [float(np.asarray(charge, np.float64).sum()) for charge in charges]
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return next((total for total in totals if not abs(total) <= NEUTRAL), 0.0)


def said_charge(atoms: Any) -> float | None:
    """`charge_of`, and None where an `ase.Atoms` says nothing of its charge."""
    charge = charge_of(atoms)
    return charge if abs(charge) > NEUTRAL or said_in(atoms.info, CHARGE_NAMES) else None


def multiplicity_of(atoms: Any) -> float:
    """Spin multiplicity that an `ase.Atoms` claims: of its info (`SPIN_NAMES`), or of initial magnetic moments, were
    they parallel. 1 if it says nothing, NaN if it says no number.
    """
    said = said_in(atoms.info, SPIN_NAMES)
    try:
        said.append(1.0 + float(np.abs(np.asarray(atoms.get_initial_magnetic_moments(), np.float64)).sum()))
        return next((float(value) for value in said if float(value) != 1.0), 1.0)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def said_in(info: Mapping[Any, Any], names: Sequence[str]) -> list[Any]:
    """What `atoms.info` has under these names, in whichever case."""
    if not info:
        return []
    said = {key.lower(): value for key, value in info.items() if isinstance(key, str)}
    return [said[name] for name in names if said.get(name) is not None]


def name_plainly(atoms: Any) -> None:
    """Let what `atoms.info` says of charge and multiplicity stand under "charge" and "spin", whatever its names are."""
    for name, names, value in (
        ("charge", CHARGE_NAMES, charge_of(atoms)),
        ("spin", SPIN_NAMES, multiplicity_of(atoms)),
    ):
        if said_in(atoms.info, names) and not math.isnan(value):
            atoms.info[name] = int(value) if value.is_integer() else value


def structure_of(atoms: Any) -> Structure:
    """From an `ase.Atoms`, or anything with its numbers, positions, pbc and info."""
    unfit = unfit_of(bool(np.any(atoms.pbc)), charge_of(atoms), multiplicity_of(atoms))
    name, smiles = (str(next(iter(said_in(atoms.info, names)), "")) for names in (("name", "title"), ("smiles",)))
    return Structure(np.asarray(atoms.numbers, np.int64), np.asarray(atoms.positions, np.float64), unfit, name, smiles)


def unfit_of(periodic: bool, charge: float, multiplicity: float) -> str:
    """Why a structure of which this is known is no neutral closed-shell molecule in vacuum; empty if it is one."""
    if periodic:
        return PERIODIC
    if not abs(charge) <= NEUTRAL:
        return CHARGED
    return "" if multiplicity == 1 else f"its multiplicity is {multiplicity:g}; the model knows closed shells (1) only"


def structures_of(structures: Any) -> tuple[list[Structure], bool]:
    """One `ase.Atoms` or a sequence of them -> structures, and whether it was one."""
    if isinstance(structures, str | bytes):
        raise ValueError(f"{structures!r} is no structure: give ase.Atoms, or read a file with ase.io.read")
    if hasattr(structures, "positions"):
        return [structure_of(structures)], True
    return [structure_of(atoms) for atoms in structures], False


def batches(molecules: Iterable[Structure], at_once: int | None = None) -> Iterator[list[Structure]]:
    """Neighbours in the sequence, `at_once` of them, or as many as `PAIRS_AT_ONCE` allows; never fewer than one."""
    batch: list[Structure] = []
    largest = 0
    for molecule in molecules:
        size = max(largest, len(molecule.atomic_numbers))
        full = len(batch) == at_once if at_once else (len(batch) + 1) * size**2 > PAIRS_AT_ONCE
        if batch and full:
            yield batch
            batch, size = [], len(molecule.atomic_numbers)
        batch.append(molecule)
        largest = size
    if batch:
        yield batch
