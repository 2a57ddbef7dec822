"""Constants beside the published CODATA 2018 values."""

from __future__ import annotations

import pytest

from egnn_md.chemistry import units

CODATA_2018 = [
    ("KJ_PER_MOL_PER_EV", 96.48533212331),  # exact in the SI: e × N_A
    ("KCAL_PER_MOL_PER_EV", 23.06054783),  # e × N_A / 4184
    ("BOLTZMANN", 8.617333262e-5),  # eV/K
    ("ANGSTROM_PER_BOHR", 0.529177210903),
    ("EV_PER_HARTREE", 27.211386245988),
    ("COULOMB", 14.39964548),  # eV Å
    ("FS_PER_TIME_UNIT", 10.180505714),
    ("EV_PER_A3_PER_BAR", 6.241509074e-7),
    ("WAVENUMBER_PER_EV", 8065.543937),
    ("ANGSTROM_PER_NM", 10.0),
]


@pytest.mark.parametrize(("name", "published"), CODATA_2018)
def test_constant(name: str, published: float) -> None:
    assert getattr(units, name) == pytest.approx(published, rel=3e-9)


def test_exact_constants_are_exact() -> None:
    assert pytest.approx(96.48533212331, rel=1e-13) == units.KJ_PER_MOL_PER_EV
    assert units.ELEMENTARY_CHARGE == 1.602176634e-19
    assert units.AVOGADRO == 6.02214076e23


def test_the_constants_agree_with_one_another() -> None:
    """An independent route: e²/(4πε0) from the vacuum's permittivity; the gas constant from k and N_A."""
    permittivity = 8.8541878128e-12
    coulomb = units.ELEMENTARY_CHARGE / (4 * 3.141592653589793 * permittivity) * 1e10
    assert pytest.approx(coulomb, rel=1e-9) == units.COULOMB
    assert pytest.approx(8.31446261815324e-3, rel=1e-12) == units.BOLTZMANN * units.KJ_PER_MOL_PER_EV
    amu_in_kj = units.ATOMIC_MASS * units.AVOGADRO * (1e-10 * 1e15 / units.FS_PER_TIME_UNIT) ** 2 * 1e-3
    assert pytest.approx(amu_in_kj, rel=1e-12) == units.KJ_PER_MOL_PER_EV


def test_ase_units_would_not_do() -> None:
    """The reason for this module: ase's constants are older, and differ in the ninth digit."""
    import ase.units

    assert abs(ase.units.kJ / ase.units.mol * units.KJ_PER_MOL_PER_EV - 1) > 5e-9
