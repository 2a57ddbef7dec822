"""Files of many structures: relax and md take them all, one line each, in the file's order."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from egnn_md.cli import main

NAMES = ("H2O", "CH4", "Ar", "CH3OH", "NH3")


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five structures in many.xyz, one of an element that no shipped model knows."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    frames = [Atoms("Ar") if name == "Ar" else molecule(name) for name in NAMES]
    for atoms in frames:
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
    ase.io.write("many.xyz", frames)


def table(name: str) -> list[dict[str, str]]:
    with open(name, newline="") as file:
        return list(csv.DictReader(file))


def test_relax_takes_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    main(["relax", "many.xyz", "-o", "relaxed.extxyz", "--chunk", "2", "--json"])
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert values.pop("report") == "relaxed-report.html"
    assert values == {"output": "relaxed.extxyz", "n": 4, "n_failed": 1, "finished": True}
    rows, relaxed = table("relaxed.extxyz.csv"), ase.io.read("relaxed.extxyz", ":")
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "ok", "ok"]
    assert "Ar" in rows[2]["reason"]
    assert [str(atoms.symbols) for atoms in relaxed] == [str(molecule(n).symbols) for n in NAMES if n != "Ar"]
    assert all(float(row["fmax"]) <= 0.01 for row in rows if row["status"] == "ok")
    assert all(float(row["energy"]) < float(row["energy_start"]) for row in rows if row["status"] == "ok")
    main(["relax", "many.xyz@0", "-o", "first.xyz"])
    assert relaxed[0].get_all_distances() == pytest.approx(ase.io.read("first.xyz").get_all_distances(), abs=0.01)
    main(["relax", "many.xyz", "-o", "few.extxyz", "--steps", "1"])
    assert {row["status"] for row in table("few.extxyz.csv")} == {"not converged", "failed"}


def test_md_takes_them_all_by_shards(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["md", "many.xyz", "-o", "run", "--ensemble", "nve", "--timestep", "0.1", "--steps", "40"]
    command += ["--interval", "20", "--chunk", "3"]
    main([*command, "--shard", "1/2"])
    assert not Path("run/trajectory.extxyz").exists()
    main([*command, "--shard", "2/2"])
    frames, rows = ase.io.read("run/trajectory.extxyz", ":"), table("run/trajectory.extxyz.csv")
    assert [atoms.info["step"] for atoms in frames] == [0, 20, 40] * 4
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "ok", "ok"]
    for row in rows:
        if row["status"] == "ok":
            assert abs(float(row["drift_meV_per_atom_per_ps"])) < 20
            assert 0 < float(row["mean_temperature_K"]) < 1000
    assert frames[1].get_kinetic_energy() > 0
    energies = [atoms.get_total_energy() for atoms in frames[:3]]
    assert np.ptp(energies) < 0.02


@pytest.mark.parametrize(
    "words",
    [
        ["relax", "many.xyz", "--cell"],
        ["relax", "many.xyz", "-o", "a.cif"],
        ["relax", "many.xyz", "--shard", "3/2"],
        ["relax", "many.xyz", "--workers", "0"],
        ["relax", "many.xyz", "--executor", "slurm"],
        ["relax", "many.xyz", "--fmax", "0"],
        ["md", "many.xyz", "--ensemble", "npt"],
        ["md", "many.xyz", "--format", "dcd"],
        ["label", "gfn2-xtb", "many.xyz", "-o", "labels.csv"],
        ["label", "gfn3", "many.xyz", "-o", "labels.extxyz"],
        ["label", "gfn2-xtb", "nowhere.xyz", "-o", "labels.extxyz"],
    ],
)
def test_mistakes_give_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
