"""A potential exported to metatomic, run by metatomic's own ASE calculator in a process without us, beside ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from egnn_md.calculators import EGNNCalculator
from egnn_md.models.potential import Potential

pytest.importorskip("metatomic_ase", reason="not installed: pip install 'egnn-md[metatomic]' metatomic-ase")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",  # of TorchScript
    "ignore::RuntimeWarning:metatomic_ase",  # it divides by the volume of molecules
)


def periodic_water(repeat: int = 1) -> Atoms:
    atoms = molecule("H2O")
    atoms.set_cell([[3.2, 0, 0], [0.4, 3.3, 0], [-0.3, 0.5, 3.1]])
    atoms.pbc = True
    atoms = atoms.repeat(repeat)
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.fixture
def exported(familiar_file: Path, tmp_path: Path, call: Any) -> Path:
    code, out, _ = call("export", familiar_file, "--format", "metatomic", "-o", tmp_path / "model.pt")
    assert code == 0
    assert "for metatomic, float64" in out
    return tmp_path / "model.pt"


STRUCTURES = [molecule("CH3CH2OH"), molecule("H2O"), Atoms("O"), periodic_water(), periodic_water(3)]


def test_energy_forces_and_stress_are_those_of_the_ase_calculator(exported: Path, familiar_file: Path) -> None:
    from metatomic_ase import MetatomicCalculator

    theirs, ours = MetatomicCalculator(str(exported)), EGNNCalculator(familiar_file)
    for structure in STRUCTURES:  # any number of atoms and edges, after a trace with two of each
        found, expected = structure.copy(), structure.copy()
        found.calc, expected.calc = theirs, ours
        assert found.get_potential_energy() == pytest.approx(expected.get_potential_energy(), rel=1e-12)
        forces = expected.get_forces()
        scale = max(np.abs(forces).max(), 1e-6)
        np.testing.assert_allclose(found.get_forces(), forces, rtol=0, atol=1e-10 * scale)
        if structure.pbc.all():
            stress = expected.get_stress()
            np.testing.assert_allclose(found.get_stress(), stress, rtol=0, atol=1e-10 * np.abs(stress).max())


def test_elements_that_the_model_does_not_know_are_refused(exported: Path) -> None:
    from metatomic_ase import MetatomicCalculator

    atoms = molecule("SiH4")
    atoms.calc = MetatomicCalculator(str(exported))
    with pytest.raises((ValueError, RuntimeError), match=r"14|atomic type"):
        atoms.get_potential_energy()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "model.pt", "--format", "onnx"], "--format must be metatomic"),
        (["-o", "model.onnx"], "ends in .pt"),
        (["-o", "model.pt", "--dtype", "float16"], "--dtype: unknown dtype"),
    ],
)
def test_mistakes(words: list[str], message: str, call: Any, familiar_file: Path) -> None:
    code, _, errors = call("export", familiar_file, *words)
    assert code == 2
    assert len(errors) == 1
    assert message in errors[0]


def test_only_potentials_are_exported(call: Any) -> None:
    code, _, errors = call("export", "qm9", "-o", "model.pt")
    assert code == 2
    assert "only potentials can be exported" in errors[-1]


def test_nothing_is_overwritten_unasked(exported: Path, familiar_file: Path, call: Any) -> None:
    before = exported.read_bytes()
    code, _, errors = call("export", familiar_file, "-o", exported)
    assert code == 2
    assert "--overwrite" in errors[0]
    assert exported.read_bytes() == before
    assert call("export", familiar_file, "-o", exported, "--overwrite")[0] == 0


def test_float32(familiar_potential: Callable[..., Potential], familiar_file: Path, call: Any, tmp_path: Path) -> None:
    from metatomic_ase import MetatomicCalculator

    assert call("export", familiar_file, "-o", tmp_path / "single.pt", "--dtype", "float32")[0] == 0
    atoms = molecule("CH3CH2OH")
    atoms.calc = MetatomicCalculator(str(tmp_path / "single.pt"))
    ours = molecule("CH3CH2OH")
    ours.calc = EGNNCalculator(familiar_file)
    np.testing.assert_allclose(atoms.get_forces(), ours.get_forces(), atol=1e-3)


def test_charges_are_not_left_out(random_potential: Callable[..., Potential], tmp_path: Path) -> None:
    from egnn_md.calculators.metatomic_export import export

    with pytest.raises(ValueError, match="charges that act at any distance"):
        export(random_potential(long_range=True), tmp_path / "model.pt", name="charged")
