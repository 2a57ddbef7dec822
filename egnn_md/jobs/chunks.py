"""Long lists of structures in chunks, on any executor and any number of machines, whatever is killed and when.

A chunk is so many structures of the source, one after another. Its part-file in NAME.parts grows by a line for each
structure as it is done, and takes its final name when the chunk is whole: going on is looking at what is there. When
all chunks are, they become NAME, in the source's order: a table with a row for each, or structures, and NAME.csv beside
them with a line for each, the failed ones with their reason.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from egnn_md.jobs.source import Item
from egnn_md.storage import Hold, read_json, refuse_links, write_json, write_whole

if TYPE_CHECKING:
    from ase import Atoms

IN_FLIGHT: Final = 4
"""Chunks handed out for each worker: more of the source is not held in memory."""


class JobError(ValueError):
    """An output that cannot be written as asked, or workers that died; the message says what to do."""


@dataclass(frozen=True)
class Answer:
    """What became of one structure."""

    frames: Sequence[Atoms]
    """For the output: one, or those of a trajectory; none if it failed."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """Its line of the table, by column; "reason" is there if it failed, and says why."""
    text: str = ""
    """For the output in place of frames: its row, where the output is a table."""

    @staticmethod
    def failed(reason: str, text: str = "", **row: Any) -> Answer:
        """No frame, but a reason."""
        return Answer((), {**row, "reason": " ".join(reason.split())}, text)


Emit = Callable[[int, Answer], None]


class Worker(Protocol):
    """What is done with structures: picklable and hashable, the same in every process."""

    @property
    def columns(self) -> Sequence[str]:
        """Of the table, after "index" and "status", before "reason"."""
        ...

    @property
    def read(self) -> Callable[[Item], Any]:
        """What it takes of an item, such as `as_atoms`; a ValueError is the item's answer."""
        ...

    def open(self) -> Callable[[list[tuple[int, Any]], Emit], None]:
        """Load what it needs, once in each process. The function calls `emit` for each (place, what was read)."""
        ...


@dataclass(frozen=True)
class Counts:
    """How a job stands."""

    done: int
    failed: int
    finished: bool
    """Whether the output is there; otherwise other shards have chunks to do."""


class Job:
    """One source's way through a worker into `output`.

    `work`: what identifies the work (JSON values); what is there of other work is refused. `shard` (i, n): do each
    n-th chunk, from the i-th, 1 <= i <= n, as one job of an array. `head`: first line of an output that is a table
    itself and has none beside it. `note` is called with each record of the finished output: "index", "failed", "row".
    """

    def __init__(
        self,
        output: Path,
        worker: Worker,
        work: dict[str, Any],
        *,
        size: int,
        shard: tuple[int, int] = (1, 1),
        overwrite: bool = False,
        head: str | None = None,
        note: Callable[[Mapping[str, Any]], None] = lambda record: None,
    ) -> None:
        if size < 1:
            raise JobError(f"a chunk has at least 1 structure, not {size}")
        if not 1 <= shard[0] <= shard[1]:
            raise JobError(f"--shard i/n needs 1 <= i <= n, not {shard[0]}/{shard[1]}")
        if not output.absolute().parent.is_dir():
            raise JobError(f"the folder of {output} does not exist")
        self.output, self.table = output, output.with_name(output.name + ".csv")
        self.parts = output.with_name(output.name + ".parts")
        self.worker, self.size, self.shard, self.head, self.note = worker, size, shard, head, note
        work = json.loads(json.dumps({**work, "chunk": size}))
        refuse_links((self.parts,))
        if overwrite and shard == (1, 1):
            for lock in self.parts.glob(".shard-*.lock"):  # raises StorageError where a process is at work
                Hold(self.parts / lock.name.removeprefix(".").removesuffix(".lock")).release()
            shutil.rmtree(self.parts, ignore_errors=True)
        elif output.exists() and not overwrite:
            raise JobError(f"{output} exists: --overwrite replaces it, -o names another")
        self.parts.mkdir(exist_ok=True)
        refuse_links(self.parts.iterdir())
        self._claim(work)

    def _claim(self, work: dict[str, Any]) -> None:
        begun = self.parts / "work.json"
        if not begun.exists():
            write_json(begun, work)
        elif read_json(begun) != work:
            raise JobError(
                f"{self.parts} was begun with another input, model, teacher or option: repeat its own, "
                "or --overwrite begins anew"
            )

    def run(
        self,
        items: Iterable[Item],
        executor: Executor,
        workers: int = 1,
        progress: Callable[[int, int | None], None] = lambda done, total: None,
    ) -> Counts:
        """Do what has not been done of this shard; the last shard to finish writes the output.

        Raises JobError if workers die, and what the worker raises where it cannot be opened.
        """
        held = Hold(self.parts / f"shard-{self.shard[0]}")
        try:
            n_chunks = self._work_through(items, executor, workers, progress)
        finally:
            held.release()
        with self._merging():
            finished = self.parts.exists() and all(self._part(k).exists() for k in range(n_chunks))
            if finished:
                return self._merge(n_chunks)
        done = failed = 0
        for k in range(n_chunks):
            if self._part(k).exists():
                states = [record["failed"] for record in _records(self._part(k))]
                done, failed = done + len(states) - sum(states), failed + sum(states)
        return Counts(done, failed, self.output.exists() and not self.parts.exists())

    def _work_through(
        self, items: Iterable[Item], executor: Executor, workers: int, progress: Callable[[int, int | None], None]
    ) -> int:
        source, waiting, n_done, k = iter(items), set[Future[int]](), 0, 0
        try:
            while chunk := list(islice(source, self.size)):
                if k % self.shard[1] == self.shard[0] - 1 and not self._part(k).exists():
                    waiting.add(executor.submit(_do, self.worker, str(self._part(k)), k * self.size, chunk))
                k += 1
                while len(waiting) >= IN_FLIGHT * workers:
                    n_done += _collect(waiting)
                    progress(n_done, None)
            while waiting:
                n_done += _collect(waiting)
                progress(n_done, None)
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
        return k

    def _part(self, k: int) -> Path:
        return self.parts / f"{k:09d}.jsonl"

    @contextlib.contextmanager
    def _merging(self) -> Iterator[None]:
        """One shard after another; a lock that goes with its process."""
        try:
            file = (self.parts / "merge.lock").open("w")
        except FileNotFoundError:  # another shard has written the output and tidied up
            yield
            return
        with file:
            with contextlib.suppress(OSError):  # where the file system knows no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _merge(self, n_chunks: int) -> Counts:
        done = failed = 0
        with contextlib.ExitStack() as files:
            out = files.enter_context(files.enter_context(write_whole(self.output)).open("w", encoding="utf-8"))
            line = self._lines_beside(files)
            out.write(self.head or "")
            for k in range(n_chunks):
                for record in self._answers(k, last=k == n_chunks - 1):
                    try:
                        out.write(record["frames"])
                        line(record)
                        self.note(record)
                    except (ValueError, KeyError, TypeError) as error:  # of another shape than our own, or no text
                        raise _damaged(self._part(k)) from error
                    failed, done = failed + record["failed"], done + (not record["failed"])
        shutil.rmtree(self.parts)
        return Counts(done, failed, True)

    def _answers(self, k: int, last: bool) -> list[dict[str, Any]]:
        """Of a chunk, in order. Raises JobError unless there is one for each of its structures."""
        found = sorted(_records(self._part(k)), key=lambda record: record["index"])
        size = len(found) if last else self.size
        if [record["index"] for record in found] != list(range(k * self.size, k * self.size + size)):
            raise _damaged(self._part(k))
        return found

    def _lines_beside(self, files: contextlib.ExitStack) -> Callable[[dict[str, Any]], object]:
        """What writes a record's line of NAME.csv."""
        if self.head is not None:
            return lambda record: None
        file = files.enter_context(files.enter_context(write_whole(self.table)).open("w", newline="", encoding="utf-8"))
        writer = csv.DictWriter(file, ["index", "status", *self.worker.columns, "reason"], restval="")
        writer.writeheader()
        status = {False: "ok", True: "failed"}
        return lambda record: writer.writerow(
            {"status": status[record["failed"]], **record["row"], "index": record["index"]}
        )


