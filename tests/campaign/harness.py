"""Runs a case in a process of its own that may hang, run out of memory or crash, and keeps count of what happened."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEMORY_LIMIT = 2 * 1024**3
"""Bytes that one input may cost."""
TIME_LIMIT = 60
"""Seconds of the processor that one input may take; ten times as long by the clock, for those that wait or are kept
waiting by a busy machine.
"""


class Fault(Exception):
    """A promise that was broken, by a case that found it out itself."""


@dataclass
class Tally:
    """What a part of the campaign did and found."""

    part: str
    counts: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[str]] = field(default_factory=dict)
    """Kind of fault -> the cases that showed it."""

    def fault(self, kind: str, case: str) -> None:
        self.faults.setdefault(kind, []).append(case)

    def show(self) -> None:
        counted = ", ".join(f"{number} {what}" for what, number in sorted(self.counts.items()))
        n_faults = sum(map(len, self.faults.values()))
        print(f"{self.part}: {counted or 'nothing done'}; {n_faults} faults", flush=True)
        for kind, cases in sorted(self.faults.items()):
            print(f"  {len(cases)} x {kind}, for example {cases[0]}", flush=True)


def is_refusal(error: BaseException) -> bool:
    """Whether the command line would say this error in one line: our own, or the system's about a file."""
    own = isinstance(error, ValueError) and type(error).__module__.startswith("egnn_md.")
    return own or (isinstance(error, OSError) and error.strerror is not None)


def _where(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}:{last.name}"


def _peak() -> int:
    """Largest resident size since `_forget_peak`, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


Case = tuple[str, Callable[[], Any]]
"""Its name, and what to do. It may return anything, refuse, or raise a Fault."""


def explore(tally: Tally, case: Callable[[int], Case], seconds: float, most: int = 10**9) -> None:
    """Run case(0), case(1), … for so many seconds, or `most` of them. A child that dies is replaced by the next."""
    end, done = time.monotonic() + seconds, 0
    while time.monotonic() < end and done < most:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            code = 1
            try:
                with os.fdopen(write, "w", buffering=1) as pipe:
                    _child(case, pipe, end, done, most)
                code = 0
            finally:
                os._exit(code)
        os.close(write)
        before = done
        done, last = _follow(tally, read, done)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            tally.fault(f"process killed by {signal.Signals(os.WTERMSIG(status)).name}", last)
            done += 1
        elif os.WEXITSTATUS(status) != 0 and done == before:
            raise RuntimeError(f"{tally.part}: the campaign itself failed after {last}")
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return


def _follow(tally: Tally, read: int, done: int) -> tuple[int, str]:
    last = "the first case"
    with os.fdopen(read) as pipe:
        for line in pipe:
            event = json.loads(line)
            if "begin" in event:
                last = event["begin"]
                continue
            done += 1
            tally.counts[event["what"]] += 1
            if "fault" in event:
                tally.fault(event["fault"], last)
    return done, last


def _child(case: Callable[[int], Case], pipe: Any, end: float, done: int, most: int) -> None:
    def too_long(*_: Any) -> None:
        raise TimeoutError(f"longer than {TIME_LIMIT} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.signal(signal.SIGPROF, too_long)
    # Twice what is allowed: what asks for more gets a MemoryError, and the machine stays whole.
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + 2 * MEMORY_LIMIT,) * 2)
    for number in range(done, most):
        if time.monotonic() > end:
            return
        name, act = case(number)
        pipe.write(json.dumps({"begin": name}) + "\n")
        pipe.write(json.dumps(_run(act)) + "\n")


def _run(act: Callable[[], Any]) -> dict[str, str]:
    _forget_peak()
    before = _peak()
    signal.alarm(10 * TIME_LIMIT)
    signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT)
    try:
        act()
        outcome = {"what": "accepted"}
    except TimeoutError as error:
        outcome = {"what": "failed", "fault": f"hang: {error}"}
    except Fault as error:
        outcome = {"what": "failed", "fault": str(error)}
    except Exception as error:
        refused = is_refusal(error)
        outcome = {"what": "refused"} if refused else {"what": "failed", "fault": f"traceback: {_where(error)}"}
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
    if _peak() - before > MEMORY_LIMIT:
        outcome = {"what": "failed", "fault": f"{(_peak() - before) / 1e9:.1f} GB of memory"}
    return outcome
