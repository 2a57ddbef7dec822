"""Damaged, foreign and hostile checkpoints: each gives a clear CheckpointError, and costs nothing."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import egnn_md.checkpoint as checkpoint
from egnn_md.checkpoint import CheckpointError, load, read_header


def rewrite(
    source: Path,
    target: Path,
    header: Any = None,
    tensors: Callable[[dict[str, Tensor]], None] | None = None,
    *,
    signed: bool = True,
) -> Path:
    """A copy of a checkpoint with another header (a function of the old one, or its replacement) or other tensors.

    `signed`: with the checksum that goes with them, as somebody who means harm would write it.
    """
    from safetensors import safe_open

    with safe_open(source, framework="pt") as archive:
        state = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
        old = json.loads(archive.metadata()["egnn_md"])
    if tensors is not None:
        tensors(state)
    new = header(old) if callable(header) else old if header is None else header
    if signed and isinstance(new, dict) and isinstance(new.get("config"), dict) and "kind" in new:
        new = new | {"sha256": checkpoint._digest(new["kind"], new["config"], state)}
    save_file(state, target, metadata={"egnn_md": new if isinstance(new, str) else json.dumps(new)})
    return target


def with_config(**changes: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda header: header | {"config": header["config"] | changes}


def test_truncated_files_are_refused_at_any_length(checkpoint_file: Path, tmp_path: Path) -> None:
    whole = checkpoint_file.read_bytes()
    (header_length,) = struct.unpack("<Q", whole[:8])
    lengths = {0, 1, 7, 8, 9, 100, header_length, header_length + 7, header_length + 8, len(whole) // 2, len(whole) - 1}
    cut = tmp_path / "cut.safetensors"
    for length in lengths | set(range(0, len(whole), len(whole) // 40)):
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
            load(cut)
        with pytest.raises(CheckpointError):
            read_header(cut)


def test_random_bytes_are_refused(checkpoint_file: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    junk = tmp_path / "junk.safetensors"
    for length in (1, 8, 64, 5000):
        for _ in range(10):
            junk.write_bytes(rng.bytes(length))
            with pytest.raises(CheckpointError):
                load(junk)
    junk.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(CheckpointError):
        load(junk)


def test_flipped_header_bytes_never_crash(checkpoint_file: Path, tmp_path: Path) -> None:
    """A damaged byte in the header gives a CheckpointError or, in free text, another model's name: nothing else."""
    whole = bytearray(checkpoint_file.read_bytes())
    (header_length,) = struct.unpack("<Q", whole[:8])
    rng, bad, refused = np.random.default_rng(1), tmp_path / "bad.safetensors", 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[int(rng.integers(0, header_length + 8))] = int(rng.integers(0, 256))
        bad.write_bytes(damaged)
        try:
            load(bad)
        except CheckpointError:
            refused += 1
    assert refused > 75


def test_foreign_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.ones(3)}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match="not a checkpoint of egnn-md"):
            load(path)


def test_a_newer_format_asks_for_a_newer_library(checkpoint_file: Path, tmp_path: Path) -> None:
    path = rewrite(checkpoint_file, tmp_path / "new.safetensors", lambda header: header | {"format_version": 2})
    with pytest.raises(CheckpointError, match=r"format 2.*pip install -U egnn-md"):
        load(path)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "null",
        "[1, 2]",
        '"text"',
        "{",
        "[" * 100_000,
        lambda h: {k: v for k, v in h.items() if k != "format_version"},
        lambda h: h | {"format_version": "1"},
        lambda h: h | {"format_version": -1},
        lambda h: h | {"format_version": None},
        lambda h: h | {"kind": "os.system"},
        lambda h: h | {"kind": ["potential"]},
        lambda h: h | {"kind": None},
        lambda h: h | {"config": None},
        lambda h: h | {"config": {}},
        with_config(color="red"),
        with_config(network="transformer"),
        with_config(network=["vectors"]),
        with_config(cutoff="5"),
        with_config(cutoff=-1.0),
        with_config(cutoff=float("nan")),
        with_config(cutoff=None),
        with_config(core_start=float("nan")),
        with_config(elements=[1, 6, 7, 8]),
        with_config(elements=["H", "C", "N", "O", "F"]),
        with_config(elements=[[1], [6], [7], [8], [9]]),
        with_config(elements=6),
        with_config(elements=None),
        with_config(reference_energies=["a"] * 5),
        with_config(reference_energies=[float("inf")] * 5),
        with_config(reference_energies=3.0),
        with_config(hidden_dim=16.0),
        with_config(hidden_dim="16"),
        with_config(hidden_dim=-16),
        with_config(n_layers=1),
        with_config(n_layers=True),
        with_config(n_radial=0),
        with_config(n_vectors=[4]),
    ],
)
def test_tampered_headers_are_refused(checkpoint_file: Path, tmp_path: Path, header: Any) -> None:
    path = rewrite(checkpoint_file, tmp_path / "tampered.safetensors", header)
    with pytest.raises(CheckpointError, match="tampered"):
        load(path)


