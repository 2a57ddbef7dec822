"""The task "autoencoder": it learns, its loss and errors follow their definitions, mistakes are named."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from egnn_md.checkpoint import load, read_header, save
from egnn_md.paper.autoencoder import GraphAutoencoder, GraphAutoencoderConfig
from egnn_md.paper.autoencoder_metrics import EdgeMetrics, GraphBatches, edge_sums, evaluate_side
from egnn_md.paper.autoencoder_training import AutoencoderTask
from egnn_md.paper.random_graphs import generate, read, write
from egnn_md.training.config import ConfigError
from egnn_md.training.loop import Resources, train
from egnn_md.training.run_folder import TrainingDiverged
from egnn_md.training.tasks import load_config

CONFIG = """
task = "autoencoder"
seed = 2
[data]
files = ["g.npz"]
{data}
[model]
{model}
hidden_dim = 16
n_layers = 2
[training]
max_steps = {steps}
batch_size = 10
learning_rate = 1e-2
warmup_steps = 5
ema_decay = 0.9
validate_every = 20
checkpoint_every = 10
"""
QUIET = Resources(progress=False, accelerator="cpu")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """A folder with small random graphs, and a configuration."""
    write(tmp_path / "g.npz", generate("erdos-renyi", {"train": 40, "valid": 20, "test": 20}, 0))

    def run(model: str = "", data: str = "", steps: int = 40) -> Path:
        (tmp_path / "config.toml").write_text(CONFIG.format(model=model, data=data, steps=steps))
        return tmp_path / "config.toml"

    return run


def test_it_learns_and_the_run_is_complete(make: Callable[..., Path], tmp_path: Path) -> None:
    file = train(make(steps=160), output=tmp_path / "run", resources=QUIET)
    with (tmp_path / "run" / "log.csv").open() as log:
        scores = [float(row["valid_score"]) for row in csv.DictReader(log) if row["valid_score"]]
    assert min(scores) < 0.8 * scores[0]
    header = read_header(file)
    valid = header["held_out"]["valid"]
    assert valid["bce"] == pytest.approx(min(scores), rel=1e-4)
    assert valid["n"] == 20
    assert header["training_data"]["family"] == "erdos-renyi"
    assert header["training_data"]["n_graphs"] == 40
    model = load(file)
    assert isinstance(model, GraphAutoencoder)
    found = EdgeMetrics.of(evaluate_side(model, read(tmp_path / "g.npz", "valid"), batch_size=7))
    assert found.bce == pytest.approx(valid["bce"], rel=1e-5)  # whatever the size of batches
    for name in ("logits.png", "learning_curve.png"):
        assert (tmp_path / "run" / name).stat().st_size > 1000


def test_n_train_asks_how_much_can_be_stored(make: Callable[..., Path], tmp_path: Path) -> None:
    task = AutoencoderTask(load_config(make(data="n_train = 10")), [tmp_path / "g.npz"])  # type: ignore[arg-type]
    assert [len(side) for side in task.sides.values()] == [10, 10, 10]
    assert np.array_equal(task.sides["test"].edges, task.sides["train"].edges)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("encoder", ["egnn", "gnn", "radial-field"])
def test_a_traced_step_has_the_same_gradients(
    encoder: str, make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a batch of other sizes than the one it was traced with."""
    monkeypatch.setattr(torch, "compile", lambda traced, dynamic: traced)
    found = []
    for option in ("", "compile = true"):
        file = make(f'encoder = "{encoder}"')
        file.write_text(file.read_text() + option)
        task = AutoencoderTask(load_config(file), [tmp_path / "g.npz"])  # type: ignore[arg-type]
        torch.manual_seed(0)
        model = task.build_model()
        assert isinstance(model, GraphAutoencoder)
        batches, _ = task.batches(model)
        for chosen in ([0, 1, 2], [3, 4, 5, 6, 7]):
            model.zero_grad()
            task.loss(model, batches[chosen], 0)["loss"].backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() == dict(model.named_parameters()).keys()
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-3, atol=1e-5), name


