"""The plot at the end of a run. matplotlib loads when it is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from egnn_md.chemistry.units import G_PER_CM3_PER_AMU_PER_A3
from egnn_md.dynamics.observers import read_log
from egnn_md.dynamics.summary import mean_and_error


def plot_run(log: Path, path: Path, n_atoms: int, ensemble: str, target: float, mass: float) -> None:
    """Energies per atom (meV, from the first line of the log) and temperature (K) over time (ps), as a png.

    In nve the total energy stands in a panel of its own: its conservation is the test of the run. In npt volume (Å³),
    density (g/cm³; `mass` in amu) and pressure (bar) have panels too. `target` in K.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    table = read_log(log)
    time = 1e-3 * table["time_fs"]
    conserved = ensemble == "nve"
    box = _box(table, mass) if ensemble == "npt" else {}
    n_panels = 2 + conserved + len(box)
    figure = Figure(figsize=(8, 2 + 2 * n_panels), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(n_panels, 1, sharex=True)))
    for name, label in (("epot_eV", "potential"), ("ekin_eV", "kinetic"), ("etot_eV", "total")):
        start = 0.0 if name == "ekin_eV" else table[name][0]
        axes[0].plot(time, 1e3 * (table[name] - start) / n_atoms, label=label, linewidth=0.8)
    _label(axes[0], "energy / meV per atom")
    if conserved:
        axes[1].plot(time, 1e3 * (table["etot_eV"] - table["etot_eV"][0]) / n_atoms, color="C2", linewidth=0.8)
        _label(axes[1], "total energy − start\n/ meV per atom", legend=False)
    warmth = axes[1 + conserved]
    warmth.plot(time, table["temperature_K"], color="C3", linewidth=0.8, label="temperature")
    if ensemble != "nve":
        warmth.axhline(target, color="black", linewidth=0.8, linestyle="--", label="thermostat")
    _label(warmth, "temperature / K")
    for axis, (label, values) in zip(axes[2 + conserved :], box.items(), strict=True):
        mean, error = mean_and_error(values)
        axis.plot(time, values, color="C0", linewidth=0.8)
        sure = f" ± {error:.2g}" if np.isfinite(error) else ""
        axis.axhline(mean, color="black", linewidth=0.8, linestyle=":", label=f"mean {mean:.5g}{sure}")
        _label(axis, label)
    axes[-1].set_xlabel("time / ps")
    figure.savefig(path, dpi=120)


def _box(table: dict[str, Any], mass: float) -> dict[str, Any]:
    """What a barostat moves, by the label of its axis."""
    volume = table["volume_A3"]
    density = mass * G_PER_CM3_PER_AMU_PER_A3 / volume
    return {"volume / Å³": volume, "density / g/cm³": density, "pressure / bar": table["pressure_bar"]}


def _label(axis: Any, text: str, legend: bool = True) -> None:
    axis.set_ylabel(text)
    axis.grid(alpha=0.3)
    if legend:
        axis.legend(loc="upper right", fontsize="small")