@pytest.mark.parametrize("name", ["hidden_dim", "message_dim", "n_layers", "n_vectors", "n_radial"])
@pytest.mark.parametrize("size", [100, 4000, 10**6, 10**18])
def test_huge_sizes_fail_fast_and_allocate_nothing(checkpoint_file: Path, tmp_path: Path, name: str, size: int) -> None:
    import resource

    path = rewrite(checkpoint_file, tmp_path / "huge.safetensors", with_config(**{name: size}))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CheckpointError):
        load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
    assert time.process_time() - start < 5


def drop(state: dict[str, Tensor]) -> None:
    del state["network.readout.0.weight"]


def add(state: dict[str, Tensor]) -> None:
    state["backdoor"] = torch.ones(1)


def reshape(state: dict[str, Tensor]) -> None:
    state["network.readout.0.weight"] = state["network.readout.0.weight"].reshape(-1)


def poison(state: dict[str, Tensor]) -> None:
    state["network.readout.0.weight"][0, 0] = torch.nan


def overflow(state: dict[str, Tensor]) -> None:
    state["network.readout.0.weight"][0, 0] = torch.inf


def mix(state: dict[str, Tensor]) -> None:
    state["network.readout.0.weight"] = state["network.readout.0.weight"].float()


def integers(state: dict[str, Tensor]) -> None:
    state.update({name: value.nan_to_num().long() for name, value in state.items()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "network.readout.0.weight"),
        (add, "backdoor"),
        (reshape, "network.readout.0.weight"),
        (poison, "not finite"),
        (overflow, "not finite"),
        (mix, "float32"),
        (integers, "float32"),
        (dict.clear, "tensors do not fit"),
    ],
)
def test_wrong_tensors_are_refused(
    checkpoint_file: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    path = rewrite(checkpoint_file, tmp_path / "wrong.safetensors", tensors=change)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_oversized_files_are_refused_unread(checkpoint_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    path.write_bytes(checkpoint_file.read_bytes())
    os.truncate(path, checkpoint.MAX_FILE_BYTES + 1)
    with pytest.raises(CheckpointError, match="too large"):
        load(path)


def flip(state: dict[str, Tensor]) -> None:
    state["network.readout.0.weight"].view(torch.int64)[0, 0] ^= 1


def swap(state: dict[str, Tensor]) -> None:
    a, b = state["network.readout.0.bias"], state["network.readout.2.weight"][0]
    state["network.readout.0.bias"], state["network.readout.2.weight"] = b.clone(), a.clone()[None]


def blind(state: dict[str, Tensor]) -> None:
    state["familiarity.mean"][0] = torch.nan


@pytest.mark.parametrize("change", [flip, swap, blind])
def test_one_changed_bit_is_damage(
    checkpoint_file: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], None]
) -> None:
    path = rewrite(checkpoint_file, tmp_path / "flipped.safetensors", tensors=change, signed=False)
    with pytest.raises(CheckpointError, match="damaged: its weights"):
        load(path)


def test_renamed_elements_are_damage_and_a_file_without_checksum_is_warned_of(
    checkpoint_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    with pytest.raises(CheckpointError, match="damaged: its weights"):
        load(rewrite(checkpoint_file, path, with_config(elements=[1, 6, 7, 8, 17]), signed=False))
    rewrite(checkpoint_file, path, lambda h: {key: h[key] for key in h if key != "sha256"}, signed=False)
    with pytest.warns(UserWarning, match="no checksum"):
        load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"cutoff": 1e9},
        {"cutoff": True},
        {"hidden_dim": 10**40},
        {"n_layers": 10**6},
        {"elements": [[1]]},
        {"core_end": []},
    ],
    ids=str,
)
def test_settings_beyond_bounds_are_refused(checkpoint_file: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    path = rewrite(checkpoint_file, tmp_path / "wild.safetensors", with_config(**change))
    with pytest.raises(CheckpointError, match=r"wild\.safetensors"):
        load(path)
    with pytest.raises(CheckpointError, match=r"wild\.safetensors"):
        checkpoint.check(path)
