"""A file is there whole or as it was."""

from __future__ import annotations

import errno
import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from egnn_md.storage import StorageError, read_json, require_room, write_json, write_npz, write_whole


def test_a_file_takes_its_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text("old")
    with write_whole(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".xyz")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with write_whole(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with write_whole(path) as one, write_whole(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert one != other
    assert path.read_text() == "one"  # the last to finish
    assert list(tmp_path.iterdir()) == [path]


def test_json_and_npz(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, 2]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, 2]}
    for compress in (True, False):
        write_npz(tmp_path / "a.npz", {"x": np.arange(3)}, compress=compress)
        with np.load(tmp_path / "a.npz") as archive:
            assert archive["x"].tolist() == [0, 1, 2]
    write_npz(tmp_path / "plain", {"x": np.arange(3)})
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.npz", "plain"}


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"test": {}}', "{}", "[" * 100_000])
def test_damaged_json_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(StorageError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")["test"]["force_mae"]


@contextmanager
def small_disk() -> Iterator[None]:
    """Files of at most 4 kB, pytest's own output among them: for as long as nothing is printed."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_no_room_is_said_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with write_whole(path) as temporary:
            temporary.write_text("new" * 4096)

    for act in (write, lambda: require_room(path, 5000)):
        with small_disk(), pytest.raises(OSError, match=r"a\.txt") as caught:
            act()
        assert caught.value.errno == errno.EFBIG
    with small_disk():
        require_room(path, 4000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
