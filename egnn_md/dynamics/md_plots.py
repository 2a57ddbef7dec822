"""The plot at the end of a run. matplotlib loads when it is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from egnn_md.dynamics.observers import read_log


def plot_run(log: Path, path: Path, n_atoms: int, ensemble: str, target: float) -> None:
    """Energies per atom (meV, from the first line of the log) and temperature (K) over time (ps), as a png.

    In nve the total energy stands in a panel of its own: its conservation is the test of the run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    table = read_log(log)
    time = 1e-3 * table["time_fs"]
    conserved = ensemble == "nve"
    figure = Figure(figsize=(8, 8 if conserved else 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(3 if conserved else 2, 1, sharex=True)))
    for name, label in (("epot_eV", "potential"), ("ekin_eV", "kinetic"), ("etot_eV", "total")):
        start = 0.0 if name == "ekin_eV" else table[name][0]
        axes[0].plot(time, 1e3 * (table[name] - start) / n_atoms, label=label, linewidth=0.8)
    _label(axes[0], "energy / meV per atom")
    if conserved:
        axes[1].plot(time, 1e3 * (table["etot_eV"] - table["etot_eV"][0]) / n_atoms, color="C2", linewidth=0.8)
        _label(axes[1], "total energy − start\n/ meV per atom", legend=False)
    axes[-1].plot(time, table["temperature_K"], color="C3", linewidth=0.8, label="temperature")
    if ensemble != "nve":
        axes[-1].axhline(target, color="black", linewidth=0.8, linestyle="--", label="thermostat")
    _label(axes[-1], "temperature / K")
    axes[-1].set_xlabel("time / ps")
    figure.savefig(path, dpi=120)


def _label(axis: Any, text: str, legend: bool = True) -> None:
    axis.set_ylabel(text)
    axis.grid(alpha=0.3)
    if legend:
        axis.legend(loc="upper right", fontsize="small")
