"""The configuration: what is right is read, what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from egnn_md.training.config import ConfigError
from egnn_md.training.tasks import load_config

VALID = """
name = "water"
[data]
files = ["water.npz"]
[training]
max_steps = 100
"""


def config_file(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def test_a_short_file_is_enough(tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path, VALID + "[model]\nn_layers = 2\n"))
    assert (config.name, config.data.files, config.training.max_steps) == ("water", ["water.npz"], 100)
    assert config.model.n_layers == 2
    assert config.model.cutoff == 5.0


def test_the_result_cannot_be_changed(tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path, VALID))
    with pytest.raises(ValueError, match="frozen"):
        config.training.max_steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize = 3", "unknown key 'training.batchsize'; did you mean 'batch_size'?"),
        ("learningrate = 1.0", "did you mean 'learning_rate'?"),
        ("patiense = 3", "did you mean 'patience'?"),
        ("zzzz = 1", "unknown key 'training.zzzz'; known keys: max_steps"),
        ("batch_size = 0", "training.batch_size"),
        ("learning_rate = -1.0", "training.learning_rate"),
        ('batch_size = "many"', "training.batch_size"),
        ('loss = "l2"', "training.loss: Input should be 'l1' or 'mse'"),
        ("ema_decay = 1.0", "training.ema_decay"),
        ("learning_rate = nan", "training.learning_rate"),
        ("[model]\nhiden_dim = 3", "unknown key 'model.hiden_dim'; did you mean 'hidden_dim'?"),
        ('[model]\nnetwork = "vector"', "model.network"),
        ("[model]\ncutoff = 0", "model.cutoff"),
        ("[model]\ncutoff = inf", "model.cutoff"),
        ("learning_rate = inf", "training.learning_rate"),
        ("[model]\nn_layers = 200000", "model.n_layers: Input should be less than or equal to 100"),
        ("[model]\nhidden_dim = 100000", "model.hidden_dim"),
        ("[model]\nhidden_dim = 32.5", "model.hidden_dim"),
        ("[modle]\nhidden_dim = 3", "unknown key 'modle'; did you mean 'model'?"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config_file(tmp_path, VALID + text))
    assert message in str(caught.value)
    assert "config.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "message"), [('"potentail"', "did you mean 'potential'?"), ("3", "known tasks: potential")]
)
def test_unknown_tasks_are_named(tmp_path: Path, task: str, message: str) -> None:
    with pytest.raises(ConfigError, match="unknown task") as caught:
        load_config(config_file(tmp_path, f"task = {task}\n{VALID}"))
    assert message in str(caught.value)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config_file(tmp_path, VALID + "batchsize = 1\nema_decay = 2.0\n[model]\ncutof = 3.0"))
    for part in ("batch_size", "ema_decay", "cutoff"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[data\n", "not readable TOML"),
        (b"\xff\xfe\x00", "not readable TOML"),
        (b"", "data: Field required"),
        (b"[data]\nfiles = []\n[training]\nmax_steps = 1", "data.files"),
        (b'training = 3\n[data]\nfiles = ["a"]', "training"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="not readable"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "text", ["task = {}\n", "seed = {}\n[data]\nfiles = ['a.npz']\n[model]\n[training]\nmax_steps = 10\n"]
)
def test_numbers_that_python_does_not_print_are_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(text.format("0x" + "f" * 5000))
    with pytest.raises(ConfigError, match="thousands of digits"):
        load_config(tmp_path / "config.toml")
