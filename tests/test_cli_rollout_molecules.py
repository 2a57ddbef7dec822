"""`egnn-md data flow` and `rollout` of molecules: what they leave, print and refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from flow_maps import random_flow

from egnn_md.checkpoint import save
from egnn_md.cli import main
from egnn_md.data.flow import read_segments

Call = Callable[..., tuple[int, str, list[str]]]
FILES = {"trajectory.traj", "log.csv", "summary.json", "plot.png", "report.html", "state.npz", "last.extxyz"}


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run `egnn-md …` in an empty folder with flow.safetensors in it: exit code, stdout, lines on stderr."""
    monkeypatch.chdir(tmp_path)
    save(random_flow(strength=0.003), tmp_path / "flow.safetensors", {"name": "nonsense"})

    def run(*words: object) -> tuple[int, str, list[str]]:
        capfd.readouterr()
        try:
            main([str(word) for word in words])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, out, [line for line in err.splitlines() if "warning:" not in line]

    return run


def test_a_rollout_leaves_a_run_folder_and_goes_on(call: Call) -> None:
    words = ("rollout", "flow.safetensors", "CH3CH2OH", "--stride", 4, "--temperature", 250, "--seed", 1, "--json")
    code, out, _ = call(*words, "--steps", 6, "--interval", 2, "-o", "run")
    summary = json.loads(out)
    assert (code, summary["status"], summary["time_ps"]) == (0, "finished", pytest.approx(0.024))
    assert 0.0 < summary["accepted_fraction"] <= 1.0
    assert {path.name for path in Path("run").iterdir()} == FILES
    assert len(ase.io.read("run/trajectory.traj", ":")) == 4
    code, out, _ = call("rollout", "flow.safetensors", "--resume", "-o", "run", "--steps", 10, "--json")
    assert (code, json.loads(out)["steps"]) == (0, 10)
    call(*words, "--steps", 10, "--interval", 2, "-o", "whole")
    ends = [ase.io.read(f"{folder}/last.extxyz").positions for folder in ("run", "whole")]
    np.testing.assert_array_equal(*ends)


def test_energies_and_the_filter_can_come_from_a_potential(call: Call, checkpoint_file: Path) -> None:
    words = ("--potential", checkpoint_file, "--steps", 2, "--interval", 1, "--seed", 1, "--json")
    summary = json.loads(call("rollout", "flow.safetensors", "CH3CH2OH", *words)[1])
    assert summary["information"]["potential"] == str(checkpoint_file)
    frames = ase.io.read("run/trajectory.traj", ":")
    assert np.isfinite(frames[0].get_forces()).all()


def test_data_flow_writes_segments(call: Call) -> None:
    words = ("--copies", 2, "--segments", 1, "--length", 1, "--coldest", 50, "--hottest", 60)
    code, out, _ = call("data", "flow", "H2O", *words, "-o", "water.npz", "--json")
    assert (code, json.loads(out)["n_segments"]) == (0, 2)
    assert read_segments(Path("water.npz")).origin["molecules"] == ["H2O"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rollout flow.safetensors NH3", "the structure has N"),
        ("rollout flow.safetensors nowhere.xyz", "no such file"),
        ("rollout flow.safetensors", "say where to start"),
        ("rollout flow.safetensors H2O --frames 3", "--frames is for rollouts of particles"),
        ("rollout flow.safetensors H2O --stride 0", "--stride must be at least 0.1 fs"),
        ("rollout flow.safetensors H2O --ensemble npt", "ensemble nvt or nve"),
        ("rollout flow.safetensors H2O --ensemble nve --filter", "--filter tests strides"),
        ("rollout flow.safetensors H2O --potential flow.safetensors", "this needs a potential"),
        ("rollout flow.safetensors --resume -o nothing", "holds no run to resume"),
        ("data flow nonsense", "neither a file nor a molecule"),
        ("data flow H2O --length 0.7", "multiple of spacing"),
        ("data flow H2O --model flow.safetensors", "this needs a potential"),
        ("data flow H2O -o nowhere/flow.npz", "does not exist"),
    ],
)
def test_mistakes_get_one_line(call: Call, line: str, message: str) -> None:
    code, out, lines = call(*line.split())
    assert (code, out, len(lines)) == (2, "", 1)
    assert message in lines[0]


def test_a_file_of_many_molecules_runs_in_batches(call: Call) -> None:
    ase.io.write("three.xyz", [molecule("CH3CH2OH"), molecule("CH3Cl"), molecule("CH4")])
    words = ("rollout", "flow.safetensors", "three.xyz", "--steps", 4, "--interval", 2, "--json", "-o", "many")
    code, out, _ = call(*words)
    assert (code, json.loads(out)["n"], json.loads(out)["n_failed"]) == (0, 2, 1)
    assert len(ase.io.read("many/trajectory.extxyz", ":")) == 6
    table = Path("many/trajectory.extxyz.csv").read_text().splitlines()
    assert len(table) == 4
    assert "Cl" in table[2]
    assert Path("many/report.html").is_file()
    code, _, lines = call("rollout", "flow.safetensors", "three.xyz", "--ensemble", "npt", "-o", "npt")
    assert (code, lines) == (2, ["egnn-md: rollouts are of isolated molecules: --ensemble nvt or nve"])
