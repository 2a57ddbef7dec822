"""The paper's benchmarks run in their smallest form, and what they compare is the same function."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from ase import Atoms
from qm9_molecules import model_for, molecules

from egnn_md.calculators import EGNNCalculator
from egnn_md.checkpoint import read_header, save
from egnn_md.chemistry.targets import NAMES
from egnn_md.data import nbody
from egnn_md.data.qm9 import read_qm9, write_qm9
from egnn_md.models.propagator import VelocityEGNN, VelocityEGNNConfig
from egnn_md.paper import random_graphs
from egnn_md.paper.autoencoder import GraphAutoencoder, GraphAutoencoderConfig

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent / "recipes"))
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_literal_autoencoder_is_the_same_function(
    benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda traced, dynamic: traced)
    benchmark("autoencoder").main(["--batch", "2", "--rounds", "1", "--json", str(tmp_path / "speed.json")])
    found = json.loads((tmp_path / "speed.json").read_text())["speed"]
    assert found["largest_difference"] < 1e-4
    assert found["ours, batches of 2, compiled"] == 1.0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_both_property_networks_are_trained_for_the_same_time(
    benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda traced, dynamic: traced)
    script = benchmark("property_training")
    for sizes in (script.OURS, script.PAPER):
        monkeypatch.setitem(sizes, "hidden_dim", 8)
        monkeypatch.setitem(sizes, "n_layers", 1)
    write_qm9(molecules(), tmp_path / "qm9.npz")
    words = ["--data", tmp_path, "--minutes", "0.05", "--networks", "paper", "vectors"]
    script.main([str(word) for word in (*words, "--save", tmp_path / "m.safetensors", "--json", tmp_path / "r.json")])
    found = json.loads((tmp_path / "r.json").read_text())
    assert len(found["runs"]) == 2
    assert all(run["steps"] >= 1 and len(run["mae"]) == 12 for run in found["runs"].values())
    (ratio,) = found["ratio"].values()
    ours, paper = (next(v for k, v in found["runs"].items() if k.startswith(name)) for name in ("vectors", "paper"))
    assert ratio == pytest.approx(sum(ours["mae"][k] / paper["mae"][k] for k in paper["mae"]) / 12)
    header = read_header(tmp_path / "m.safetensors")
    assert header["held_out"]["valid"]["gap"]["mae"] == pytest.approx(ours["mae"]["gap"])


def test_the_papers_network_is_the_long_way(benchmark: Callable[[str], ModuleType], tmp_path: Path) -> None:
    write_qm9(molecules(), tmp_path / "qm9.npz")
    words = ["--data", tmp_path, "--batch", "4", "--repeats", "1", "--json", tmp_path / "r.json"]
    benchmark("paper_network").main([str(word) for word in words])
    assert json.loads((tmp_path / "r.json").read_text())["largest_relative_difference"] < 1e-5


def test_a_killed_prediction_is_resumed(benchmark: Callable[[str], ModuleType], tmp_path: Path) -> None:
    write_qm9(molecules(), tmp_path / "qm9.npz")
    save(model_for(molecules()), tmp_path / "m.safetensors")
    words = ["--data", tmp_path, "--model", tmp_path / "m.safetensors", "--count", "200", "--json", tmp_path / "r.json"]
    benchmark("prediction").main([str(word) for word in words])
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["resume_exact"]
    assert [run["count"] for run in found["runs"]] == [200, 800]


def test_equivariance_in_any_dimension(benchmark: Callable[[str], ModuleType]) -> None:
    found = benchmark("dimensions").equivariance(n_systems=3)
    assert len(found) == 8
    assert max(found.values()) < 1e-10


def test_soft_edges_of_graphs_and_particles(
    benchmark: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    random_graphs.write(tmp_path / "g.npz", random_graphs.generate("erdos-renyi", {"test": 5}, 0))
    nbody.write(tmp_path / "n.npz", {"test": nbody.generate("charged", 5, 4, 0, frames=(30, 40))})
    write_qm9(molecules(), tmp_path / "q.npz")
    models = {
        "q": model_for(molecules(), "paper"),
        "g": GraphAutoencoder(GraphAutoencoderConfig(hidden_dim=8, n_layers=2, soft_edges=True)),
        "n": VelocityEGNN(VelocityEGNNConfig(1.0, hidden_dim=8, n_layers=2, soft_edges=True)),
    }
    script = benchmark("soft_edges")
    for name, model in models.items():
        save(model, tmp_path / f"{name}.safetensors")
        picture = tmp_path / f"{name}.png"
        words = ["--model", tmp_path / f"{name}.safetensors", "--file", tmp_path / f"{name}.npz", "-o", picture]
        script.main([str(word) for word in words])
        assert picture.stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "no edge" in printed
    assert "like charges" in printed
    assert "C-H" in printed
    save(GraphAutoencoder(GraphAutoencoderConfig(hidden_dim=8)), tmp_path / "hard.safetensors")
    with pytest.raises(SystemExit):
        script.main(["--model", str(tmp_path / "hard.safetensors"), "--file", str(tmp_path / "g.npz")])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_moved_atoms_are_flagged(benchmark: Callable[[str], ModuleType], tmp_path: Path) -> None:
    write_qm9(molecules(), tmp_path / "qm9.npz")
    words = ["--data", tmp_path, "--moved", "0.2", "--relaxed", "1", "--json", tmp_path / "r.json"]
    benchmark("property_geometries").main([str(word) for word in words])
    found = json.loads((tmp_path / "r.json").read_text())
    assert list(found) == ["minima", "moved by 0.2 Å", "relaxed, organic-xtb"]
    assert found["moved by 0.2 Å"]["flagged"] == 1.0
    assert found["relaxed, organic-xtb"]["n"] == 1


@pytest.mark.filterwarnings("ignore::egnn_md.predict.ExtrapolationWarning")
def test_relaxed_molecules_are_those_of_the_training_side_at_minima(
    benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = molecules()
    data = replace(data, targets=np.nan_to_num(data.targets))
    write_qm9(data, tmp_path / "qm9.npz")
    words = ["--data", tmp_path, "--count", "6", "-o", tmp_path / "relaxed.npz"]
    benchmark("relax_qm9").main([str(word) for word in words])
    found = read_qm9(tmp_path / "relaxed.npz")
    assert 3 <= len(found) <= 6
    assert set(found.index.tolist()) <= set(data.side("train").index.tolist())
    assert [name for name, known in zip(NAMES, np.isfinite(found.targets).all(0), strict=True) if not known] == ["r2"]
    calculator = EGNNCalculator("organic-xtb")
    for numbers, positions in zip(
        *(np.split(part, found.starts[1:-1]) for part in (found.atomic_numbers, found.positions)), strict=True
    ):
        atoms = Atoms(numbers, positions.astype(np.float64), calculator=calculator)
        assert np.abs(atoms.get_forces()).max() < 0.015
