"""`egnn-md data nbody`, `rollout` and `evaluate` of particles: what they leave, print and refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from egnn_md.checkpoint import save
from egnn_md.data import nbody
from egnn_md.models.propagator import IntegratorConfig, IntegratorPropagator, VelocityEGNN, VelocityEGNNConfig

Call = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def model(tmp_path: Path) -> str:
    """An integrator whose acceleration is zero: it flies straight on."""
    torch.manual_seed(0)
    made = IntegratorPropagator(IntegratorConfig(1.0, hidden_dim=4, substep=0.02))
    torch.nn.init.zeros_(made.acceleration.coordinate_model.weight)
    save(made, tmp_path / "straight.safetensors", {"name": "straight"})
    save(made, tmp_path / "springs.safetensors", {"training_data": {"law": "springs"}})
    save(VelocityEGNN(VelocityEGNNConfig(1.0, 8, 2)), tmp_path / "paper.safetensors")
    save(VelocityEGNN(VelocityEGNNConfig(2.0, 8, 2)), tmp_path / "far.safetensors")
    return "straight.safetensors"


@pytest.fixture
def data(call: Call) -> str:
    words = ("--particles", 3, "--train", 0, "--valid", 0, "--test", 6, "--rollout", 4, "--seed", 1)
    assert call("data", "nbody", *words, "-o", "n.npz")[0] == 0
    return "n.npz"


def object_of(out: str) -> dict[str, Any]:
    values = json.loads(out)
    assert isinstance(values, dict)
    return values


def test_data_is_the_same_for_the_same_seed(call: Call, data: str) -> None:
    words = ("data", "nbody", "--particles", 3, "--train", 0, "--valid", 0, "--test", 6, "--rollout", 4)
    code, out, _ = call(*words, "--seed", 1, "-o", "again.npz", "--json")
    assert code == 0
    assert object_of(out)["test"] == 6
    call(*words, "--seed", 2, "-o", "other.npz")
    first, again, other = (np.load(name) for name in ("n.npz", "again.npz", "other.npz"))
    assert set(first.files) == {"frames"} | {
        f"{side}_{name}" for side in ("test", "rollout") for name in ("positions", "velocities", "charges")
    }
    assert first["frames"].tolist() == [20, 30, 40]
    assert first["test_positions"].shape == (6, 3, 3, 3)
    assert first["rollout_velocities"].shape == (4, 49, 3, 3)
    assert all(np.array_equal(first[name], again[name]) for name in first.files)
    assert not np.array_equal(first["test_positions"], other["test_positions"])


def test_evaluate_is_the_error_of_straight_flight(call: Call, data: str, model: str) -> None:
    code, out, _ = call("evaluate", model, data, "--json", "--dtype", "float64", "--plot", "errors.png")
    assert code == 0
    found = object_of(out)
    assert list(found) == ["mse", "median_se", "mse_p80", "n"]
    test = nbody.read(Path(data), "test")
    flown = test.positions[:, 1].astype(float) + test.velocities[:, 1] - test.positions[:, 2]
    errors = np.sort((flown**2).mean((1, 2)))
    assert found["n"] == 6
    assert found["mse"] == pytest.approx(errors.mean(), rel=1e-6)
    assert found["median_se"] == pytest.approx(np.median(errors), rel=1e-6)
    assert found["mse_p80"] == pytest.approx(errors[:4].mean(), rel=1e-6)
    assert Path("errors.png").read_bytes().startswith(b"\x89PNG")
    assert call("evaluate", model, data, "--json", "--dtype", "float64", "--split", "test")[1] == out
    assert call("evaluate", "paper.safetensors", data)[0] == 0


def test_rollout_leaves_a_run_folder(call: Call, data: str, model: str) -> None:
    code, out, _ = call("rollout", model, data, "--frames", 5, "-o", "run", "--json")
    assert code == 0
    summary = object_of(out)
    assert summary["frames"] == list(range(6))
    assert summary["median_se"] == pytest.approx(summary["median_se_constant_velocity"], rel=1e-3, abs=1e-12)
    assert max(summary["median_momentum_change"]) < 1e-5
    assert {path.name for path in Path("run").iterdir()} == {
        "trajectory.npz", "summary.json", "errors.png", "conserved.png", "animation.gif", "report.html",
    }  # fmt: skip
    assert Path("run/animation.gif").read_bytes().startswith(b"GIF8")
    with np.load("run/trajectory.npz") as archive:
        assert archive["positions"].shape == (4, 6, 3, 3)
        assert archive["energy"].shape == (6, 4)
        assert archive["squared_errors"].shape == (6, 4)
    code, _, lines = call("rollout", model, data, "--frames", 5, "-o", "run")
    assert (code, len(lines)) == (2, 1)
    assert "--overwrite" in lines[0]
    assert "energy change" in call("rollout", model, data, "--frames", 2, "-o", "run", "--overwrite")[1]


def test_rollout_beyond_the_known_frames(call: Call, data: str, model: str) -> None:
    """From frame 30 of the test side the file knows no frame 31: no error there, but a trajectory."""
    words = ("--split", "test", "--start-frame", 30, "--systems", 2)
    summary = object_of(call("rollout", model, data, *words, "--frames", 3, "-o", "run", "--json")[1])
    assert summary["frames"] == [30, 31, 32, 33]
    assert (summary["compared_frames"], summary["median_se"]) == ([30], [0.0])
    assert summary["n_systems"] == 2
    assert len(summary["median_energy_change"]) == 4


def test_rollout_is_compared_with_every_frame_that_the_file_has(call: Call, data: str, model: str) -> None:
    """Frames 30 and 40 of the test side, and nothing between."""
    words = ("--split", "test", "--start-frame", 30, "--frames", 12, "-o", "run")
    _, out, _ = call("rollout", model, data, *words)
    assert re.search(r"^\W*40 ", out, re.MULTILINE), out
    summary = object_of(call("rollout", model, data, *words, "--overwrite", "--json")[1])
    assert summary["compared_frames"] == [30, 40]
    true, made = nbody.read(Path(data), "test"), np.load("run/trajectory.npz")["positions"]
    expected = np.median(((made[:, 10].astype(float) - true.positions[:, true.column(40)]) ** 2).mean((1, 2)))
    assert summary["median_se"] == pytest.approx([0.0, expected])


MISTAKES = [
    ("rollout MODEL nowhere.npz", "no such file"),
    ("rollout MODEL DATA --split half", "train, valid, test, rollout"),
    ("rollout MODEL DATA --split train", "no train trajectories"),
    ("rollout MODEL DATA --start-frame 60", "no frame 60, only 0 to 48"),
    ("rollout springs.safetensors DATA", "law 'springs', these particles follow 'charged'"),
    ("evaluate springs.safetensors DATA", "law 'springs', these particles follow 'charged'"),
    ("rollout MODEL DATA --no-filter", "--no-filter is for rollouts of molecules"),
    ("data nbody --seed -1 -o new.npz", "--seed"),
    ("data flow Be -o new.npz", "Be: it has Be"),
    ("data flow OH -o new.npz", "closed shells"),
    ("rollout MODEL DATA --frames 0", "--frames must be at least 1"),
    ("rollout MODEL DATA --substeps 0", "--substeps"),
    ("rollout paper.safetensors DATA", "predicts no velocities"),
    ("rollout CHECKPOINT DATA", "kind 'potential'"),
    ("rollout MODEL DATA -o DATA", "is a file"),
    ("evaluate MODEL DATA --split all", "train, valid or test"),
    ("evaluate MODEL DATA --split train", "no train trajectories"),
    ("evaluate far.safetensors DATA", "jumps over 2.0"),
    ("evaluate CHECKPOINT DATA", "DATA"),
    ("data nbody --particles 1 -o new.npz", "too few"),
    ("data nbody --law gravity -o new.npz", "charged, springs"),
    ("data nbody --frames ten -o new.npz", "commas"),
    ("data nbody --frames -3 -o new.npz", "from 0 on"),
    ("data nbody --seed -3 -o new.npz", "--seed"),
    ("data nbody --train 0 --valid 0 --test 0 --rollout 0 -o new.npz", "not all sides empty"),
    ("data nbody -o DATA", "--overwrite"),
    ("data nbody -o nowhere/new.npz", "nowhere"),
    ("data nbodi", "nbodi"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_mistakes_give_one_line_and_exit_code_2(
    words: str, message: str, call: Call, data: str, model: str, checkpoint_file: Path, tmp_path: Path
) -> None:
    names = {"MODEL": model, "DATA": data, "CHECKPOINT": str(checkpoint_file)}
    before = {path.name for path in tmp_path.iterdir()}
    code, out, lines = call(*(names.get(word, word) for word in words.split()))
    assert (code, out) == (2, "")
    assert len(lines) == 1, lines
    assert lines[0].startswith("egnn-md: ")
    assert names.get(message, message) in lines[0]
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("words", [("data", "--help"), ("data", "nbody", "--help"), ("rollout", "--help")])
def test_help_teaches(call: Call, words: tuple[str, ...]) -> None:
    code, out, lines = call(*words)
    assert (code, lines) == (0, [])
    assert "nbody" in out


def test_info_of_particles_has_no_chemistry(call: Call, model: str) -> None:
    text = call("info", model)[1]
    assert "integrator" in text
    for word in ("elements", "cutoff", "reference energies", "eV"):
        assert word not in text
