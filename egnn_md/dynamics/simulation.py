"""The loop of a run: step, observe, save, stop."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from egnn_md.dynamics.guard import BlowUp, Guard, refusals
from egnn_md.dynamics.integrators import integrator_memory, make_integrator, restore_memory
from egnn_md.dynamics.observers import Log, extrapolation, frame, observe
from egnn_md.dynamics.settings import MDSettings
from egnn_md.dynamics.state import FileMark, RestartState, RunError, atom_arrays
from egnn_md.dynamics.summary import summarize
from egnn_md.dynamics.trajectory import Frame, Trajectory
from egnn_md.shown import html_table
from egnn_md.storage import Hold, write_whole

if TYPE_CHECKING:
    from ase import Atoms

FLUSH_SECONDS: Final = 1.0
FLUSH_FRAMES: Final = 64
PROGRESS_SECONDS: Final = 0.2
STATE_SECONDS: Final = 10.0
"""Between restart states while running."""

Integrate = Callable[["Atoms", MDSettings, np.random.Generator], Any]
"""Makes an object whose `step()` moves the atoms."""
Progress = Callable[[int, dict[str, float]], None]
"""Called a few times a second with the step and "temperature_K" and "ns_per_day"."""


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is noted in `received`; a second one has its usual effect."""

    def __init__(self) -> None:
        self.received = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._old = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        self.__exit__()


