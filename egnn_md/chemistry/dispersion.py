"""Dispersion coefficients of free atoms: where the learned ones start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from egnn_md.chemistry.units import ANGSTROM_PER_BOHR, EV_PER_HARTREE

# Hartree Bohr⁶: Tkatchenko and Scheffler, Phys. Rev. Lett. 102, 073005 (2009), after Chu and Dalgarno (2004).
_FREE_ATOMS: Final = {
    **{1: 6.50, 2: 1.46, 3: 1387.0, 4: 214.0, 5: 99.5, 6: 46.6, 7: 24.2, 8: 15.6, 9: 9.52, 10: 6.38},
    **{11: 1556.0, 12: 627.0, 13: 528.0, 14: 305.0, 15: 185.0, 16: 134.0, 17: 94.6, 18: 64.3},
    **{19: 3897.0, 20: 2221.0, 30: 284.0, 35: 162.0, 36: 130.0, 53: 385.0, 54: 286.0},
}
_OTHERS: Final = 500.0
"""For elements that are not listed: the order of a transition metal's."""


def free_atom_c6(elements: Sequence[int]) -> list[float]:
    """C6 of each element, eV Å⁶."""
    unit = EV_PER_HARTREE * ANGSTROM_PER_BOHR**6
    return [unit * _FREE_ATOMS.get(z, _OTHERS) for z in elements]
