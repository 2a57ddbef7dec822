"""Names and covalent radii of the elements, so that the core needs no chemistry package."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

SYMBOLS: Final = (
    "X",
    *"""
H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr
Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir
Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm
""".split(),
)
"""Symbol of atomic number Z at position Z; Z = 0 is ASE's placeholder X."""
NUMBER_OF: Final = {name: z for z, name in enumerate(SYMBOLS) if z}
"""Atomic number of a symbol."""

BOUND: Final = 1.3
"""Atoms are bound below this many sums of their covalent radii; thermal vibrations stay below."""
COVALENT_RADII: Final = (
    0.2,
    *map(
        float,
        """
0.31 0.28 1.28 0.96 0.84 0.76 0.71 0.66 0.57 0.58 1.66 1.41 1.21 1.11 1.07 1.05 1.02 1.06 2.03 1.76 1.70 1.60
1.53 1.39 1.39 1.32 1.26 1.24 1.32 1.22 1.22 1.20 1.19 1.20 1.20 1.16 2.20 1.95 1.90 1.75 1.64 1.54 1.47 1.46
1.42 1.39 1.45 1.44 1.42 1.39 1.39 1.38 1.39 1.40 2.44 2.15 2.07 2.04 2.03 2.01 1.99 1.98 1.98 1.96 1.94 1.92
1.92 1.89 1.90 1.87 1.87 1.75 1.70 1.62 1.51 1.44 1.41 1.36 1.36 1.32 1.45 1.46 1.48 1.40 1.50 1.50 2.60 2.21
2.15 2.06 2.00 1.96 1.90 1.87 1.80 1.69
""".split(),
    ),
)
"""Å, by atomic number: Cordero et al., Dalton Trans. 2008, 2832."""

CLOSEST_PAIR: Final = 0.1
"""Å: atoms nearer than this are a broken structure, not a strong repulsion."""
MAX_ATOMIC_NUMBER: Final = len(SYMBOLS) - 1


class UnsupportedElement(ValueError):
    """A structure has an element that the model was not trained on."""


def symbol(atomic_number: int) -> str:
    """'C' for 6; 'Z=104' for a number without an entry."""
    return SYMBOLS[atomic_number] if 0 < atomic_number <= MAX_ATOMIC_NUMBER else f"Z={atomic_number}"


def symbols(atomic_numbers: Iterable[int]) -> str:
    """'H, C, N' for 1, 6, 7: for messages."""
    return ", ".join(symbol(int(z)) for z in atomic_numbers)
