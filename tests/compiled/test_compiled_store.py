"""A package is machine code: what somebody else could have written, or only half of it, is never found."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from egnn_md.compiled import store
from egnn_md.compiled.store import UntrustedStore

KEY = {"function": "force call", "weights": {"w": [2, 3]}}
CODE = b"machine code" * 1000
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Where the package of KEY is."""
    return keep(tmp_path, CODE)


def keep(folder: Path, code: bytes) -> Path:
    made = folder / f"made-{os.getpid()}.pt2"
    made.write_bytes(code)
    return store.keep(KEY, made, {"seconds": 1.0})


def test_what_was_kept_is_found_by_its_key_alone(kept: Path) -> None:
    found = store.find(KEY)
    assert found is not None
    path, about = found
    assert path == kept
    assert path.read_bytes() == CODE
    assert about["seconds"] == 1.0
    assert about["key"] == KEY
    assert store.find({**KEY, "weights": {"w": [3, 2]}}) is None


def test_all_is_the_users_alone(kept: Path, tmp_path: Path) -> None:
    for path in (kept, kept.parent / "about.json", kept.parent, kept.parent.parent):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert sorted(path.name for path in kept.parent.parent.iterdir()) == [store.digest(KEY)]


def test_the_store_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "relative/folder"):  # XDG: relative paths are to be ignored
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert store.store_folder() == tmp_path / ".cache" / "egnn-md" / "packages"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert store.store_folder() == Path("/somewhere/egnn-md/packages")


def test_a_package_in_the_working_directory_is_not_found(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = kept.parent.parent
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "empty"))
    for folder in (here, here.parent, here.parent.parent, kept.parent):
        monkeypatch.chdir(folder)
        assert store.find(KEY) is None


@pytest.mark.parametrize("mode", [0o020, 0o002])
@pytest.mark.parametrize("which", ["package", "about", "entry", "packages", "egnn-md", "cache"])
def test_what_others_can_write_is_refused(kept: Path, which: str, mode: int) -> None:
    places = [kept, kept.parent / "about.json", *kept.parents[:4]]
    path = dict(zip(["package", "about", "entry", "packages", "egnn-md", "cache"], places, strict=True))[which]
    path.chmod(stat.S_IMODE(path.stat().st_mode) | mode)
    with pytest.raises(UntrustedStore, match=f"{path} can be written by others|others can write to {path}"):
        store.find(KEY)


def test_another_users_files_are_refused(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(UntrustedStore, match="belongs to another user"):
        store.find(KEY)
    with pytest.raises(UntrustedStore, match="belongs to another user"):
        store.make_folder()


@pytest.mark.parametrize("which", ["package.pt2", "about.json", "", ".."])
def test_links_are_refused(kept: Path, tmp_path: Path, which: str) -> None:
    path = kept.parent.parent if which == ".." else kept.parent / which
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UntrustedStore, match="is no f"):
        store.find(KEY)


@pytest.mark.parametrize("damage", [b"", CODE[:-1], CODE[:-1] + b"x", CODE + b"x", None])
def test_a_damaged_package_is_not_found_and_made_again(kept: Path, tmp_path: Path, damage: bytes | None) -> None:
    if damage is None:
        kept.unlink()
    else:
        kept.write_bytes(damage)
    assert store.find(KEY) is None
    keep(tmp_path, CODE)
    assert store.find(KEY) is not None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 3}', "[" * 100_000, None, " " * 2**21])
def test_a_damaged_description_is_not_believed(kept: Path, text: str | None) -> None:
    about = kept.parent / "about.json"
    if text is None:
        about.unlink()
    else:
        about.write_text(text)
    assert store.find(KEY) is None


def test_an_entry_for_another_key_is_not_believed(kept: Path) -> None:
    about = kept.parent / "about.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "key": {"function": "another"}}))
    assert store.find(KEY) is None


def test_what_a_killed_process_leaves_is_not_found(kept: Path, tmp_path: Path) -> None:
    kept.parent.rename(kept.parent.parent / ".new-abc")
    assert store.find(KEY) is None
    keep(tmp_path, CODE)
    assert store.find(KEY) is not None


def test_a_store_that_cannot_be_made_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UntrustedStore, match="cannot be kept"):
        store.make_folder()


def _keep_often(folder: Path, byte: int) -> None:
    for _ in range(20):
        keep(folder, bytes([byte]) * 100_000)


def test_processes_that_compile_at_once_leave_one_whole_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_keep_often, args=(tmp_path, byte)) for byte in (1, 2, 3)]
    for process in processes:
        process.start()
    seen = 0
    while any(process.is_alive() for process in processes):
        found = store.find(KEY)
        if found is not None:
            seen += 1
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert seen
    found = store.find(KEY)
    assert found is not None
    assert [path.name for path in found[0].parent.parent.iterdir()] == [store.digest(KEY)]