def test_the_noise_depends_on_seed_and_step_alone(make: Callable[..., Path], tmp_path: Path) -> None:
    task = AutoencoderTask(load_config(make()), [tmp_path / "g.npz"])  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = task.build_model()
    batches, _ = task.batches(model)  # type: ignore[arg-type]
    batch = batches[[4, 0, 7]]
    one, again, later = (task.loss(model, batch, step)["loss"].item() for step in (3, 3, 4))  # type: ignore[arg-type]
    assert one == again
    assert one != later


def test_the_errors_follow_their_definitions() -> None:
    """Two graphs given back right, then with three edges lost and two added."""
    side = generate("erdos-renyi", {"train": 10}, 0)["train"]
    graphs = GraphBatches(side, 3, torch.float64)[[2, 5]].graphs
    joined = graphs.adjacency > 0.5
    logits = torch.where(joined, 2.0, -2.0).double()
    right = EdgeMetrics.of(edge_sums(logits, graphs).numpy())
    assert (right.error_percent, right.f1, right.n) == (0.0, 1.0, 2)
    assert right.bce == pytest.approx(len(joined) * np.log1p(np.exp(-2.0)) / 2)
    flipped = logits.clone()
    lost, added = torch.nonzero(joined)[:3].ravel(), torch.nonzero(~joined)[:2].ravel()
    flipped[lost], flipped[added] = -1.0, 1.0
    wrong = EdgeMetrics.of(edge_sums(flipped, graphs).numpy())
    true_positive = int(joined.sum()) - 3
    assert wrong.error_percent == pytest.approx(100 * 5 / len(joined))
    assert wrong.f1 == pytest.approx(true_positive / (true_positive + 0.5 * (2 + 3)))


def test_batches_have_every_pair_of_their_graphs() -> None:
    side = generate("community", {"train": 6}, 0)["train"]
    batch = GraphBatches(side, 2, torch.float32)[[4, 1]]
    first, second = (list(side.adjacency())[k] for k in (4, 1))
    dense = torch.zeros(len(first) + len(second), len(first) + len(second))
    dense[batch.graphs.pairs[0], batch.graphs.pairs[1]] = batch.graphs.adjacency
    assert torch.equal(dense, torch.block_diag(torch.from_numpy(first), torch.from_numpy(second)))
    assert batch.graphs.pairs.shape[1] == sum(len(g) * (len(g) - 1) for g in (first, second))
    assert batch.graphs.batch.tolist() == [0] * len(first) + [1] * len(second)
    assert batch.share.tolist() == [0.5]


def test_mistakes_are_told(make: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="radial field does not have"):
        load_config(make('encoder = "radial-field"\nsoft_edges = true'))
    with pytest.raises(ConfigError, match=r"model\.encoder"):
        load_config(make('encoder = "transformer"'))
    other = GraphAutoencoder(GraphAutoencoderConfig(hidden_dim=8, n_layers=2))
    save(other, tmp_path / "other.safetensors")
    path = make()
    path.write_text(f'init_from = "{tmp_path}/other.safetensors"\n' + path.read_text())
    with pytest.raises(ConfigError, match="another network or size"):
        train(path, output=tmp_path / "run", resources=QUIET)


def test_a_training_that_diverges_says_so_and_leaves_nothing_broken(make: Callable[..., Path], tmp_path: Path) -> None:
    config = make('encoder = "radial-field"', steps=60)
    config.write_text(config.read_text().replace("learning_rate = 1e-2", "learning_rate = 1e6"))
    with pytest.raises(TrainingDiverged, match="Lower learning_rate"):
        train(config, output=tmp_path / "run", resources=QUIET)
    assert not (tmp_path / "run" / "last.ckpt").exists()
