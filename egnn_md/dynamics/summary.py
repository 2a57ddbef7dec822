"""summary.json: what a run did, in numbers, from its log and its state."""

from __future__ import annotations

import math
import platform
import signal
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from egnn_md import __version__
from egnn_md.chemistry.elements import symbol
from egnn_md.dynamics.observers import read_log
from egnn_md.dynamics.state import RestartState
from egnn_md.storage import write_json

EQUILIBRATION: Final = 0.2
"""Share of a run that means leave out."""
BLOCKS: Final = 10


def summarize(
    state: RestartState,
    folder: Path,
    reason: str | None,
    received: int,
    ns_per_day: float,
    expected_force_error: float | None = None,
) -> dict[str, Any]:
    """Write and return the summary. `reason` says how a run blew up; `received` is the signal that stopped it.

    "energy_drift_meV_per_atom_per_ps" is the slope of a line through the total energy; null but in nve, where alone it
    means something. Means leave the first fifth of the log out; their standard errors are those of ten blocks, null
    where the log is too short for one.
    """
    log = read_log(folder / "log.csv")
    n_atoms = len(state.arrays["numbers"])
    conserved = state.settings.ensemble == "nve"
    drift = _slope(1e-3 * log["time_fs"], 1e3 * log["etot_eV"] / n_atoms) if conserved else None
    summary = {
        "status": state.progress["status"],
        "reason": reason or (signal.Signals(received).name if received else None),
        "steps": state.step,
        "time_ps": 1e-3 * state.step * state.settings.timestep,
        "n_atoms": n_atoms,
        "formula": _formula(state.arrays["numbers"]),
        **_means(log),
        "energy_drift_meV_per_atom_per_ps": drift,
        "max_extrapolation": state.progress["max_extrapolation"],
        "expected_force_error_meV_per_A": expected_force_error,
        "degrees_of_freedom": state.progress["degrees_of_freedom"],
        "ns_per_day": ns_per_day,
        "wall_s": state.progress["wall_s"],
        **(
            {"accepted_fraction": state.progress["accepted"] / max(state.step, 1)}
            if "accepted" in state.progress
            else {}
        ),
        "settings": state.settings.to_dict(),
        "information": state.information,
        "versions": versions(),
    }
    write_json(folder / "summary.json", summary)
    return summary


def mean_and_error(values: NDArray[np.float64], equilibrated: bool = False) -> tuple[float, float]:
    """Mean without the first fifth (all of it if `equilibrated`), and its standard error from the means of ten blocks
    (NaN for few values).
    """
    first = 0 if equilibrated else int(EQUILIBRATION * len(values)) if len(values) > 5 else min(1, len(values) - 1)
    later = values[first:]
    if len(later) < 20:
        return float(later.mean()), float("nan")
    blocks = [block.mean() for block in np.array_split(later, BLOCKS)]
    return float(later.mean()), float(np.std(blocks, ddof=1) / np.sqrt(len(blocks)))


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    if len(x) < 3:
        return None
    centred = x - x.mean()
    slope = float(centred @ (y - y.mean()) / (centred @ centred))
    return slope if math.isfinite(slope) else None


def _means(log: dict[str, NDArray[np.float64]]) -> dict[str, float | None]:
    """ "mean_NAME" and "mean_NAME_error" of what has a mean; None for what was not logged, or only once."""
    found: dict[str, float | None] = {}
    for name in ("temperature_K", "volume_A3", "pressure_bar"):
        known = name in log and len(log[name]) > 1
        mean, error = mean_and_error(log[name]) if known else (math.nan, math.nan)
        found[f"mean_{name}"] = mean if math.isfinite(mean) else None
        found[f"mean_{name}_error"] = error if math.isfinite(error) else None
    return found


def _formula(numbers: NDArray[np.int64]) -> str:
    """Elements by atomic number with carbon and hydrogen first: C2H6O."""
    counts = {symbol(int(z)): int((numbers == z).sum()) for z in np.unique(numbers)}
    first = [name for name in ("C", "H") if name in counts and "C" in counts]
    order = first + sorted(counts.keys() - set(first))
    return "".join(f"{name}{counts[name] if counts[name] > 1 else ''}" for name in order)


def versions() -> dict[str, str]:
    """Of everything that numbers depend on."""
    found = {"egnn_md": __version__, "python": platform.python_version()}
    for name in ("torch", "ase", "openmm", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
