"""Files of many structures: relax and md take them all, one line each, in the file's order."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
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


def sizes_of_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fills with the number of structures of every batch that is made."""
    from egnn_md.dynamics import batched, batched_relax, many

    made: list[int] = []

    class Counted(batched.Batch):
        def __init__(self, model: Any, structures: Any, *rest: Any) -> None:
            made.append(len(structures))
            super().__init__(model, structures, *rest)

    monkeypatch.setattr(many, "Batch", Counted)
    monkeypatch.setattr(batched_relax, "Batch", Counted)
    return made


def test_a_number_of_structures_at_once_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sizes_of_batches(monkeypatch)
    main(["relax", "many.xyz", "-o", "auto.extxyz"])
    assert made[0] == 4  # all that the model knows
    made.clear()
    main(["relax", "many.xyz", "-o", "two.extxyz", "--batch", "2", "--chunk", "1"])
    assert max(made) == 2  # a chunk holds a batch
    for one, two in zip(ase.io.read("auto.extxyz", ":"), ase.io.read("two.extxyz", ":"), strict=True):
        assert one.get_all_distances() == pytest.approx(two.get_all_distances(), abs=0.01)
    made.clear()
    main(["md", "many.xyz", "-o", "run", "--steps", "2", "--batch", "3"])
    assert made == [3, 1]


def test_auto_bounds_atoms_and_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of small cells a few structures have as many edges as many molecules, however few their atoms are."""
    from egnn_md.dynamics import many

    monkeypatch.setattr(many, "ATOMS_AT_ONCE", 9)
    made = sizes_of_batches(monkeypatch)
    main(["md", "many.xyz", "-o", "run", "--steps", "1"])
    assert made == [2, 1, 1]  # of 3 + 5, 6 and 4 atoms
    water = molecule("H2O")
    water.cell, water.pbc = [3.2, 3.2, 3.2], True
    ase.io.write("crystals.extxyz", [water] * 6)
    made.clear()
    monkeypatch.setattr("egnn_md.dynamics.batched_relax.PAIRS_AT_ONCE", 600)
    main(["relax", "crystals.extxyz", "-o", "relaxed.extxyz", "--steps", "1"])
    assert max(made) == 2  # some 250 edges each, where 3 atoms have 9 pairs


def test_workers_shards_and_a_kill_give_the_output_of_one_process() -> None:
    """SIGKILL to a run with two workers; the same command goes on."""
    rng = np.random.default_rng(1)
    frames = []
    for _ in range(24):
        frames.append(molecule("CH3CH2OH"))
        frames[-1].positions += 0.1 * rng.normal(size=(9, 3))
    ase.io.write("more.xyz", frames)
    words = ["more.xyz", "--dtype", "float64", "--chunk", "2"]
    main(["relax", *words, "-o", "one.extxyz"])
    command = [sys.executable, "-m", "egnn_md.cli", "relax", *words, "-o", "killed.extxyz"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--workers", "2"], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(Path("killed.extxyz.parts").glob("*.jsonl")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not Path("killed.extxyz").exists()
    assert subprocess.run(command, env=environment, stderr=subprocess.DEVNULL).returncode == 0
    for k in (2, 3, 1):
        main(["relax", *words, "-o", "shards.extxyz", "--shard", f"{k}/3"])
    assert Path("one.extxyz").read_text() == Path("shards.extxyz").read_text()
    assert Path("one.extxyz.csv").read_text() == Path("shards.extxyz.csv").read_text()
    # A chunk that was cut off goes on with those that are left, in a batch of other shapes: the same but for round-off.
    pairs = list(zip(table("one.extxyz.csv"), table("killed.extxyz.csv"), strict=True))
    assert len(pairs) == 24
    for one, killed in pairs:
        assert (one["index"], one["steps"], one["status"]) == (killed["index"], killed["steps"], killed["status"])
        assert float(one["energy"]) == pytest.approx(float(killed["energy"]), abs=1e-9)
    for one, killed in zip(ase.io.read("one.extxyz", ":"), ase.io.read("killed.extxyz", ":"), strict=True):
        assert one.positions == pytest.approx(killed.positions, abs=1e-6)


@pytest.mark.parametrize(
    "words",
    [
        ["relax", "many.xyz", "--cell"],
        ["relax", "many.xyz", "-o", "a.cif"],
        ["relax", "many.xyz", "--shard", "3/2"],
        ["relax", "many.xyz", "--workers", "0"],
        ["relax", "many.xyz", "--executor", "slurm"],
        ["relax", "many.xyz", "--executor", "parsl"],
        ["relax", "many.xyz", "--batch", "many"],
        ["relax", "many.xyz", "--chunk", "0"],
        ["relax", "many.xyz", "--fmax", "0"],
        ["md", "many.xyz", "--batch", "0"],
        ["md", "many.xyz", "--shard", "0/2"],
        ["md", "many.xyz", "--ensemble", "npt"],
        ["md", "many.xyz", "--format", "dcd"],
        ["label", "gfn2-xtb", "many.xyz", "-o", "labels.csv"],
        ["label", "gfn3", "many.xyz", "-o", "labels.extxyz"],
        ["label", "gfn2-xtb", "nowhere.xyz", "-o", "labels.extxyz"],
    ],
)
def test_mistakes_give_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "parsl.executors", None)  # as if it were not installed
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["many.xyz"]
