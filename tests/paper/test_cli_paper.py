"""The rest of the paper by command: random graphs, their evaluation, tables, particles in any dimension."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from egnn_md.checkpoint import save
from egnn_md.models.propagator import IntegratorConfig, IntegratorPropagator
from egnn_md.paper import random_graphs, reproduce
from egnn_md.paper.autoencoder import GraphAutoencoder, GraphAutoencoderConfig
from egnn_md.training.tasks import load_config

Call = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def data(call: Call) -> str:
    words = ("--train", 10, "--valid", 4, "--test", 5, "--seed", 1)
    code, out, _ = call("data", "community", *words, "-o", "g.npz", "--json")
    assert code == 0
    assert json.loads(out) == {
        "output": "g.npz", "family": "community", "train": 10, "valid": 4, "test": 5, "valid_repeats": 0,
        "test_repeats": 0,
    }  # fmt: skip
    return "g.npz"


def test_evaluate_is_the_error_of_the_decoder(call: Call, data: str) -> None:
    """A decoder that joins every pair is wrong at those without an edge, and finds all edges."""
    model = GraphAutoencoder(GraphAutoencoderConfig(hidden_dim=8, n_layers=1))
    torch.nn.init.zeros_(model.weight)
    save(model, "all.safetensors")
    code, out, _ = call("evaluate", "all.safetensors", data, "--json", "--plot", "d.png")
    assert code == 0
    found = json.loads(out)
    assert list(found) == ["bce", "error_percent", "f1", "n", "repeats"]
    test = random_graphs.read(Path(data), "test")
    edges, pairs = 2 * test.n_edges.sum(), (test.n_nodes * (test.n_nodes - 1)).sum()
    assert found["n"] == 5
    assert found["error_percent"] == pytest.approx(100 * (1 - edges / pairs))
    assert found["f1"] == pytest.approx(2 * edges / (edges + pairs))
    assert Path("d.png").read_bytes().startswith(b"\x89PNG")
    assert "isomorphic" in call("evaluate", "all.safetensors", data, "--split", "valid")[1]


def test_a_table_is_reproduced_and_goes_on(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = reproduce.TABLES["autoencoder"]

    def few(folder: Path, quick: bool) -> None:
        for family in ("community", "erdos-renyi"):
            counts = {"train": 12, "valid": 4, "test": 4}
            random_graphs.write(folder / f"{family}.npz", random_graphs.generate(family, counts, 0))  # type: ignore[arg-type]

    monkeypatch.setitem(reproduce.TABLES, "autoencoder", replace(whole, make_data=few, quick=10_000))
    words = ("reproduce", "autoencoder", "--quick", "--only", "small, radial", "-o", "r", "--json")
    code, out, _ = call(*words)
    assert code == 0
    (row,) = json.loads(out)["rows"].items()
    assert row[0] == "Community Small, radial-field"
    assert row[1]["paper"] == {"bce": 9.22, "error_percent": 1.19, "f1": 0.981}
    assert row[1]["ours"].keys() == row[1]["paper"].keys()
    run = Path("r/community-small-radial-field")
    assert (run / "model.safetensors").is_file()
    assert load_config(run / "config.toml").model.encoder == "radial-field"  # type: ignore[attr-defined]
    assert load_config(run / "config.toml").training.optimizer == "adam"
    assert call(*words)[1] == out  # nothing is trained again
    code, _, lines = call(*(word for word in words if word != "--quick"))
    assert code == 2
    assert "holds a quick run" in lines[-1]


def test_every_row_changes_its_configuration_and_names_its_errors() -> None:
    for table in reproduce.TABLES.values():
        for row in table.rows:
            text = reproduce._changed((reproduce.CONFIGS / row.config).read_text(), row.changes, 1)
            for key, value in row.changes.items():
                assert f"\n{key} = {value}\n" in text
            assert row.paper.keys() == table.rows[0].paper.keys()


@pytest.mark.parametrize("n_dim", [2, 10])
def test_particles_in_any_dimension(call: Call, n_dim: int) -> None:
    """Generator, model, evaluation and rollout."""
    save(IntegratorPropagator(IntegratorConfig(1.0, hidden_dim=4, substep=0.05)), "m.safetensors")
    counts = ("--particles", 3, "--train", 0, "--valid", 0, "--test", 3, "--rollout", 2)
    assert call("data", "nbody", "--dimensions", n_dim, *counts, "-o", "n.npz")[0] == 0
    assert json.loads(call("evaluate", "m.safetensors", "n.npz", "--json")[1])["n"] == 3
    code, out, _ = call("rollout", "m.safetensors", "n.npz", "--frames", 3, "-o", "run", "--json")
    assert code == 0
    assert max(json.loads(out)["median_momentum_change"]) < 1e-5
    with np.load("run/trajectory.npz") as archive:
        assert archive["positions"].shape == (2, 4, 3, n_dim)


MISTAKES = [
    ("data community --train 0 -o new.npz", "at least 1"),
    ("data erdos-renyi --seed -1 -o new.npz", "greater than or equal to 0"),
    ("data community -o DATA", "--overwrite"),
    ("data erdos-renyi -o nowhere/new.npz", "nowhere"),
    ("evaluate m.safetensors DATA --split all", "train, valid or test"),
    ("evaluate m.safetensors nowhere.npz", "no such file"),
    ("reproduce tabel", "nbody, qm9, autoencoder"),
    ("reproduce nbody --only tree", "no row"),
    ("reproduce nbody --configs nowhere", "leave --configs out"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_mistakes_give_one_line_and_exit_code_2(
    words: str, message: str, call: Call, data: str, tmp_path: Path
) -> None:
    save(GraphAutoencoder(GraphAutoencoderConfig(hidden_dim=4, n_layers=1)), "m.safetensors")
    before = {path.name for path in tmp_path.iterdir()}
    code, out, lines = call(*({"DATA": data}.get(word, word) for word in words.split()))
    assert (code, out) == (2, "")
    assert len(lines) == 1, lines
    assert message in lines[0]
    assert {path.name for path in tmp_path.iterdir()} == before


def test_help_teaches(call: Call) -> None:
    for words in (("data", "community"), ("data", "erdos-renyi"), ("reproduce",)):
        code, out, lines = call(*words, "--help")
        assert (code, lines) == (0, [])
        assert "Example" in out
