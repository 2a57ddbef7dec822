"""A training that ends with its time."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from egnn_md.checkpoint import load, read_header
from egnn_md.training.budget import Budget
from egnn_md.training.config import ConfigError
from egnn_md.training.loop import Resources, resume, train
from egnn_md.training.run_folder import CsvLog
from egnn_md.training.tasks import load_config

CONFIG = """
name = "tiny"
[data]
files = ["train.extxyz"]
test_fraction = 0.2
valid_files = ["valid.extxyz"]
[model]
hidden_dim = 8
message_dim = 8
n_layers = 1
n_vectors = 2
n_tensors = 0
n_radial = 4
cutoff = 3.0
[training]
batch_size = 2
warmup_steps = 0
checkpoint_every = 5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Frames of molecules with labels from nowhere, on the two sides of a training."""
    rng = np.random.default_rng(0)

    def frames(names: str, n: int) -> list[Atoms]:
        made = []
        for name in names.split() * n:
            atoms = molecule(name)
            atoms.rattle(0.03, rng=rng)
            forces = rng.normal(size=atoms.positions.shape)
            atoms.calc = SinglePointCalculator(atoms, energy=-10.0 * len(atoms) + rng.normal(), forces=forces)
            made.append(atoms)
        return made

    write(tmp_path / "train.extxyz", frames("CH4 H2O CH3OH H2CO C2H6", 3))
    write(tmp_path / "valid.extxyz", frames("C2H2", 4))
    return tmp_path


def log(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "run" / "log.csv").read_text().splitlines()))


def configured(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(CONFIG + text)
    return path


@pytest.mark.filterwarnings("ignore:the compositions of the data")
def test_the_schedule_ends_with_the_time_and_a_resume_has_what_is_left(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    step = CsvLog.on_train_batch_end

    def a_second_a_step(self: CsvLog, trainer: object, *others: object) -> None:
        clock[0] += 1.0
        step(self, trainer, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(CsvLog, "on_train_batch_end", a_second_a_step)
    config = configured(folder, "max_minutes = 0.5\nvalidate_every = 7\n")
    train(config, output=folder / "run", resources=Resources(accelerator="cpu", progress=False))
    rows = log(folder)
    rates = [float(row["learning_rate"]) for row in rows]
    steps = int(rows[-1]["step"])
    assert 29 <= steps <= 32  # a step takes a second
    assert rates[0] > 0.7 * 3e-3
    assert 0 <= rates[-1] < 0.05 * 3e-3
    assert rows[-1]["valid_force_mae"]  # the last weights are validated
    size = len(rows)
    (folder / "run" / "model.safetensors").unlink()
    resume(folder / "run", Resources(accelerator="cpu", progress=False))
    assert len(log(folder)) <= size + 1  # nothing is left


@pytest.mark.filterwarnings("ignore:the compositions of the data")
def test_valid_files_choose_the_best_checkpoint(folder: Path) -> None:
    model = train(configured(folder, "max_steps = 6\nvalidate_every = 3\n"), output=folder / "run")
    header = read_header(model)
    held_out = header["held_out"]
    assert header["split"] == {"valid": 0.0, "test": 0.2}
    assert held_out["valid"]["n_structures"] == 4
    assert header["training_data"]["n_structures"] + held_out.get("test", {"n_structures": 0})["n_structures"] == 15
    load(model)


@pytest.mark.filterwarnings("ignore:the compositions of the data")
def test_the_last_weights_may_be_the_model(folder: Path) -> None:
    """Asked for at the start, or of a run that has ended: it is resumed."""
    machine = Resources(accelerator="cpu", progress=False)
    text = 'max_steps = 6\nvalidate_every = 2\nlearning_rate = 2.0\nschedule = "constant"\nema_decay = 0.0\n'
    best = train(configured(folder, text), output=folder / "run", resources=machine)
    last = train(configured(folder, text + 'keep = "last"\n'), output=folder / "other", resources=machine)
    assert read_header(last)["training"]["step"] == 6
    average = torch.load(folder / "run" / "last.ckpt", weights_only=True)["state_dict"]
    name = "network.readout.0.weight"
    torch.testing.assert_close(load(last, dtype=torch.float32).state_dict()[name], average[f"average.module.{name}"])
    assert read_header(best)["training"]["step"] < 6
    (folder / "run" / "config.toml").write_text((folder / "other" / "config.toml").read_text())
    again = load(resume(folder / "run", machine))
    torch.testing.assert_close(again.state_dict()[name], load(last).state_dict()[name])


def test_a_training_needs_an_end(folder: Path) -> None:
    with pytest.raises(ConfigError, match="max_steps or max_minutes is required"):
        load_config(configured(folder, ""))


def test_progress_is_the_further_of_steps_and_time() -> None:
    steps, both = Budget(100, None), Budget(100, 1.0)
    both.seconds = 30.0
    assert [steps.done(25), both.done(25), both.done(75), both.done(200)] == [0.25, 0.5, 0.75, 1.0]
    assert [steps.scaled(25), both.scaled(25), both.scaled(100)] == [25, 50, 99]
