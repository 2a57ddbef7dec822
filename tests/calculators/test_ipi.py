"""i-PI with an EGNN potential beside the ASE calculator, and what its driver refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.io import write

from egnn_md.calculators import EGNNCalculator

pytest.importorskip("ipi", reason="i-PI is not installed: pip install 'egnn-md[ipi]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of i-PI


@pytest.fixture
def driver(tmp_path: Path, familiar_file: Path) -> Any:
    """driver(atoms, periodic=…, **more): the driver, as i-PI makes it."""

    def make(atoms: Atoms, **more: Any) -> Any:
        from egnn_md.calculators.ipi_driver import EGNNDriver

        write(tmp_path / "template.xyz", atoms)
        return EGNNDriver(template=str(tmp_path / "template.xyz"), model=str(familiar_file), verbosity=1, **more)

    return make


def in_bohr(atoms: Atoms) -> tuple[Any, Any]:
    """Cell, columns are vectors, and positions, with i-PI's own constants."""
    from ipi.utils.units import unit_to_internal

    return unit_to_internal("length", "angstrom", atoms.cell.array.T), unit_to_internal(
        "length", "angstrom", atoms.positions
    )


def check(answer: Any, atoms: Atoms, model: Path) -> None:
    from ipi.utils.units import unit_to_user

    energy, forces, virial, remarks = answer
    atoms = atoms.copy()
    atoms.calc = EGNNCalculator(model)
    expected = atoms.get_forces()
    assert unit_to_user("energy", "electronvolt", energy) == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
    found = unit_to_user("force", "ev/ang", forces)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    stress = -unit_to_user("energy", "electronvolt", virial)
    if atoms.pbc.all():
        expected = atoms.get_stress(voigt=False) * atoms.get_volume()
        np.testing.assert_allclose(stress, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    else:
        assert not stress.any()
    assert remarks == ""


def periodic_water() -> Atoms:
    atoms = molecule("H2O")
    atoms.set_cell([[3.5, 0, 0], [0.4, 3.6, 0], [-0.3, 0.5, 3.4]])
    atoms.pbc = True
    return atoms


def rattled(atoms: Atoms, seed: int) -> Atoms:
    atoms = atoms.copy()
    atoms.rattle(0.05, seed=seed)
    return atoms


@pytest.mark.parametrize("atoms", [molecule("CH3CH2OH"), periodic_water()], ids=["molecule", "periodic"])
def test_one_structure_and_a_batch_are_those_of_the_ase_calculator(
    atoms: Atoms, driver: Any, familiar_file: Path
) -> None:
    force = driver(atoms, periodic=bool(atoms.pbc.all()))
    check(force(*in_bohr(atoms)), atoms, familiar_file)
    beads = [rattled(atoms, seed) for seed in range(4)]
    cells, positions = zip(*map(in_bohr, beads), strict=True)
    for answer, bead in zip(force(list(cells), list(positions)), beads, strict=True):
        check(answer, bead, familiar_file)


def test_path_integrals_of_four_beads(tmp_path: Path, familiar_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ipi.scripting import InteractiveSimulation, motion_nvt_xml, simulation_xml
    from ipi.utils.units import unit_to_user

    from egnn_md.calculators import ipi_driver

    monkeypatch.chdir(tmp_path)
    atoms = molecule("H2O")
    atoms.center(vacuum=5.0)
    write("init.xyz", atoms)
    force = (
        f"<ffdirect name='egnn'><pes>custom</pes><pes_path>{ipi_driver.__file__}</pes_path><batch_size>4</batch_size>"
        f"<parameters>{{template: init.xyz, model: {familiar_file}, periodic: False}}</parameters></ffdirect>"
    )
    motion = motion_nvt_xml(0.1 * units.fs, path_integrals=True)
    simulation = InteractiveSimulation(simulation_xml([atoms] * 4, force, motion, temperature=50))
    simulation.run(3)
    (system,) = simulation.syslist
    spread = 0.0
    for k in range(4):
        bead = atoms.copy()
        bead.positions = unit_to_user("length", "angstrom", np.array(system.beads.q[k])).reshape(-1, 3)
        spread = max(spread, np.abs(bead.positions - atoms.positions).max())
        bead.calc = EGNNCalculator(familiar_file)
        energy = unit_to_user("energy", "electronvolt", float(system.forces.pots[k]))
        assert energy == pytest.approx(bead.get_potential_energy(), rel=1e-10)
        forces = unit_to_user("force", "ev/ang", np.array(system.forces.f[k])).reshape(-1, 3)
        np.testing.assert_allclose(forces, bead.get_forces(), atol=1e-10 * np.abs(forces).max())
    assert spread > 1e-4


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({}, ValueError, "needs the parameter periodic: True, or False for isolated molecules"),
    ({"periodic": "perhaps"}, ValueError, "periodic of the EGNN driver is True or False"),
    ({"periodic": False, "modle": "x"}, TypeError, "did you mean 'model'"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG, ids=[message for *_, message in WRONG])
def test_wrong_parameters(options: dict[str, Any], error: type[Exception], message: str, driver: Any) -> None:
    with pytest.raises(error, match=message):
        driver(molecule("H2O"), **options)


def test_wrong_structures(driver: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the structure has Si"):
        driver(molecule("SiH4"), periodic=False)
    with pytest.raises(ValueError, match="i-PI has 9 atoms, but the template has 3"):
        driver(molecule("H2O"), periodic=False)(*in_bohr(molecule("CH3CH2OH")))
    with pytest.raises(ValueError, match="charge"):
        driver(molecule("H2O"), periodic=False, charge=1)
    (tmp_path / "template.xyz").unlink()
    from egnn_md.calculators.ipi_driver import EGNNDriver

    with pytest.raises(ValueError, match="there is no"):
        EGNNDriver(template=str(tmp_path / "template.xyz"), periodic=False)
