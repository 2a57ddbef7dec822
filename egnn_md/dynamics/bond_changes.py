"""Which bonds two structures of the same atoms do not share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from egnn_md.chemistry.elements import BOUND, COVALENT_RADII
from egnn_md.chemistry.molecules import bonds

if TYPE_CHECKING:
    from ase import Atoms

Pair = tuple[int, int]
MOST_NAMED: Final = 30
MOST_ATOMS: Final = 2000
"""That are compared: of liquids nobody reads the names."""


@dataclass(frozen=True)
class BondChanges:
    """Names such as "O1–H3", by the places of the atoms, counted from 0."""

    n_start: int
    """Bonds at the start."""
    broken: list[str]
    formed: list[str]

    def __str__(self) -> str:
        """ "O1–H3 broken and O1–H5 formed", "none" if all are as they were."""
        said = [
            f"{listed(names)} {word}" for word, names in (("broken", self.broken), ("formed", self.formed)) if names
        ]
        return " and ".join(said) or "none"

    def __bool__(self) -> bool:
        return bool(self.broken or self.formed)


def bond_changes(start: Atoms, end: Atoms) -> BondChanges | None:
    """The bonds of `start` that `end` has not, and the other way round; None for more than `MOST_ATOMS` atoms."""
    if len(start) > MOST_ATOMS:
        return None
    before, after = bond_pairs(start), bond_pairs(end)
    names = [f"{symbol}{k}" for k, symbol in enumerate(start.symbols)]

    def named(pairs: set[Pair]) -> list[str]:
        return [f"{names[i]}–{names[j]}" for i, j in sorted(pairs)]

    return BondChanges(len(before), named(before - after), named(after - before))


def bond_pairs(atoms: Atoms) -> set[Pair]:
    """Pairs of atoms that stand as near as bonds do, periodic images included."""
    from ase.neighborlist import neighbor_list

    if not atoms.pbc.any():
        pairs = np.argwhere(np.triu(bonds(atoms.numbers, atoms.positions)))
    else:
        reach = BOUND * np.array(COVALENT_RADII)[atoms.numbers]
        pairs = np.stack(neighbor_list("ij", atoms, reach), axis=1)
    return {(int(i), int(j)) for i, j in pairs if i < j}


def listed(names: list[str]) -> str:
    """The first of them in a line, separated by spaces; "none" without any."""
    return " ".join(names[:MOST_NAMED]) + " …" * (len(names) > MOST_NAMED) or "none"
