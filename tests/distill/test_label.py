"""Labels are the teacher's, and what is no label is set aside with its reason."""

from __future__ import annotations

import csv
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from egnn_md.cli import main
from egnn_md.distill.label import label
from egnn_md.distill.teacher import Teacher, TeacherError


@pytest.fixture(autouse=True)
def _teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "jobs"))


def test_options_of_a_teacher() -> None:
    options = ["model=small", "k=2", "x=1e-3", "fast=true", "other=None"]
    teacher = Teacher.parse("cheap_teachers:springs", options)
    assert dict(teacher.options) == {"model": "small", "k": 2, "x": 1e-3, "fast": True, "other": None}
    for bad in ("nothing", "=2", "a b=2"):
        with pytest.raises(TeacherError, match="key=value"):
            Teacher.parse("cheap_teachers:springs", [bad])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gfn3", []),
        ("no_such_module:calculator", []),
        ("cheap_teachers:no_such_function", []),
        ("cheap_teachers:nothing", []),
        ("cheap_teachers:springs", ["stiffness=2"]),
    ],
)
def test_teachers_that_cannot_be_had(name: str, options: list[str]) -> None:
    with pytest.raises(TeacherError):
        Teacher.parse(name, options).open()


def test_the_labelled_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ase.io.write("in.extxyz", [Atoms("He", [[float(k), 0, 0]], info={"number": k}) for k in range(10)])
    main(["label", "cheap_teachers:springs", "--with", "k=2", "in.extxyz", "-o", "out.extxyz", "--chunk", "4"])
    frames = ase.io.read("out.extxyz", ":")
    assert [atoms.info["number"] for atoms in frames] == [0, 1, 2, 3, 4, 6, 9]
    for atoms in frames:
        assert atoms.get_potential_energy() == pytest.approx(atoms.info["number"] ** 2)
        np.testing.assert_allclose(atoms.get_forces(), -2 * atoms.positions)
        assert atoms.get_dipole_moment().tolist() == [1, 1, 1]
    with open("out.extxyz.csv", newline="") as file:
        rows = {int(row["index"]): row for row in csv.DictReader(file)}
    assert rows[5]["reason"] == "RuntimeError: charges did not converge"
    assert "absurd" in rows[7]["reason"]
    assert "NaN" in rows[8]["reason"]
    with pytest.raises(SystemExit) as end:
        main(["label", "cheap_teachers:springs", "in.extxyz", "-o", "out.extxyz"])
    assert end.value.code == 2


def test_a_label_knows_nothing_of_the_structure_before() -> None:
    calculate, rng = Teacher("gfn2-xtb").open(), np.random.default_rng(0)
    frames = [molecule("CH3OH") for _ in range(4)]
    for atoms in frames:
        atoms.positions += 0.1 * rng.normal(size=atoms.positions.shape)
    forth = [label(atoms, calculate).frames[0] for atoms in frames]
    back = [label(atoms, calculate).frames[0] for atoms in frames[::-1]][::-1]
    for one, other in zip(forth, back, strict=True):
        assert one.get_potential_energy() == other.get_potential_energy()
        assert np.array_equal(one.get_forces(), other.get_forces())


def test_gfn2_labels_molecules_ions_and_crystals() -> None:
    calculate = Teacher("gfn2-xtb").open()
    water, ion, crystal = molecule("H2O"), Atoms("OH", [[0, 0, 0], [0, 0, 0.97]]), bulk("C", "diamond", a=3.6)
    ion.info["charge"] = -1
    for atoms in (water, ion, crystal, water):
        answer = label(atoms, calculate)
        assert len(answer.frames) == 1, answer.row
        found = answer.frames[0]
        energies = []
        for step in (1e-3, -1e-3):
            moved = atoms.copy()
            moved.positions[0, 2] += step
            energies.append(label(moved, calculate).row["energy"])
        assert found.get_forces()[0, 2] == pytest.approx((energies[1] - energies[0]) / 2e-3, abs=1e-3)
        assert ("stress" in found.calc.results) == bool(atoms.pbc.all())
        assert found.calc.results["charges"].sum() == pytest.approx(atoms.info.get("charge", 0), abs=1e-6)
    strained = crystal.copy()
    strained.set_cell(crystal.cell * 1.001, scale_atoms=True)
    pressure = -(label(strained, calculate).row["energy"] - label(crystal, calculate).row["energy"]) / (
        strained.get_volume() - crystal.get_volume()
    )
    stress = label(crystal, calculate).frames[0].get_stress()
    assert -stress[:3].mean() == pytest.approx(pressure, rel=0.1)
