"""What a run needs to go on after its process was killed: one npz, replaced whole.

The trajectory and the log are only ever appended to (their first bytes apart, where formats keep counts), so a mark of
their sizes is enough to cut them back to the state's step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from egnn_md.data.reading import read_npz
from egnn_md.dynamics.settings import MDSettings
from egnn_md.storage import Hold, refuse_links, releasing_on_error, write_whole

if TYPE_CHECKING:
    from ase import Atoms

STATE_VERSION: Final = 1
_HEAD_BYTES: Final = 64
_ARRAYS: Final = ("numbers", "positions", "momenta", "masses", "cell", "pbc", "fixed")
_FILES: Final = ("trajectory.*", "log.csv", "state.npz", "summary.json", "plot.png", "topology.pdb", "last.extxyz")


class RunError(ValueError):
    """A run folder that cannot be used as asked; the message says what to do."""


@dataclass(frozen=True)
class FileMark:
    """How long a file was, and its first bytes, when a state was saved."""

    size: int
    head: bytes

    @staticmethod
    def of(path: Path) -> FileMark:
        """The file as it stands; a missing one has size 0."""
        if not path.exists():
            return FileMark(0, b"")
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            os.fsync(file.fileno())
            return FileMark(os.fstat(file.fileno()).st_size, head)

    def restore(self, path: Path) -> None:
        """Cut the file back. Raises RunError if it has become shorter: then frames are lost for good."""
        size = path.stat().st_size if path.exists() else 0
        if size < self.size:
            raise RunError(f"{path} is shorter than the run's state says: it cannot be continued")
        if self.size == 0:
            path.unlink(missing_ok=True)
            return
        with path.open("r+b") as file:
            file.truncate(self.size)
            file.write(self.head)
            os.fsync(file.fileno())


@dataclass(frozen=True)
class RestartState:
    """Everything that decides how a run goes on. Lengths Å, momenta Å amu / (Å sqrt(amu/eV))."""

    step: int
    arrays: dict[str, NDArray[Any]]
    """numbers, positions, momenta, masses, cell, pbc and fixed of the atoms, as ase holds them."""
    info: dict[str, Any]
    """Charge and spin of the structure, if it names them."""
    rng: dict[str, Any]
    """State of numpy's bit generator."""
    memory: dict[str, Any]
    """What the integrator remembers beside the atoms: of a barostat in ase, the momentum of the volume and the force
    on it; of OpenMM, its checkpoint."""
    settings: MDSettings
    information: dict[str, Any]
    """What the caller wants to know again: the model, its hash, device, dtype."""
    progress: dict[str, Any]
    """Bookkeeping of the loop: status, reference energy, degrees of freedom, seconds, largest extrapolation."""
    marks: dict[str, FileMark]
    """File name -> its length at this step."""

    def atoms(self) -> Atoms:
        """The atoms at this step, without a calculator."""
        return build_atoms(self.arrays, self.info)

    def save(self, path: Path) -> None:
        """Write atomically: a kill at any moment leaves the old state or the new one."""
        details = {
            "version": STATE_VERSION,
            "step": self.step,
            "info": self.info,
            "rng": self.rng,
            "memory": self.memory,
            "settings": self.settings.to_dict(),
            "information": self.information,
            "progress": self.progress,
            "marks": {name: [mark.size, mark.head.hex()] for name, mark in self.marks.items()},
        }
        with write_whole(path) as temporary, temporary.open("wb") as file:
            contents: dict[str, Any] = {"details": np.array(json.dumps(details)), **self.arrays}
            np.savez(file, **contents)
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def load(path: Path) -> RestartState:
        """Read a state. Raises RunError if it is missing, damaged or of a newer version."""
        if not path.exists():
            raise RunError(f"{path.parent} holds no run to resume (no {path.name} in it)")
        try:
            arrays = read_npz(path, ("details", *_ARRAYS), ())
            details = json.loads(str(arrays.pop("details")))
            if details["version"] > STATE_VERSION:
                raise RunError(f"{path} was written by a newer egnn-md: pip install -U egnn-md")
            settings = MDSettings.from_dict(details["settings"])
            marks = {name: FileMark(int(size), bytes.fromhex(head)) for name, (size, head) in details["marks"].items()}
            if marks.keys() != set(growing_files(settings.format)):  # files named here are cut back
                raise RunError(f"{path} is damaged: it names the files {', '.join(sorted(marks)) or 'none'}")
            return RestartState(
                arrays=arrays,
                settings=settings,
                marks=marks,
                **{name: details[name] for name in ("step", "info", "rng", "memory", "information", "progress")},
            )
        except RunError:
            raise
        except Exception as error:  # whatever zip, npy and JSON trip on in a file that somebody else may have made
            raise RunError(f"{path} is damaged: {error or type(error).__name__}") from error


def atom_arrays(atoms: Atoms) -> dict[str, NDArray[Any]]:
    """The arrays of a `RestartState`."""
    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        fixed[constraint.get_indices()] = True
    return {
        "numbers": atoms.get_atomic_numbers(),
        "positions": atoms.get_positions(),
        "momenta": atoms.get_momenta(),
        "masses": atoms.get_masses(),
        "cell": np.array(atoms.cell),
        "pbc": np.array(atoms.pbc),
        "fixed": fixed,
    }


def build_atoms(arrays: dict[str, NDArray[Any]], info: dict[str, Any]) -> Atoms:
    """Atoms with these arrays and nothing else: a run and its continuation hold the same."""
    from ase import Atoms
    from ase.constraints import FixAtoms

    atoms = Atoms(numbers=arrays["numbers"], positions=arrays["positions"], cell=arrays["cell"], pbc=arrays["pbc"])
    if (atoms.get_masses() != arrays["masses"]).any():
        atoms.set_masses(arrays["masses"])
    atoms.set_momenta(arrays["momenta"])
    atoms.info |= info
    if arrays["fixed"].any():
        atoms.set_constraint(FixAtoms(mask=arrays["fixed"]))
    return atoms


def refuse_old_run(folder: Path) -> None:
    """Raise RunError if the folder holds a run already."""
    if folder.is_dir() and any(run_files(folder)):
        raise RunError(f"{folder} already holds a run: --resume goes on with it, --overwrite replaces it")


def prepare_folder(folder: Path, overwrite: bool) -> Hold:
    """Make the folder of a new run, and keep it from others. Raises RunError if it holds one already or cannot be
    written, StorageError if another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise RunError(f"the folder {folder} cannot be written")
    with releasing_on_error(Hold(folder)) as hold:
        if not overwrite:
            refuse_old_run(folder)
        for path in list(run_files(folder)):
            path.unlink()
    return hold


def take_over(folder: Path, state: RestartState) -> Hold:
    """Keep the folder of a run that goes on from others.

    Raises RunError if the run went on after `state` was read, StorageError if another process has the folder or one of
    its files is a link.
    """
    with releasing_on_error(Hold(folder)) as hold:
        refuse_links(run_files(folder))
        if RestartState.load(folder / "state.npz").step != state.step:
            raise RunError(f"another process went on with the run in {folder} just now: --resume goes on from there")
    return hold


def growing_files(format: str) -> tuple[str, str]:
    """Names of the trajectory, as it grows, and of the log."""
    return f"trajectory.{'h5-frames' if format == 'h5' else format}", "log.csv"


def run_files(folder: Path) -> Iterable[Path]:
    """The files of a run in this folder, none of anybody else's."""
    return (path for pattern in _FILES for path in folder.glob(pattern))
