"""Runs a verb in a fork of this process, or in a process of its own, and ends it where the campaign likes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EVENTS = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "shutil.copyfile", "shutil.move", "os.rmdir")


@dataclass(frozen=True)
class Verb:
    """A command line that writes into `folder`; what it leaves, as something to compare."""

    name: str
    begin: Callable[[Path], list[str]]
    go_on: Callable[[Path], list[str]] | None
    """None: it is begun anew."""
    left: Callable[[Path], Any]
    """What must be the same after any number of kills."""
    makes_folder: bool = False
    """Whether it wants none to be there."""
    every: int = 1
    """Its turns: one of so many; for those that take long."""


@dataclass(frozen=True)
class Ended:
    """How a process went."""

    code: int
    """Exit code, or minus the signal."""
    said: str
    """Its stderr and stdout."""
    seconds: float
    events: int = 0
    """Times that it opened, renamed or removed something below its folder."""
    memory: int = 0
    """Its peak, bytes."""
    group: int = 0
    """Its session, for what it may have left running."""

    @property
    def has_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.said


def call(
    arguments: list[str],
    folder: Path,
    *,
    kill_at: int | None = None,
    kill_after: float | None = None,
    largest_file: int | None = None,
    as_nobody: bool = False,
    fresh: bool = False,
    label: str = "",
) -> Ended:
    """`egnn-md ARGUMENTS` in a fork of this process, in a session of its own.

    kill_at: SIGKILL before so many changes below `folder`; kill_after: after so many seconds. largest_file: bytes
    beyond which files cannot grow. as_nobody: without the rights of root. fresh: a new Python instead of a fork, whose
    changes are not counted. label: of the files with what it says.
    """
    log, count = (folder.parent / f"{name}{label}.txt" for name in ("said", "events"))
    log.touch()  # a kill may be faster than the fork
    began = time.monotonic()
    if fresh:
        with log.open("wb") as said:
            words = [sys.executable, "-m", "egnn_md.cli", *arguments]
            child = subprocess.Popen(words, stdout=said, stderr=said, start_new_session=True).pid
    elif (child := os.fork()) == 0:
        try:
            os.setsid()
            _become(arguments, folder, log, count, kill_at, largest_file, as_nobody)
        finally:
            os._exit(99)
    status, memory = _wait(child, 600.0 if kill_after is None else kill_after)
    seconds, said_all = time.monotonic() - began, log.read_text(errors="replace")
    events = int(count.read_text() or 0) if count.exists() and not fresh else 0
    return Ended(os.waitstatus_to_exitcode(status), said_all, seconds, events, memory, child)


def end_group(ended: Ended) -> None:
    """Kill what a process left running: workers that have not seen yet that it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(ended.group, signal.SIGKILL)


def import_as(log: Path) -> None:
    """Import what the last verb that wrote here has imported: forks to come have it at once.

    Its modules stay out of the forks' garbage collections.
    """
    for name in log.read_text().split():
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.freeze()


def draw_nothing() -> None:
    """Pictures take half of a small run's time: from now on forks write one that is empty, in the same way."""
    from matplotlib.figure import Figure

    def savefig(self: Any, target: Any, **_: Any) -> None:
        if hasattr(target, "write"):
            target.write(b"no picture")
        else:
            Path(target).write_bytes(b"no picture")

    Figure.savefig = savefig  # type: ignore[method-assign]


def _wait(child: int, seconds: float) -> tuple[int, int]:
    """The status and peak memory (bytes) of a child that ends by itself in so many seconds; after them it is killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            return status, 1024 * used.ru_maxrss
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    return status, 1024 * used.ru_maxrss


def _give_up_rights() -> None:
    """Root without its rights to files of any mode; nothing changes for others."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capset(header, nothing)


def _become(
    arguments: list[str],
    folder: Path,
    log: Path,
    count: Path,
    kill_at: int | None,
    largest_file: int | None,
    as_nobody: bool,
) -> None:
    known = set(sys.modules)
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    counted = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    seen, below = 0, str(folder)

    def watch(event: str, details: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in EVENTS or not any(isinstance(part, str) and part.startswith(below) for part in details):
            return
        if event == "open" and not (isinstance(details[2], int) and details[2] & WRITES):
            return
        seen += 1
        os.pwrite(counted, str(seen).encode(), 0)
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if as_nobody and os.getuid() == 0:
        _give_up_rights()
    from egnn_md.cli import main

    try:
        main(arguments)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 98
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):  # a full disk, a folder that is closed
        log.with_name("modules.txt").write_text("\n".join(sorted(set(sys.modules) - known)))
    os._exit(code)
