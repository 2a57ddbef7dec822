"""Files that are written whole or not at all, by one process at a time, and nowhere but where they belong."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import secrets
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

FULL: frozenset[int] = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Codes of an OSError where there is no room."""


class StorageError(ValueError):
    """A folder or file that must not be written now; the message says why and what to do."""


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """`with write_whole(path) as temporary:` write `temporary`; at the end it takes the place of `path`.

    The temporary file lies beside `path`, under a name of its own (two writers do not meet) with the same suffix. It is
    on the disk before it takes its place, so that a crash leaves the old file or the new one; an exception inside
    leaves the old one and no temporary file. Raises OSError as writing does, naming `path` where there is no room.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        with naming(path):
            yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError inside that says of no file that there is no room, as writes do, says it of `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in FULL:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def require_room(path: Path, n_bytes: int) -> None:
    """Take so many bytes of the disk beside `path`, and give them back: for libraries that lose what finds no room
    without a word. Raises OSError naming `path` if they are not there.
    """
    with naming(path), tempfile.TemporaryFile(dir=path.parent) as scratch:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(scratch.fileno(), 0, n_bytes)
        elif shutil.disk_usage(path.parent).free < n_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A JSON file, whole."""
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises StorageError if it is damaged, also later, when an entry is asked for that it
    does not have; OSError as reading does.
    """

    def damaged(what: object) -> StorageError:
        return StorageError(f"{path} is damaged ({what}): put it back, or begin anew")

    class Entries(dict[str, Any]):
        def __missing__(self, key: str) -> Any:
            raise damaged(f"it has no {key}")

    try:
        found = json.loads(path.read_text(), object_hook=Entries)
    except (ValueError, RecursionError) as error:
        raise damaged(error) from error
    if not isinstance(found, Entries):
        raise damaged("it holds no entries")
    return found


def write_npz(path: Path, arrays: Mapping[str, Any], *, compress: bool = True) -> None:
    """An npz without pickles, whole."""
    import numpy as np  # late: this module loads with the package's cheap parts

    with write_whole(path) as temporary, temporary.open("wb") as file:
        (np.savez_compressed if compress else np.savez)(file, **arrays)


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal; of a folder, of the names and bytes of all its files."""
    if path.is_dir():
        names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        return hashlib.sha256("".join(f"{name} {sha256(path / name)}\n" for name in names).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Hold:
    """A run folder, or one output file, kept from other processes until `release` or the end of this process.

    A lock of the kernel on a file beside it (`.lock` in a folder, `.NAME.lock` beside a file), which goes with the
    process however that ends; the file says who has it. Within one process a later hold takes over from an earlier one.
    Where the file system knows no locks, it warns and goes on. Raises StorageError naming the other process, and
    OSError as writing does.
    """

    _of_this_process: dict[Path, Hold] = {}  # noqa: RUF012

    def __init__(self, target: Path) -> None:
        self.target, self._file = target, -1
        self.path = target / ".lock" if target.is_dir() else target.with_name(f".{target.name}.lock")
        self.path = self.path.absolute()
        if (earlier := self._of_this_process.get(self.path)) is not None:
            earlier.release()
        while self._file < 0:
            self._file = self._open()
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"process {os.getpid()} on {platform.node()}".encode(), 0)
        self._of_this_process[self.path] = self

    def _open(self) -> int:
        """The locked file; -1 if another process was just giving it up."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(file, 200, 0).decode(errors="replace") or "another process"
            os.close(file)
            raise StorageError(f"{self.target} is in use by {other}: wait until it ends, or end it") from None
        except OSError as error:
            warnings.warn(f"{self.target} cannot be locked ({error.strerror}): keep others from it", stacklevel=4)
        with suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == os.fstat(file).st_ino:
                return file
        os.close(file)
        return -1

    def release(self) -> None:
        """Let others have it; twice is as good as once."""
        if self._file >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1
            self._of_this_process.pop(self.path, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextmanager
def releasing_on_error(hold: Hold) -> Iterator[Hold]:
    """The hold lasts beyond this block, unless something is raised in it."""
    try:
        yield hold
    except BaseException:
        hold.release()
        raise


def refuse_links(paths: Iterable[Path]) -> None:
    """Raise StorageError if one of these files of a run is a symbolic link: writing would go somewhere else."""
    for path in paths:
        if path.is_symlink():
            raise StorageError(f"{path} is a link to {os.readlink(path)}: a run writes its own files only; remove it")
