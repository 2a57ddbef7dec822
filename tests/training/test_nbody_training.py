"""The task "nbody": both networks learn, a checkpoint is exactly what was validated, mistakes are named."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from egnn_md.checkpoint import load, read_header
from egnn_md.data import nbody
from egnn_md.data.frames import DataError
from egnn_md.evaluation.nbody import NBodyMetrics, particles_at, squared_errors
from egnn_md.models.propagator import IntegratorPropagator, VelocityEGNN
from egnn_md.training.config import ConfigError
from egnn_md.training.loop import Resources, train
from egnn_md.training.nbody import NBodyTask, ParticleBatches
from egnn_md.training.tasks import load_config

CONFIG = """
task = "nbody"
seed = 2
[data]
files = ["n.npz"]
start_frame = {start}
end_frame = 12
[model]
network = "{network}"
hidden_dim = 16
n_layers = 2
[training]
max_steps = {steps}
batch_size = 20
optimizer = "adam"
learning_rate = 5e-3
warmup_steps = 5
ema_decay = 0.9
validate_every = 20
checkpoint_every = 10
{extra}
"""
QUIET = Resources(progress=False, accelerator="cpu")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """A folder with systems of three particles on springs or charged, and a configuration."""

    def run(network: str, law: nbody.Law = "springs", steps: int = 60, extra: str = "", start: int = 2) -> Path:
        sides = {
            side: nbody.generate(law, count, 3, (0, k), frames=(2, 12))
            for k, (side, count) in enumerate({"train": 200, "valid": 60, "test": 40}.items())
        }
        nbody.write(tmp_path / "n.npz", sides)
        text = CONFIG.format(network=network, steps=steps, extra=extra, start=start)
        (tmp_path / "config.toml").write_text(text)
        return tmp_path / "config.toml"

    return run


@pytest.mark.parametrize("law", ["springs", "charged"])
def test_integrator_learns_any_law(make: Callable[..., Path], law: nbody.Law, tmp_path: Path) -> None:
    """Springs or charges, the same model with the same settings, far better than straight flight."""
    model = load(train(make("integrator", law, 240, "substeps = [3, 6]"), output=tmp_path / "run", resources=QUIET))
    assert isinstance(model, IntegratorPropagator)
    test = nbody.read(tmp_path / "n.npz", "test")
    learned = NBodyMetrics.of(squared_errors(model, test, (2, 12), n_substeps=20)).median_se
    straight = test.positions[:, 0] + test.velocities[:, 0] - test.positions[:, 1]
    assert learned < 0.2 * np.median((straight**2).mean((1, 2)))


def test_paper_model_learns_and_the_run_is_complete(make: Callable[..., Path], tmp_path: Path) -> None:
    file = train(make("egnn", steps=100, extra='loss = "mse"'), output=tmp_path / "run", resources=QUIET)
    model = load(file)
    assert isinstance(model, VelocityEGNN)
    with (tmp_path / "run" / "log.csv").open() as log:
        scores = [float(row["valid_score"]) for row in csv.DictReader(log) if row["valid_score"]]
    assert min(scores) < 0.7 * scores[0]
    header = read_header(file)
    assert header["held_out"]["valid"]["mse"] == pytest.approx(min(scores), rel=1e-5)
    assert header["held_out"]["test"]["n"] == 40
    assert header["training_data"]["law"] == "springs"
    assert header["units"] == {"length": "of the data", "time": "of the data"}
    for name in ("errors.png", "learning_curve.png"):
        assert (tmp_path / "run" / name).stat().st_size > 1000


def test_fine_tuning_starts_from_the_given_weights(make: Callable[..., Path], tmp_path: Path) -> None:
    config = make("integrator", steps=1, extra="substeps = [2]")
    first = train(config, output=tmp_path / "first", resources=QUIET)
    text = config.read_text().replace("seed = 2", f'seed = 9\ninit_from = "{first}"').replace("5e-3", "1e-12")
    config.write_text(text)
    second = load(train(config, output=tmp_path / "second", resources=QUIET))
    assert all(torch.allclose(a, b) for a, b in zip(load(first).parameters(), second.parameters(), strict=True))
    config.write_text(text.replace("hidden_dim = 16", "hidden_dim = 8"))
    with pytest.raises(ConfigError, match="another network, size or duration"):
        train(config, output=tmp_path / "third", resources=QUIET)


def test_the_loss_is_what_it_says_and_processes_share_it(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make("integrator", extra='loss_scale = 0.2\nvelocity_weight = 0.5\nsubsteps = [3]\ndtype = "float64"')
    task = NBodyTask(load_config(path), [tmp_path / "n.npz"])  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = task.build_model()
    batches, _ = task.batches(model)
    batch = batches[[4, 0, 7]]
    x, v = model(batch.start, 1.0, n_substeps=3)
    squared = (x - batch.end.positions).square().mean((1, 2)) + 0.5 * (v - batch.end.velocities).square().mean((1, 2))
    expected = (squared.sqrt() / (squared.sqrt() + 0.2)).mean()
    whole = task.loss(model, batch, 0)["loss"]
    assert whole.item() == pytest.approx(expected.item(), rel=1e-6)
    parts = []
    for chosen in ([4, 7], [0]):
        part = batches[chosen]
        shared = type(part)(part.start, part.end, batch.share)
        parts.append(task.loss(model, shared, 0)["loss"].item())
    assert sum(parts) == pytest.approx(whole.item(), rel=1e-9)


def test_metrics_follow_their_definitions() -> None:
    errors = np.array([5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0, 1000.0])
    found = NBodyMetrics.of(errors)
    assert (found.mse, found.median_se, found.mse_p80, found.n) == (104.5, 5.5, 4.5, 10)
    with_nan = NBodyMetrics.of(np.array([1.0, np.nan]))
    assert np.isnan(with_nan.mse)


def test_particles_come_from_their_frame(make: Callable[..., Path], tmp_path: Path) -> None:
    make("egnn")
    test = nbody.read(tmp_path / "n.npz", "test")
    start, end = particles_at(test, 2), particles_at(test, 12)
    batch = ParticleBatches(start, end)[[3, 1]]
    assert np.array_equal(batch.start.positions.numpy(), test.positions[[3, 1], 0])
    assert np.array_equal(batch.end.velocities.numpy(), test.velocities[[3, 1], 1])
    assert batch.share.tolist() == [0.5]


def test_mistakes_are_told(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make("integrator", extra="substeps = [0]")
    with pytest.raises(ConfigError, match="at least one sub-step"):
        load_config(path)
    with pytest.raises(DataError, match="no frame 3, only 2, 12"):
        train(make("integrator", start=3), output=tmp_path / "run", resources=QUIET)
    with pytest.raises(ConfigError, match="end_frame must come after"):
        train(make("integrator", start=12), output=tmp_path / "other", resources=QUIET)
    with pytest.raises(ConfigError, match=r"model\.network"):
        load_config(make("transformer"))


def test_two_processes_train_a_network_with_weights_that_nothing_reads(make: Callable[..., Path]) -> None:
    """The paper's last layer makes features for a layer that does not come."""
    config = make("egnn", steps=3)
    module = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "egnn_md.cli", "train"]
    done = subprocess.run(
        [sys.executable, *module, str(config), "-o", str(config.parent / "run"), "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert isinstance(load(config.parent / "run" / "model.safetensors"), VelocityEGNN)
