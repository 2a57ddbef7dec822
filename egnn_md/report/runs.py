"""The report of a run folder of `egnn-md md` or `egnn-md rollout`: what log, summary and trajectory say, to look at."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.units import G_PER_CM3_PER_AMU_PER_A3
from egnn_md.dynamics.bond_changes import bond_changes, listed
from egnn_md.dynamics.motion import autocorrelation, by_element, by_motion, spectrum
from egnn_md.dynamics.observers import read_log
from egnn_md.dynamics.summary import mean_and_error
from egnn_md.dynamics.torsions import rotatable, turnings
from egnn_md.report.charts import histogram, lines
from egnn_md.report.page import Page, Table
from egnn_md.report.scene import Scene, atom_signals, thinned
from egnn_md.storage import read_json

if TYPE_CHECKING:
    from ase import Atoms

Log = dict[str, NDArray[np.float64]]
WITH_MOMENTA: Final = ("traj", "extxyz")
"""Formats of trajectories that keep momenta."""
FASTEST: Final = 4.0
"""fs between frames, at most, for a spectrum: the stretches of hydrogen take 9."""
SPECTRUM_FRAMES: Final = 4096
"""The last ones."""
LEAST_FRAMES: Final = 250
LARGEST_WITH_TORSIONS: Final = 200
"""Atoms."""
LEAST_CROSSINGS: Final = 10
"""For a correlation time."""


def run_page(folder: str | Path) -> Page:
    """The page of a run folder. Raises OSError or ValueError if the folder holds no run."""
    folder = Path(folder)
    summary = read_json(folder / "summary.json")
    log = read_log(folder / "log.csv")
    settings = summary["settings"]
    frames, rows = _frames(folder, settings["format"], len(log["time_fs"]), summary["n_atoms"])
    times = [1e-3 * float(log["time_fs"][row]) for row in rows]
    labels = [_label(log, row) for row in rows]
    scene = Scene(frames, labels, times, _signals(summary, frames))
    last = _last_frames(folder, settings, frames)
    vibrations, lacking = _vibrations(last, settings)
    return Page(
        title=f"{summary['formula']}: {summary['time_ps']:g} ps of {settings['ensemble']}",
        subtitle=_subtitle(summary),
        tiles=_tiles(summary, log),
        bad=_worries(summary),
        scene=scene,
        charts=_charts(log, summary, float(frames[0].get_masses().sum()) if frames else np.nan) + vibrations,
        tables=[
            bond_table(frames),
            *_temperatures(frames, settings),
            *(_torsions(last, summary) if frames and _may_turn(frames[0]) else []),
            _settings_table(summary),
        ],
        notes=[
            f"Beside this page: log.csv, summary.json, trajectory.{settings['format']}, last.extxyz (to go on from).",
            *lacking,
            ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
        ],
    )


def _subtitle(summary: dict[str, Any]) -> str:
    known = summary["information"]
    done = summary["status"].replace("_", " ")
    reason = f" ({summary['reason']})" if summary["reason"] else ""
    structure = Path(known.get("structure", "")).name
    return f"{structure} with {known.get('model', 'a model')}; {summary['n_atoms']} atoms; {done}{reason}"


def _tiles(summary: dict[str, Any], log: Log) -> list[tuple[str, str]]:
    mean, error = mean_and_error(log["temperature_K"])
    tiles = [("temperature", with_error(mean, error, "K"))]
    drift = summary["energy_drift_meV_per_atom_per_ps"]
    if drift is not None:
        tiles.append(("energy drift", f"{drift:+.2g} meV/atom/ps"))
    if summary["max_extrapolation"] is not None:
        tiles.append(("largest extrapolation", f"{summary['max_extrapolation']:.2f}"))
    if "accepted_fraction" in summary:
        tiles.append(("strides accepted", f"{100 * summary['accepted_fraction']:.0f} %"))
    for name, label, unit in (("pressure_bar", "pressure", "bar"), ("volume_A3", "volume", "Å³")):
        if name in log:
            mean, error = mean_and_error(log[name])
            tiles.append((label, with_error(mean, error, unit)))
    tiles.append(("speed", f"{summary['ns_per_day']:.2f} ns/day"))
    return tiles


def _worries(summary: dict[str, Any]) -> list[str]:
    signal = summary["max_extrapolation"]
    return ["largest extrapolation"] if signal is not None and signal > 2 else []


def with_error(mean: float, error: float, unit: str) -> str:
    """ "301.4 ± 2.1 K": as many digits as the error has; none where it is not known."""
    if not np.isfinite(error) or error <= 0:
        return f"{mean:.4g} {unit}"
    digits = max(0, 1 - int(np.floor(np.log10(error)) + 0.5))
    return f"{mean:.{digits}f} ± {error:.{digits}f} {unit}"


def _charts(log: Log, summary: dict[str, Any], mass: float) -> list[str]:
    """Over time, and the temperatures as a distribution. `mass` in amu."""
    time, n_atoms, settings = 1e-3 * log["time_fs"], summary["n_atoms"], summary["settings"]
    per_atom = {
        "potential": 1e3 * (log["epot_eV"] - log["epot_eV"][0]) / n_atoms,
        "kinetic": 1e3 * log["ekin_eV"] / n_atoms,
        "total": 1e3 * (log["etot_eV"] - log["etot_eV"][0]) / n_atoms,
    }
    level = None if settings["ensemble"] == "nve" else settings["temperature"]
    charts = [lines("Energies, since the start", time, per_atom, "time / ps", "meV per atom")]
    if settings["ensemble"] == "nve":
        charts.append(
            lines("Total energy: is it kept?", time, {"total": per_atom["total"]}, "time / ps", "meV per atom")
        )
    charts.append(lines("Temperature", time, {"temperature": log["temperature_K"]}, "time / ps", "K", level))
    signal = {"largest of the atoms": log["extrapolation"]}
    charts.append(lines("Extrapolation: above 1, unlike the training data", time, signal, "time / ps", "signal", 1.0))
    if "volume_A3" in log:
        density = {"density": mass * G_PER_CM3_PER_AMU_PER_A3 / log["volume_A3"]}
        charts.append(lines("Density", time, density, "time / ps", "g/cm³"))
        charts.append(lines("Volume", time, {"volume": log["volume_A3"]}, "time / ps", "Å³"))
        charts.append(lines("Pressure", time, {"pressure": log["pressure_bar"]}, "time / ps", "bar"))
    mean, error = mean_and_error(log["temperature_K"])
    note = f"mean {with_error(mean, error, 'K')}, the first fifth left out"
    charts.append(histogram("Temperatures", log["temperature_K"][1:], "K", note))
    return charts


def _label(log: Log, row: int) -> str:
    time, hot, signal = log["time_fs"][row], log["temperature_K"][row], log["extrapolation"][row]
    told = f", extrapolation {signal:.2f}" if np.isfinite(signal) else ""
    return f"{1e-3 * time:.3f} ps, {hot:.0f} K{told}"


def _signals(summary: dict[str, Any], frames: list[Atoms]) -> list[Any]:
    """Of each atom of each frame, where the model has them and still is where it was."""
    try:
        return atom_signals(summary["information"]["model"], frames)
    except Exception:  # a flow map, a model that has gone: the page lacks a colour
        return []


def _frames(folder: Path, kind: str, n_rows: int, n_atoms: int) -> tuple[list[Atoms], list[int]]:
    """Frames spread over the trajectory, and the lines of the log that they belong to."""
    chosen = thinned(n_rows, n_atoms)
    if kind in ("xtc", "dcd", "h5"):
        return _through_mdtraj(folder, kind, chosen)
    path = folder / f"trajectory.{kind}"
    if kind == "traj":
        from ase.io.trajectory import Trajectory

        with Trajectory(str(path)) as file:
            chosen = [k for k in chosen if k < len(file)]
            return [file[k] for k in chosen], chosen
    from ase.io import iread

    wanted, frames = set(chosen), []
    for k, atoms in enumerate(iread(path, index=":")):
        if k in wanted:
            frames.append(atoms)
    return frames, chosen[: len(frames)]


def _through_mdtraj(folder: Path, kind: str, chosen: list[int]) -> tuple[list[Atoms], list[int]]:
    stride = max(1, (chosen[1] - chosen[0]) if len(chosen) > 1 else 1)
    frames = _read_through_mdtraj(folder, kind, stride)
    return frames, [stride * k for k in range(len(frames))]


def _read_through_mdtraj(folder: Path, kind: str, stride: int, most: int | None = None) -> list[Atoms]:
    """Every stride-th frame, or the last of them, of a format without elements and velocities."""
    import mdtraj
    from ase import Atoms
    from ase.io import read

    path = folder / f"trajectory.{kind}"
    top = None if kind == "h5" else str(folder / "topology.pdb")
    start: Any = read(folder / "last.extxyz")
    with _silent_c():
        loaded = mdtraj.load(str(path), stride=stride, **({} if top is None else {"top": top}))
    frames = []
    for k in range(len(loaded))[-(most or len(loaded)) :]:
        cell = None if loaded.unitcell_vectors is None else 10.0 * loaded.unitcell_vectors[k]
        frames.append(Atoms(start.numbers, 10.0 * loaded.xyz[k], cell=cell, pbc=start.pbc))
    return frames


@contextmanager
def _silent_c() -> Iterator[None]:
    """What C code prints on standard output is lost: mdtraj's reader of dcd speaks where results belong."""
    flush = ctypes.CDLL(None).fflush
    flush(None)
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def bond_table(frames: list[Atoms]) -> Table:
    """Bonds that the last frame has and the first has not, and the other way round."""
    changes = bond_changes(frames[0], frames[-1]) if len(frames) > 1 else None
    if changes is None:
        return Table("Bonds", ["", ""], [["compared", "no"]])
    rows: list[list[Any]] = [["at the start", changes.n_start]]
    rows += [["broken", listed(changes.broken)], ["formed", listed(changes.formed)]]
    return Table("Bonds, at the start and at the end", ["", ""], rows)


