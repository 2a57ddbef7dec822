"""The rounds of a distillation: explore, choose, label, measure before training, train.

Each step leaves a file, written whole, and is done only where its file is not there: going on after a kill is running
again. What is random comes of the seed and the round.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from egnn_md.distill.explore import choose, explore
from egnn_md.distill.label import LabelWorker
from egnn_md.distill.settings import DistillError, Settings
from egnn_md.distill.start import first_frames, numbers_of, read_molecules, read_own
from egnn_md.distill.student import Length, load_student, measure, starting_model, train
from egnn_md.distill.teacher import Teacher
from egnn_md.storage import Hold, read_json, write_json, write_whole

if TYPE_CHECKING:
    from ase import Atoms

GAIN: Final = 0.95
"""A round that leaves more than this of the error has brought nothing; two such end the distillation."""
ROUND_SHARE, LAST_SHARE = 0.15, 0.65
"""Of the budget that is left: for the training of a round, and for the last one."""
EXPLORE_SHARE, LABEL_SHARE = 0.1, 0.2
"""Of the budget that is left: for the dynamics of a round and for its labels; what is left after the last training goes
into the test in the same way, but more of it."""
TEST_SHARE: Final = 0.3
SHORTEST: Final = 10.0
"""Seconds of a training, whatever is left."""
FEWEST_LABELS: Final = 10
LABELS, LABELS_IN_BUDGET = 100, 500
"""Of a round, unless the settings say; with a budget, as many of these as fit into their share of it."""
CHUNK: Final = 8
FRAMES_OF_A_COPY: Final = 40
CANDIDATES: Final = 4
"""Frames that dynamics keeps to choose from: so many of each copy, and so many for each label, at least."""
TEST_FRAMES: Final = 30
"""For each temperature, never trained on."""


@dataclass(frozen=True)
class Machine:
    """Who labels, and who is told."""

    executor: Executor
    workers: int = 1
    tell: Callable[[str], None] = lambda text: None


class Distillation:
    """A folder and its settings; `run` does what has not been done. Raises DistillError if the folder has others."""

    def __init__(self, folder: Path, settings: Settings, machine: Machine) -> None:
        self.folder, self.settings, self.machine = folder, settings, machine
        self.teacher = Teacher.parse(settings.teacher, list(settings.options))
        folder.mkdir(parents=True, exist_ok=True)
        self.hold = Hold(folder)
        note = folder / "distill.json"
        if note.exists():
            if Settings.from_dict(read_json(note)) != settings:
                raise DistillError(f"{folder} holds another distillation: --resume {folder} goes on with it")
        else:
            self.teacher.open()  # refused before anything is written
            read_molecules(list(settings.molecules), settings.seed)
            write_json(note, settings.to_dict())
        self.starts = self._starts()
        self.labels = settings.labels or (LABELS if settings.budget is None else LABELS_IN_BUDGET)
        self.label_seconds: float | None = None
        """Of one label, by all workers together."""
        self.began, self.spent = time.monotonic(), self._spent_before()

    def run(self) -> dict[str, Any]:
        """All that is left to do; the summary."""
        from egnn_md.distill.card import finish

        start = starting_model(self.settings.start, self.starts)
        student, data, errors = start, list[Path](), list[dict[str, Any]]()
        for k in range(self.settings.rounds):
            folder = self.folder / "rounds" / f"{k:02d}"
            labelled = self._labelled(folder, k, student)
            data.append(labelled)
            if student is not None:
                errors.append(self._measured(folder, k, student, labelled))
            last = self._is_last(k, errors)
            if not last or student is None:
                student = str(
                    train(folder / "train", "student", data, student, self._length(k), self.settings.seed + k)
                )
            self._note_time()
            if last:
                break
        length = self._length(self.settings.rounds, last=True)
        last_folder = self.folder / "last"
        model = train(last_folder / "train", self.folder.resolve().name, data, student, length, self.settings.seed + 99)
        test = self._labelled(last_folder, 99, str(model), test=True)
        self._note_time()
        left = self._share(1.0)
        summary = finish(self.folder, self.settings, self.teacher, model, data, test, errors, start, left)
        self.hold.release()
        return summary

    def _starts(self) -> list[Atoms]:
        import ase.io

        path = self.folder / "starts.extxyz"
        if not path.exists():
            with write_whole(path) as temporary:
                ase.io.write(temporary, read_molecules(list(self.settings.molecules), self.settings.seed))
        return read_own(path)

    def _labelled(self, folder: Path, k: int, student: str | None, test: bool = False) -> Path:
        """The labelled frames of a round; all steps that lead to them."""
        import ase.io

        from egnn_md.jobs.chunks import Job
        from egnn_md.jobs.source import read_items

        chosen, labelled = folder / "chosen.extxyz", folder / "labelled.extxyz"
        folder.mkdir(parents=True, exist_ok=True)
        if not chosen.exists():
            frames = self._chosen(k, student, test)
            with write_whole(chosen) as temporary:
                ase.io.write(temporary, frames, format="extxyz")
        if not labelled.exists():
            self.machine.tell(f"{_name(k)}: labelling {len(read_own(chosen))} frames")
            worker = LabelWorker(self.teacher)
            job = Job(labelled, worker, {"verb": "distill", **self.teacher.identity()}, size=CHUNK)
            counts = job.run(read_items(chosen), self.machine.executor, self.machine.workers)
            if counts.failed:
                self.machine.tell(f"{counts.failed} labels failed; {job.table} says why")
            if counts.done == 0:
                raise DistillError(f"the teacher labelled none of {counts.failed} frames: see {job.table}")
        return labelled

    def _chosen(self, k: int, student: str | None, test: bool) -> list[Atoms]:
        settings = self.settings
        seed = settings.seed + 1000 * (k + 1)
        if student is None:
            return first_frames(self.starts, self._n_labels(self.labels, LABEL_SHARE), seed)
        span = settings.picoseconds * (1.0 if test else min(1.0, 2.0 ** (k + 1 - settings.rounds)))
        n_labels = self._n_labels(self.labels, LABEL_SHARE)
        self.machine.tell(f"{_name(k)}: {settings.copies} copies of {span:g} ps")
        found = explore(
            load_student(student),
            self.starts,
            settings.temperatures,
            copies=settings.copies,
            picoseconds=span,
            timestep=settings.timestep,
            name=_name(k),
            seed=seed,
            n_frames=max(FRAMES_OF_A_COPY, CANDIDATES * n_labels // settings.copies),
            seconds=self._share(TEST_SHARE if test else EXPLORE_SHARE),
        )
        if found.ended:
            self.machine.tell(", ".join(f"{count} copies ended: {reason}" for reason, count in found.ended.items()))
        if not found.frames:
            raise DistillError("every copy blew up at its first step: give better structures")
        if not test:
            return choose(found.frames, n_labels, seed)
        rng, frames = np.random.default_rng([seed, 3]), []
        tags = list(dict.fromkeys(atoms.info["tag"] for atoms in found.frames))
        of_each = -(-self._n_labels(TEST_FRAMES * len(tags), TEST_SHARE) // len(tags))
        for tag in tags:
            of_tag = [atoms for atoms in found.frames if atoms.info["tag"] == tag]
            for place in sorted(rng.permutation(len(of_tag))[:of_each]):
                of_tag[place].info["draw"] = "test"
                frames.append(of_tag[place])
        return frames

    def _measured(self, folder: Path, k: int, student: str, labelled: Path) -> dict[str, Any]:
        """The error of the student before it has seen the round's frames, on those drawn at random."""
        path = folder / "measured.json"
        if not path.exists():
            frames = [atoms for atoms in read_own(labelled) if atoms.info.get("draw") == "random"]
            if not frames:
                raise DistillError(f"none of the frames drawn at random could be labelled: see {labelled}.csv")
            write_json(path, {"round": k, "model": student, **measure(student, frames)})
        found: dict[str, Any] = numbers_of(path, "force_mae", "n_frames", "round")
        self.machine.tell(f"{_name(k)}: {found['force_mae']:.1f} meV/Å on {found['n_frames']} frames it has not seen")
        return found

    def _is_last(self, k: int, errors: list[dict[str, Any]]) -> bool:
        maes = [found["force_mae"] for found in errors]
        if self.settings.target is not None and maes and maes[-1] <= self.settings.target:
            return True
        if len(maes) >= 3 and maes[-1] > GAIN * maes[-2] and maes[-2] > GAIN * maes[-3]:
            return True
        if self.settings.budget is not None and self._elapsed() > 0.5 * self.settings.budget:
            return True
        return k == self.settings.rounds - 1

    def _length(self, k: int, last: bool = False) -> Length:
        """Of a training: as the settings say, or its share of the budget. Kept, once decided."""
        path = self.folder / "rounds" / f"length-{'last' if last else k}.json"
        seconds = self._share(LAST_SHARE if last else ROUND_SHARE)
        if seconds is None:
            return Length(steps=self.settings.steps * (3 if last else 1))
        if not path.exists():
            write_json(path, {"minutes": max(seconds, SHORTEST) / 60.0})
        return Length(minutes=float(numbers_of(path, "minutes")["minutes"]))

    def _share(self, share: float) -> float | None:
        """Seconds: so much of the budget that is left; None without one."""
        if self.settings.budget is None:
            return None
        return share * max(0.0, self.settings.budget - self._elapsed())

    def _n_labels(self, count: int, share: float) -> int:
        """As many of `count` labels as fit into a share of the budget, by the time of one."""
        seconds = self._share(share)
        if seconds is None:
            return count
        if self.label_seconds is None:
            calculate, atoms, began = self.teacher.open(), self.starts[0].copy(), time.monotonic()
            with contextlib.suppress(Exception):  # the worker says why, structure by structure
                atoms.calc = calculate(atoms)
                atoms.get_forces()
            self.label_seconds = (time.monotonic() - began) / self.machine.workers
        return min(count, max(FEWEST_LABELS, int(seconds / max(self.label_seconds, 1e-6))))

    def _spent_before(self) -> float:
        path = self.folder / "time.json"
        return float(numbers_of(path, "seconds")["seconds"]) if path.exists() else 0.0

    def _elapsed(self) -> float:
        return self.spent + time.monotonic() - self.began

    def _note_time(self) -> None:
        write_json(self.folder / "time.json", {"seconds": round(self._elapsed(), 1)})


def _name(k: int) -> str:
    return "test" if k == 99 else f"round {k}"