def _collect(waiting: set[Future[int]]) -> int:
    """Wait for at least one; how many structures they did. Takes them out."""
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    waiting -= done
    total = 0
    for future in done:
        try:
            total += future.result()
        except Exception as error:
            if "Broken" in type(error).__name__ or "Lost" in type(error).__name__ or "Killed" in type(error).__name__:
                raise JobError(
                    f"a worker process died ({error or type(error).__name__}): out of memory? The same command goes on "
                    "where it was"
                ) from error
            raise
    return total


_opened: dict[Worker, Callable[[list[tuple[int, Any]], Emit], None]] = {}
"""In a worker process: what its worker has loaded. One at a time."""


def _do(worker: Worker, part: str, first: int, chunk: Sequence[Item]) -> int:
    """In the worker: one chunk into its part-file, going on with what a killed worker left of it."""
    if worker not in _opened:
        _opened.clear()
        _opened[worker] = worker.open()
    path, unfinished = Path(part), Path(part + ".part")
    with _alone(unfinished) as file:
        if path.exists():  # done by a worker of a run that was killed, which had not seen yet that it was
            return len(chunk)
        known = _mend(unfinished)

        def emit(index: int, answer: Answer) -> None:
            text = answer.text if answer.text else _as_text(answer.frames)
            record = {"index": index, "failed": "reason" in answer.row, "row": dict(answer.row), "frames": text}
            file.write(json.dumps(record) + "\n")
            file.flush()

        structures = []
        for index, item in enumerate(chunk, first):
            if index not in known:
                try:
                    structures.append((index, worker.read(item)))
                except ValueError as error:
                    emit(index, Answer.failed(str(error)))
        if structures:
            _opened[worker](structures, emit)
        os.fsync(file.fileno())
        found = {record["index"] for record in _records(unfinished)}
        if found != set(range(first, first + len(chunk))):
            raise JobError(f"{path}: {len(chunk) - len(found)} structures of the chunk got no answer")
        os.replace(unfinished, path)
    return len(chunk)


def _as_text(frames: Sequence[Atoms]) -> str:
    """As extxyz."""
    text = io.StringIO()
    if frames:
        import ase.io

        ase.io.write(text, list(frames), format="extxyz")
    return text.getvalue()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[Any]:
    """The file, to append to, by one process at a time; a lock that goes with its process."""
    with path.open("a") as file:
        with contextlib.suppress(OSError):  # where the file system knows no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


_KINDS: Final = {"index": int, "failed": bool, "row": dict, "frames": str}
"""What a line of a part-file has."""


def _mend(path: Path) -> set[int]:
    """Cut off a line that a kill left half written; the places of the whole ones."""
    if not path.exists():
        return set()
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) != len(text):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return {record["index"] for record in _records(path)}


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Raises JobError for lines that are none of ours."""
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
                sound = all(isinstance(record[name], kind) for name, kind in _KINDS.items())
            except (ValueError, KeyError, TypeError, RecursionError):
                sound = False
            if not sound:
                raise _damaged(path)
            yield record


def _damaged(path: Path) -> JobError:
    return JobError(f"{path} is damaged: remove it and go on, or --overwrite begins anew")
