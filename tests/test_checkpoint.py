"""Checkpoints: exact round trips, atomic writes, names."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from graphs import make_graph, molecule

import egnn_md.checkpoint as checkpoint
from egnn_md.checkpoint import CheckpointError, load, read_header, resolve, save, shipped_models, shipped_name
from egnn_md.models.potential import Potential

Make = Callable[..., Potential]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_round_trip_is_exact_to_the_last_bit(random_potential: Make, tmp_path: Path, dtype: torch.dtype) -> None:
    reference = (-13.587222780835477, -1029.1, -1.0, 0.1, 3.3)
    model = random_potential(dtype=dtype, reference_energies=reference)
    save(model, tmp_path / "model.safetensors")
    found = cast(Potential, load(tmp_path / "model.safetensors"))
    assert found.config == model.config
    assert found.dtype == dtype
    assert found.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    graph = make_graph(*molecule("CH3CH2OH"), 4.0, dtype=dtype)
    before, after = model(graph), found(graph)
    for name in ("energy", "forces", "extrapolation"):
        assert torch.equal(getattr(after, name), getattr(before, name)), name
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())


def test_header_says_everything(random_potential: Make, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model.safetensors"
    save(random_potential(), path, {"name": "mine", "held_out": {"force_mae": 1.5}})
    header = read_header(path)
    assert header["format_version"] == 1
    assert header["kind"] == "potential"
    assert header["units"] == {"energy": "eV", "length": "angstrom", "mass": "amu", "time": "fs"}
    assert header["config"]["elements"] == [1, 6, 7, 8, 9]
    assert header["config"]["cutoff"] == 4.0
    assert header["library_version"]
    assert (header["name"], header["held_out"]) == ("mine", {"force_mae": 1.5})


def test_information_cannot_overrule_the_model(random_potential: Make, tmp_path: Path) -> None:
    for key in ("config", "kind", "format_version"):
        with pytest.raises(ValueError, match=key):
            save(random_potential(), tmp_path / "model.safetensors", {key: "other"})
    assert not list(tmp_path.iterdir())


def test_precision_on_request(checkpoint_file: Path) -> None:
    single = cast(Potential, load(checkpoint_file, dtype=torch.float32))
    assert single.dtype == torch.float32
    assert single.reference.energies.dtype == torch.float64


def test_precision_by_name(checkpoint_file: Path) -> None:
    assert next(load(checkpoint_file, dtype="float64").parameters()).dtype == torch.float64
    with pytest.raises(CheckpointError, match="float32 or float64, not float16"):
        load(checkpoint_file, dtype="float16")
    with pytest.raises(CheckpointError, match="int64"):
        load(checkpoint_file, dtype=torch.int64)


def test_loading_leaves_global_state_alone(checkpoint_file: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load(checkpoint_file)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("where", ["safetensors.torch.save_file", "os.fsync", "os.replace"])
def test_a_failed_write_keeps_the_old_file(
    random_potential: Make, checkpoint_file: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Disk full, or killed, in the middle of it: the old checkpoint stays and nothing is left beside it."""
    old = checkpoint_file.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        if where.endswith("save_file"):
            Path(str(args[1])).write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    target = "egnn_md.checkpoint.save_file" if where.endswith("save_file") else where
    with monkeypatch.context() as patch:
        patch.setattr(target, fail)
        with pytest.raises(OSError, match="No space left"):
            save(random_potential(seed=1), checkpoint_file)
    assert checkpoint_file.read_bytes() == old
    assert [path.name for path in checkpoint_file.parent.iterdir()] == [checkpoint_file.name]
    save(random_potential(seed=1), checkpoint_file)
    assert checkpoint_file.read_bytes() != old
    load(checkpoint_file)


def test_unknown_names_list_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model 'organic-xbt': shipped models are"):
        load("organic-xbt")
    with pytest.raises(CheckpointError, match="no model"):
        load(tmp_path)  # a folder
    monkeypatch.setattr(checkpoint, "shipped_models", lambda: {"alpha": tmp_path / "a", "beta": tmp_path / "b"})
    with pytest.raises(CheckpointError, match="shipped models are alpha, beta"):
        resolve("gamma")
    assert resolve("beta") == tmp_path / "b"


def test_a_full_disk_is_an_os_error_and_the_old_file_stays(
    checkpoint_file: Path, random_potential: Callable[..., Potential]
) -> None:
    before, limits = checkpoint_file.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot be written: .*File too large.*random\.safetensors"):
            save(random_potential(seed=1), checkpoint_file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert checkpoint_file.read_bytes() == before


def test_only_registered_models_are_saved(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    model.config = None  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match="Linear is not a registered kind"):
        save(model, tmp_path / "linear.safetensors")


def test_without_a_number_the_newest_version(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = {name: Path(f"{name}.safetensors") for name in ("a-9", "a-10", "a-x", "b", "b-1", "ab-7")}
    monkeypatch.setattr("egnn_md.checkpoint.shipped_models", lambda: shipped)
    expected = {"a": "a-10", "a-9": "a-9", "b": "b", "a-1": None, "ab": "ab-7", "c": None}
    assert {name: shipped_name(name) for name in expected} == expected
    assert resolve("a") == Path("a-10.safetensors")


def test_every_shipped_model_loads_with_a_full_header(shipped: str) -> None:
    for name in shipped_models():
        header = read_header(name)
        missing = {"licence", "training_data", "held_out", "name"} - header.keys()
        assert not missing, name
        assert header["name"] == name
        load(name)
