"""The one home of conversion constants (CODATA 2018; exact where the SI is exact).

Inside the package: energies in eV, lengths in Å, masses in amu; times in fs at every public
boundary. `ase.units` follows CODATA 2014 and differs by 8e-9, so it is never used to convert.
"""

from typing import Final

ELEMENTARY_CHARGE: Final = 1.602176634e-19
"""C, exact; also J per eV."""
AVOGADRO: Final = 6.02214076e23
"""1/mol, exact."""
ATOMIC_MASS: Final = 1.66053906660e-27
"""kg per amu."""

KJ_PER_MOL_PER_EV: Final = ELEMENTARY_CHARGE * AVOGADRO * 1e-3
"""1 eV = 96.48533212331 kJ/mol."""
KCAL_PER_MOL_PER_EV: Final = KJ_PER_MOL_PER_EV / 4.184
"""1 eV = 23.0605 kcal/mol (thermochemical calories)."""
ANGSTROM_PER_NM: Final = 10.0
BOLTZMANN: Final = 1.380649e-23 / ELEMENTARY_CHARGE
"""eV/K."""
ANGSTROM_PER_BOHR: Final = 0.529177210903
EV_PER_HARTREE: Final = 27.211386245988
COULOMB: Final = EV_PER_HARTREE * ANGSTROM_PER_BOHR
"""e²/(4π ε0) = 14.399645 eV Å."""
FS_PER_TIME_UNIT: Final = (ATOMIC_MASS * 1e-20 / ELEMENTARY_CHARGE) ** 0.5 * 1e15
"""Å sqrt(amu/eV), the time unit that goes with eV, Å and amu (ASE's), is 10.18 fs."""
EV_PER_A3_PER_BAR: Final = 1e5 * 1e-30 / ELEMENTARY_CHARGE
"""1 bar = 6.2415e-7 eV/Å³."""
CM_PER_FS: Final = 2.99792458e-5
"""The speed of light, exact: 1 fs⁻¹ = 33,356 cm⁻¹."""
WAVENUMBER_PER_EV: Final = ELEMENTARY_CHARGE / (6.62607015e-34 * CM_PER_FS * 1e15)
"""1 eV = 8065.54 cm⁻¹."""
G_PER_CM3_PER_AMU_PER_A3: Final = ATOMIC_MASS * 1e27
"""1 amu/Å³ = 1.6605 g/cm³."""