class Simulation:
    """A run under way; made by `start` or `resume`."""

    def __init__(
        self,
        atoms: Atoms,
        settings: MDSettings,
        folder: Path,
        information: dict[str, Any],
        rng: np.random.Generator,
        progress: dict[str, Any],
        trajectory: Trajectory,
        hold: Hold,
        step: int = 0,
        memory: dict[str, Any] | None = None,
        integrate: Integrate = make_integrator,
    ) -> None:
        self.atoms, self.settings, self.folder, self.information = atoms, settings, folder, information
        self.step, self.progress, self.rng = step, progress, rng
        self.trajectory, self.log = trajectory, Log(folder, bool(atoms.pbc.all()))
        self._hold, self._failed_to_write = hold, False
        self._sizes = {path: _size(path) for path in (trajectory.growing, self.log.path)}
        self.integrator = integrate(atoms, settings, rng)
        restore_memory(self.integrator, memory or {})
        if "accepted" in progress:
            self.integrator.accepted = progress["accepted"]
        dof = int(progress["degrees_of_freedom"])
        self.guard = Guard(settings.temperature, dof, float(progress["reference_energy"]))
        self._frames: list[Frame] = []
        self._rows: list[dict[str, float]] = []
        self._last_row: dict[str, float] = {}
        self._flushed = self._begun = time.monotonic()
        self._first_step, self._earlier_s = step, float(progress["wall_s"])

    def run(self, progress: Progress | None = None, state_seconds: float = STATE_SECONDS) -> dict[str, Any]:
        """Step until the end, a blow-up, SIGINT or SIGTERM; returns the summary.

        Its "status" is "finished", "interrupted" (going on is possible) or "blew_up". Whatever else is raised, frames
        so far and the state of the last whole step are on disk.
        """
        with self._hold:
            return self._run(progress, state_seconds)

    def _run(self, progress: Progress | None, state_seconds: float) -> dict[str, Any]:
        self._begun, stop, reason = time.monotonic(), StopSignals(), None
        try:
            with stop:
                self._loop(stop, progress, state_seconds)
            self.progress["status"] = "finished" if self.step >= self.settings.steps else "interrupted"
        except BlowUp as error:
            self.progress["status"], reason = "blew_up", str(error)
        finally:
            self.save_state()
        self._write_last()
        interval_fs = self.settings.interval * self.settings.timestep
        self.trajectory.finish(self.atoms, interval_fs, complete=self.progress["status"] == "finished")
        expected = self._expected_force_error()
        return summarize(self._state(), self.folder, reason, stop.received, self.ns_per_day(), expected)

    def _repr_html_(self) -> str:
        """In a notebook: how far it is, and where its files are."""
        status, done = str(self.progress.get("status", "")), f"{self.step} of {self.settings.steps} steps"
        return html_table([("folder", str(self.folder)), ("status", status), ("done", done)])

    def ns_per_day(self) -> float:
        """Speed of this process's steps."""
        simulated = 1e-6 * (self.step - self._first_step) * self.settings.timestep
        return simulated / max(time.monotonic() - self._begun, 1e-9) * 86400.0

    def _loop(self, stop: StopSignals, progress: Progress | None, state_seconds: float) -> None:
        saved, told = time.monotonic(), 0.0
        while self.step < self.settings.steps and not stop.received:
            self._advance()
            if self.step % self.settings.interval == 0:
                self.record()
            now = time.monotonic()
            if now - saved >= state_seconds:
                self.save_state()
                saved = now
            elif now - self._flushed >= FLUSH_SECONDS or len(self._frames) >= FLUSH_FRAMES:
                self.flush()
            if progress is not None and (now - told >= PROGRESS_SECONDS or self.step == self.settings.steps):
                temperature = self._last_row.get("temperature_K", math.nan)
                progress(self.step, {"temperature_K": temperature, "ns_per_day": self.ns_per_day()})
                told = now

    def _advance(self) -> None:
        """One step, or an error with the atoms as they were before it."""
        atoms = self.atoms
        good = atoms.get_positions(), atoms.get_momenta(), atoms.cell.copy()
        rng_state, memory = self.rng.bit_generator.state, integrator_memory(self.integrator)
        try:
            self.integrator.step()
            self.guard.check(atoms)
        except BaseException as error:
            atoms.set_cell(good[2])
            atoms.set_positions(good[0], apply_constraint=False)
            atoms.set_momenta(good[1], apply_constraint=False)
            self.rng.bit_generator.state = rng_state
            restore_memory(self.integrator, memory)
            if isinstance(error, BlowUp):
                raise BlowUp(f"step {self.step + 1}: {error}") from error
            if isinstance(error, refusals()):
                raise BlowUp(f"step {self.step + 1}: the calculator refused the structure: {error}") from error
            raise
        self.step += 1
        self._note_extrapolation()

    def _note_extrapolation(self) -> None:
        now, largest = extrapolation(self.atoms), self.progress["max_extrapolation"]
        if not math.isnan(now) and (largest is None or now > largest):
            self.progress["max_extrapolation"] = now

    def _expected_force_error(self) -> float | None:
        """meV/Å, of the least familiar atom so far; None where the calculator does not know."""
        largest, tell = self.progress["max_extrapolation"], getattr(self.atoms.calc, "expected_force_error", None)
        error = math.nan if tell is None or largest is None else 1e3 * float(tell(largest))
        return None if math.isnan(error) else error

    def record(self) -> None:
        """Observe the present step."""
        time_fs = self.step * self.settings.timestep
        self._last_row = observe(self.atoms, time_fs, self.guard.degrees_of_freedom)
        self._note_extrapolation()
        self._rows.append(self._last_row)
        self._frames.append(frame(self.atoms, self.step, time_fs))

    def flush(self) -> None:
        """Write what was observed to the files. Raises RunError if they are not as this process left them."""
        if self._frames and not self._failed_to_write:
            self._failed_to_write = True  # what a failure leaves half written is cut off by a resume
            self._check_files(self._sizes)
            self.trajectory.append(self._frames)
            self.log.append(self._rows)
            self._sizes = {path: _size(path) for path in self._sizes}
            self._check_files({path: size or -1 for path, size in self._sizes.items()})  # removed while it was written
            self._failed_to_write = False
        self._frames, self._rows = [], []
        self._flushed = time.monotonic()

    def _check_files(self, sizes: dict[Path, int]) -> None:
        for path, size in sizes.items():
            if _size(path) != size:
                raise RunError(f"{path} was changed or removed while the run went on: what it held is lost")

    def save_state(self) -> None:
        """Flush, and save a state from which the run can go on; nothing after a flush that failed."""
        self.flush()
        if self._failed_to_write:
            return
        self.progress["wall_s"] = self._earlier_s + time.monotonic() - self._begun
        if hasattr(self.integrator, "accepted"):  # steps that passed the integrator's own test
            self.progress["accepted"] = self.integrator.accepted
        self._state().save(self.folder / "state.npz")

    def _state(self) -> RestartState:
        atoms = self.atoms
        files = (self.trajectory.growing, self.log.path)
        return RestartState(
            step=self.step,
            arrays=atom_arrays(atoms),
            info=dict(atoms.info),
            rng=dict(self.rng.bit_generator.state),
            memory=integrator_memory(self.integrator),
            settings=self.settings,
            information=self.information,
            progress=dict(self.progress),
            marks={path.name: FileMark.of(path) for path in files},
        )

    def _write_last(self) -> None:
        """The last good structure, as input for a next run: positions, velocities, cell."""
        from ase.io import write

        with write_whole(self.folder / "last.extxyz") as temporary:
            write(temporary, self.atoms.copy(), format="extxyz")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
