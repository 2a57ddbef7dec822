"""The user's own store of compiled packages.

A package is machine code: whoever can write one into the store runs code as the user. So packages lie in one folder of
the user's cache and nowhere else, they are used only if nobody else could have put them there, and an entry stands
there whole or not at all.

    ~/.cache/egnn-md/packages/<digest of the key>/package.pt2     XDG_CACHE_HOME moves ~/.cache
                                                 /about.json      the key, the package's SHA-256, how it was made
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

MAX_PACKAGE_BYTES: Final = 2**28
MAX_ABOUT_BYTES: Final = 2**20
PACKAGE: Final = "package.pt2"
ABOUT: Final = "about.json"
Key = Mapping[str, Any]
"""JSON values: everything that the machine code depends on."""


class UntrustedStore(RuntimeError):
    """Somebody else could have written to the store, or there is none; the message says what to do."""


def store_folder() -> Path:
    """Where packages are kept; it need not exist. Raises UntrustedStore where there is no home, and without users."""
    if not hasattr(os, "geteuid"):
        raise UntrustedStore("compiled packages need a system whose files have owners (Linux, macOS)")
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache):  # anything else is to be ignored: XDG Base Directory Specification
        return Path(cache) / "egnn-md" / "packages"
    try:
        return Path.home() / ".cache" / "egnn-md" / "packages"
    except RuntimeError as error:
        raise UntrustedStore("compiled packages need a home folder, or XDG_CACHE_HOME") from error


def digest(key: Key) -> str:
    """Name of a key's entry."""
    return hashlib.sha256(_canonical(key).encode()).hexdigest()[:40]


def find(key: Key) -> tuple[Path, dict[str, Any]] | None:
    """The package of this key and what stands in its about.json; None if there is none that is whole.

    Raises UntrustedStore if somebody other than the user could have written it.
    """
    folder = store_folder()
    entry = folder / digest(key)
    if not entry.is_dir():
        return None
    _check_folders(folder)
    files = [entry, entry / ABOUT, entry / PACKAGE]
    try:
        for path in files:
            _check_owner(path, folder=path is entry)
        about = _read_about(entry / ABOUT, key)
        return None if about is None or not _is_whole(entry / PACKAGE, about) else (entry / PACKAGE, about)
    except OSError:
        return None


def make_folder() -> Path:
    """The store's folder, made where it is missing. Raises UntrustedStore."""
    folder = store_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UntrustedStore(f"compiled packages cannot be kept in {folder}: {error.strerror}") from error
    _check_folders(folder)
    return folder


def keep(key: Key, package: Path, about: Mapping[str, Any]) -> Path:
    """Move a finished package into the store, in one step, in place of what was there. Returns where it is.

    Whoever comes second, where two processes compile at once, replaces the equal package of the first.
    """
    folder = make_folder()
    new = Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
    entry = folder / digest(key)
    try:
        shutil.copyfile(package, new / PACKAGE)
        content = (new / PACKAGE).read_bytes()
        known = {**about, "key": dict(key), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (new / ABOUT).write_text(json.dumps(known, indent=2))
        for path in (new / PACKAGE, new / ABOUT):
            path.chmod(0o600)
            _to_disk(path)
        for _ in range(10):
            try:
                os.rename(new, entry)  # fails on an entry that is not empty
                return entry / PACKAGE
            except OSError:
                old = Path(tempfile.mkdtemp(dir=folder, prefix=".old-"))
                _remove_into(entry, old)
        raise UntrustedStore(f"{entry} cannot be replaced: remove it")
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _remove_into(entry: Path, old: Path) -> None:
    """Out of the way in one step, then removed: nobody finds half an entry."""
    try:
        os.rename(entry, old / entry.name)
    except FileNotFoundError:  # another process was faster
        pass
    except OSError as error:
        raise UntrustedStore(f"{entry} cannot be replaced: {error.strerror}") from error
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _canonical(key: Key) -> str:
    return json.dumps(key, sort_keys=True)


def _read_about(path: Path, key: Key) -> dict[str, Any] | None:
    if path.stat().st_size > MAX_ABOUT_BYTES:
        return None
    try:
        about = json.loads(path.read_bytes())
        return about if _canonical(about["key"]) == _canonical(key) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_whole(package: Path, about: Mapping[str, Any]) -> bool:
    if package.stat().st_size > MAX_PACKAGE_BYTES:
        return False
    return hashlib.sha256(package.read_bytes()).hexdigest() == about.get("sha256")


def _check_folders(folder: Path) -> None:
    """The store belongs to the user alone, and nobody else can put another in its place."""
    for path in (folder, folder.parent):
        _check_owner(path, folder=True)
    for path in folder.resolve().parents:
        info = path.stat()
        shared = info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX
        if shared or info.st_uid not in (0, os.geteuid()):
            raise UntrustedStore(
                f"compiled packages in {folder} are not used: others can write to {path} (or set XDG_CACHE_HOME)"
            )


def _check_owner(path: Path, *, folder: bool) -> None:
    """Raise UntrustedStore unless `path` is a folder or file, no link, that the user alone owns and can change."""
    info = path.lstat()
    kind = stat.S_ISDIR if folder else stat.S_ISREG
    if not kind(info.st_mode):
        reason = f"is no {'folder' if folder else 'file'}"
    elif info.st_uid != os.geteuid():
        reason = "belongs to another user"
    elif info.st_mode & 0o022:
        reason = "can be written by others"
    else:
        return
    raise UntrustedStore(f"compiled packages are not used: {path} {reason}; remove it")
