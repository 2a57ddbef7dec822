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

VALENCES: Final = {
    # H, B, C, N, O, F
    1: (0.55, 1.6), 5: (2.4, 5.8), 6: (3.25, 5.4), 7: (2.3, 4.9), 8: (1.2, 3.3), 9: (0.5, 1.9),
    # Si, P, S, Cl, Br, I
    14: (2.9, 6.6), 15: (2.0, 9.6), 16: (1.5, 10.0), 17: (0.6, 2.0), 35: (0.6, 2.2), 53: (0.6, 2.2),
}  # fmt: skip
"""Smallest and largest sum of Pauling's bond orders (`egnn_md.nn.valences`) of atoms in neutral closed-shell molecules,
by atomic number, thermal motion included: chosen by hand on frames of QM9's molecules at up to 1000 K."""

MASSES: Final = (
    0.0,
    *map(
        float,
        """
1.008 4.003 6.94 9.012 10.81 12.011 14.007 15.999 18.998 20.18 22.99 24.305 26.982 28.085 30.974 32.06 35.45 39.948
39.098 40.078 44.956 47.867 50.941 51.996 54.938 55.845 58.933 58.693 63.546 65.38 69.723 72.63 74.922 78.971 79.904
83.798 85.468 87.62 88.906 91.224 92.906 95.95 97.907 101.07 102.906 106.42 107.868 112.414 114.818 118.71 121.76
127.6 126.904 131.293 132.905 137.327 138.905 140.116 140.908 144.242 144.913 150.36 151.964 157.25 158.925 162.5
164.93 167.259 168.934 173.054 174.967 178.49 180.948 183.84 186.207 190.23 192.217 195.084 196.967 200.592 204.38
207.2 208.98 208.982 209.987 222.018 223.02 226.025 227.028 232.038 231.036 238.029 237.048 244.064 243.061 247.07
""".split(),
    ),
)
"""amu, by atomic number: standard atomic weights to three decimals, or the mass of the longest-lived isotope."""

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
