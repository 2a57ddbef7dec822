"""What a run records of each observed step: a line of log.csv and a frame of the trajectory."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.units import EV_PER_A3_PER_BAR
from egnn_md.dynamics.guard import temperature
from egnn_md.dynamics.state import RunError
from egnn_md.dynamics.trajectory import Frame
from egnn_md.storage import naming

if TYPE_CHECKING:
    from ase import Atoms

COLUMNS: Final = ("time_fs", "epot_eV", "ekin_eV", "etot_eV", "temperature_K", "extrapolation")
PERIODIC_COLUMNS: Final = ("volume_A3", "pressure_bar")
_FORMATS: Final = {"time_fs": ".12g", "temperature_K": ".4f", "extrapolation": ".5g", "pressure_bar": ".3f"}


def observe(atoms: Atoms, time_fs: float, degrees_of_freedom: int) -> dict[str, float]:
    """One line of the log. Volume and pressure (virial and kinetic part) only with three periodic directions."""
    potential, kinetic = float(atoms.get_potential_energy()), float(atoms.get_kinetic_energy())
    row = {
        "time_fs": time_fs,
        "epot_eV": potential,
        "ekin_eV": kinetic,
        "etot_eV": potential + kinetic,
        "temperature_K": temperature(kinetic, degrees_of_freedom),
        "extrapolation": extrapolation(atoms),
    }
    if atoms.pbc.all():
        volume = float(atoms.get_volume())
        virial = -float(np.trace(atoms.get_stress(voigt=False))) / 3.0
        row |= {
            "volume_A3": volume,
            "pressure_bar": (virial + 2.0 * kinetic / (3.0 * volume)) / EV_PER_A3_PER_BAR,
        }
    return row


def extrapolation(atoms: Atoms) -> float:
    """The calculator's extrapolation signal, its largest over the atoms; NaN if it gives none."""
    value = atoms.calc.results.get("extrapolation", math.nan)
    return float(np.max(value))


def frame(atoms: Atoms, step: int, time_fs: float) -> Frame:
    """A copy of the atoms with momenta, energy and, if the calculator has them, forces."""
    from ase.calculators.singlepoint import SinglePointCalculator

    copy = atoms.copy()
    copy.info |= {"step": step, "time_fs": time_fs}
    results: dict[str, Any] = {"energy": float(atoms.get_potential_energy())}
    if "forces" in atoms.calc.implemented_properties:
        results["forces"] = atoms.get_forces(apply_constraint=False)
    copy.calc = SinglePointCalculator(copy, **results)
    return Frame(step, time_fs, copy)


class Log:
    """log.csv of a run folder, appended to."""

    def __init__(self, folder: Path, periodic: bool) -> None:
        self.path = folder / "log.csv"
        self.columns = COLUMNS + (PERIODIC_COLUMNS if periodic else ())

    def append(self, rows: list[dict[str, float]]) -> None:
        """Write lines to the end of the file, the column names first if it is new."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        if not self.path.exists():
            writer.writerow(self.columns)
        for row in rows:
            writer.writerow([format(row[name], _FORMATS.get(name, ".7f")) for name in self.columns])
        with naming(self.path), self.path.open("a", newline="") as file:
            file.write(text.getvalue())


def read_log(path: Path) -> dict[str, NDArray[np.float64]]:
    """Columns of a log.csv by name."""
    with path.open() as file:
        names = file.readline().strip().split(",")
        table = np.array([line.split(",") for line in file], dtype=np.float64).reshape(-1, len(names))
    return {name: table[:, k] for k, name in enumerate(names)}


def check_log(path: Path, n_steps: int, interval: int, timestep: float) -> None:
    """Raise RunError unless a log has one line for every `interval` of `n_steps` steps, in their order."""
    try:
        times = read_log(path)["time_fs"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    expected = interval * timestep * np.arange(n_steps // interval + 1)
    if times.shape != expected.shape or not np.allclose(times, expected, rtol=1e-9, atol=1e-6):
        raise RunError(
            f"{path} does not have one line for each {interval * timestep:g} fs in their order: something else wrote "
            "there too, and what the trajectory holds cannot be told. Begin anew from last.extxyz"
        )