def _temperatures(frames: list[Atoms], settings: dict[str, Any]) -> list[Table]:
    """Of each kind of motion and each element of an isolated molecule, from frames with momenta: all alike where energy
    is shared as it must be. Without a thermostat translation and rotation keep what they began with.
    """
    later = [atoms for atoms in frames[len(frames) // 5 :] if atoms.has("momenta")]
    if len(later) < 10 or later[0].pbc.any() or len(later[0]) < 2:
        return []
    found: dict[str, list[float]] = {}
    for atoms in later:
        state = (atoms.get_masses(), atoms.positions, atoms.get_momenta())
        kinds = by_motion(*state)
        if settings["ensemble"] == "nve":
            kinds = {"internal": kinds["internal"]}
        for name, kelvin in (kinds | by_element(atoms.numbers, *state)).items():
            found.setdefault(name, []).append(kelvin)
    rows: list[list[Any]] = []
    for name, values in found.items():
        mean, error = mean_and_error(np.array(values), equilibrated=True)
        if np.isfinite(mean):
            rows.append([name, with_error(mean, error, "K")])
    return [Table("Temperatures of motions and elements", ["of", "mean"], rows)]


def _torsions(frames: list[Atoms], summary: dict[str, Any]) -> list[Table]:
    """How often bonds of an isolated molecule turn, and how many independent conformations a second of computing makes:
    from the last frames.
    """
    if len(frames) < LEAST_FRAMES:
        return []
    settings, speed = summary["settings"], summary["ns_per_day"]
    interval = 1e-3 * settings["interval"] * settings["timestep"]  # ps
    picoseconds = interval * len(frames)
    rows: list[list[Any]] = []
    for bond in turnings(frames[0].numbers, np.stack([atoms.positions for atoms in frames])):
        known = ["", ""]
        if bond.crossings >= LEAST_CROSSINGS:
            memory = interval * bond.memory
            known = [f"{memory:.2g}", f"{1e3 * speed / (2.0 * memory * 86400.0):.2g}" if speed else ""]
        rows.append([bond.name, bond.crossings, f"{1e3 * bond.crossings / picoseconds:.3g}", *known])
    heads = ["dihedral", "crossings", "a nanosecond", "correlation time / ps", "independent a second"]
    return [Table(f"Bonds that turn, in the last {picoseconds:.3g} ps", heads, rows)] if rows else []


def _may_turn(atoms: Atoms) -> bool:
    """Whether it is an isolated molecule with bonds that can."""
    if len(atoms) > LARGEST_WITH_TORSIONS or atoms.pbc.any():
        return False
    return bool(rotatable(atoms.numbers, atoms.positions))


def _last_frames(folder: Path, settings: dict[str, Any], first: list[Atoms]) -> list[Atoms]:
    """The last `SPECTRUM_FRAMES`, where a spectrum or torsions can be had of them; `first`: some of all frames."""
    kind = settings["format"]
    dense = settings["interval"] * settings["timestep"] <= FASTEST and kind in WITH_MOMENTA
    if not dense and not (first and _may_turn(first[0])):
        return []
    if kind not in WITH_MOMENTA:
        return _read_through_mdtraj(folder, kind, 1, SPECTRUM_FRAMES)
    from ase.io import read

    frames: Any = read(folder / f"trajectory.{kind}", index=f"-{SPECTRUM_FRAMES}:")
    return list(frames)


def _vibrations(frames: list[Atoms], settings: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Charts of the spectrum of velocities and of their autocorrelation; or a note of what they lack."""
    kind, interval = settings["format"], settings["interval"] * settings["timestep"]
    if interval > FASTEST or kind not in WITH_MOMENTA:
        needed = (
            f"frames at most {FASTEST:g} fs apart (--interval) in a format with momenta ({', '.join(WITH_MOMENTA)})"
        )
        return [], [f"A spectrum of vibrations needs {needed}: these are {interval:g} fs apart, in {kind}."]
    if len(frames) < LEAST_FRAMES or not all(atoms.has("momenta") for atoms in frames):
        return [], [f"A spectrum of vibrations needs {LEAST_FRAMES} frames."]
    masses, velocities = frames[0].get_masses(), np.stack([atoms.get_velocities() for atoms in frames])
    wavenumbers, power = spectrum(velocities[None], masses, interval)
    shown = wavenumbers <= 4200
    memory = autocorrelation(velocities, masses, round(500 / interval))
    time = interval * np.arange(len(memory))
    note = f"from the last {1e-3 * interval * len(frames):.3g} ps"
    if settings["ensemble"] != "nve":
        note += "; a thermostat, and strides that are taken back, widen the bands: nve has none"
    power = power[shown] / power[shown].max()
    return [
        lines(
            "Spectrum of the velocities",
            wavenumbers[shown],
            {"power": power},
            "cm⁻¹",
            "power",
            of_frames=False,
            note=note,
        ),
        lines("Velocity autocorrelation", time, {"all atoms": memory}, "time / fs", "C(t)/C(0)", 0.0, of_frames=False),
    ], []


def _settings_table(summary: dict[str, Any]) -> Table:
    units = {"temperature": "K", "pressure": "bar", "friction": "1/ps", "timestep": "fs"}
    values = {**summary["settings"], **{k: v for k, v in summary["information"].items() if "sha256" not in k}}
    rows = [[name, f"{value} {units.get(name, '')}".strip()] for name, value in values.items() if value is not None]
    return Table("Settings", ["", ""], rows)
