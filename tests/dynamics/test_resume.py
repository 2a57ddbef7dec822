"""A run that was stopped, killed or went wrong: what is on disk, and how it goes on."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read
from model_systems import Failing, Springs, Wells, grid

from egnn_md.dynamics import md
from egnn_md.dynamics.observers import read_log
from egnn_md.dynamics.settings import ENGINES, MDSettings, SettingsError
from egnn_md.dynamics.state import FileMark, RestartState, RunError, prepare_folder
from egnn_md.storage import StorageError


def crystal() -> Atoms:
    atoms = grid(2, 3.0, periodic=True)
    atoms.set_cell(np.array([[6.0, 0, 0], [1.0, 6.5, 0], [-1.0, 0.7, 6.2]]), scale_atoms=True)
    atoms.calc = Wells(atoms.positions, 1.0)
    return atoms


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.calc = Springs(atoms, k=5.0)
    masses = atoms.get_masses()
    masses[-1] = 2.014  # deuterium
    atoms.set_masses(masses)
    return atoms


def positions_of(path: Path) -> np.ndarray:
    """(n_frames, n_atoms, 3) Å of a trajectory in any format."""
    if path.suffix in (".traj", ".extxyz"):
        return np.array([frame.positions for frame in read(path, ":")])
    import mdtraj

    top = {} if path.suffix == ".h5" else {"top": str(path.with_name("topology.pdb"))}
    return 10.0 * np.asarray(mdtraj.load(str(path), **top).xyz, dtype=float)


def resume(folder: Path, calculator: Any, steps: int | None = None) -> dict[str, Any]:
    return md.resume(RestartState.load(folder / "state.npz"), folder, calculator, steps).run()


@pytest.mark.parametrize("kind", ["traj", "extxyz", "xtc", "dcd", "h5"])
@pytest.mark.parametrize(
    ("engine", "ensemble", "system"),
    [
        ("ase", "nvt", ethanol),
        ("ase", "npt", crystal),
        ("ase", "nve", ethanol),
        ("openmm", "nvt", crystal),
        ("openmm", "nve", ethanol),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    engine: Any, ensemble: Any, system: Any, kind: Any, tmp_path: Path
) -> None:
    """What SIGKILL leaves: a state of some step, files that went on without it, the last record torn."""
    settings = MDSettings(engine=engine, ensemble=ensemble, steps=75, interval=5, seed=7, format=kind, pressure=500.0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    md.start(system(), settings, whole).run()

    first = md.start(system(), settings, killed)
    while first.step < 33:  # not a step that is recorded
        first._advance()
        if first.step % 5 == 0:
            first.record()
    first.save_state()
    old_state = (killed / "state.npz").read_bytes()
    while first.step < 58:
        first._advance()
        if first.step % 5 == 0:
            first.record()
    first.flush()
    (killed / "state.npz").write_bytes(old_state)
    for name in ("log.csv", first.trajectory.growing.name):
        with (killed / name).open("ab") as file:
            file.write(b"\x00torn")
    assert resume(killed, system().calc)["status"] == "finished"

    assert (killed / "log.csv").read_bytes() == (whole / "log.csv").read_bytes()
    frames, expected = (positions_of(folder / f"trajectory.{kind}") for folder in (killed, whole))
    assert len(expected) == 16
    assert np.array_equal(frames, expected)
    if kind not in ("dcd", "h5"):  # these hold the time of their making
        assert (killed / f"trajectory.{kind}").read_bytes() == (whole / f"trajectory.{kind}").read_bytes()
    one, other = (RestartState.load(folder / "state.npz") for folder in (killed, whole))
    assert all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)
    assert one.rng == other.rng
    assert one.memory == other.memory


@pytest.mark.parametrize("kind", ["traj", "h5"])
def test_a_finished_run_can_be_made_longer(kind: str, tmp_path: Path) -> None:
    settings = MDSettings(steps=40, interval=10, seed=1, format=kind)
    md.start(ethanol(), settings, tmp_path / "a").run()
    assert resume(tmp_path / "a", ethanol().calc)["steps"] == 40  # nothing to do, nothing done
    summary = resume(tmp_path / "a", ethanol().calc, steps=70)
    assert summary["steps"] == 70
    assert summary["settings"]["steps"] == 70
    md.start(ethanol(), MDSettings(steps=70, interval=10, seed=1, format=kind), tmp_path / "b").run()
    frames, expected = (positions_of(tmp_path / folder / f"trajectory.{kind}") for folder in "ab")
    assert len(expected) == 8
    assert frames == pytest.approx(expected, abs=1e-5)  # h5: float32 in nm read back
    assert (tmp_path / "a" / "log.csv").read_text() == (tmp_path / "b" / "log.csv").read_text()
    with pytest.raises(SettingsError, match="at step 70"):
        resume(tmp_path / "a", ethanol().calc, steps=60)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_signals_stop_cleanly(number: signal.Signals, engine: Any, tmp_path: Path) -> None:
    before = signal.getsignal(number)

    def interrupt(results: dict[str, Any]) -> None:
        os.kill(os.getpid(), number)

    atoms = grid(2)
    centres = atoms.positions.copy()
    atoms.calc = Failing(centres, 1.0, 20, interrupt)
    simulation = md.start(atoms, MDSettings(engine=engine, ensemble="nve", steps=100, interval=1), tmp_path)
    simulation.atoms.calc.after = simulation.atoms.calc.calls + 20
    summary = simulation.run()
    assert (summary["status"], summary["reason"]) == ("interrupted", number.name)
    assert 20 <= summary["steps"] <= 22
    assert len(read(tmp_path / "trajectory.traj", ":")) == summary["steps"] + 1
    assert signal.getsignal(number) is before
    assert resume(tmp_path, Wells(centres, 1.0))["status"] == "finished"
    assert len(read(tmp_path / "trajectory.traj", ":")) == 101


def _nan(results: dict[str, Any]) -> None:
    results["forces"] = results["forces"] * np.nan


def _nan_energy(results: dict[str, Any]) -> None:
    results["energy"] = np.nan


def _kick(results: dict[str, Any]) -> None:
    results["forces"] = results["forces"] + 1e5


def _hole(results: dict[str, Any]) -> None:
    results["energy"] -= 1e4


def _refuse(results: dict[str, Any]) -> None:
    raise ValueError("atoms 1 and 2 are 0.01 Å apart")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (_nan, "NaN"),
        (_nan_energy, "NaN"),
        (_kick, "temperature|kinetic"),
        (_hole, "potential energy"),
        (_refuse, "0.01 Å apart"),
    ],
)
def test_blow_up_stops_with_the_last_good_frame(fail: Any, message: str, engine: Any, tmp_path: Path) -> None:
    atoms = grid(2)
    calculator = Failing(atoms.positions, 1.0, 10**9, fail)
    atoms.calc = calculator
    settings = MDSettings(engine=engine, ensemble="nvt", steps=100, interval=10, seed=0)
    simulation = md.start(atoms, settings, tmp_path)
    calculator.after = calculator.calls + 25
    summary = simulation.run()
    assert summary["status"] == "blew_up"
    late = engine == "openmm" and fail in (_nan, _kick)  # its Langevin meets a force at the beginning of the next step
    steps = 26 if late else 25
    assert f"step {steps + 1}:" in summary["reason"]
    assert re.search(message, summary["reason"])
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == steps
    assert all(np.isfinite(column).all() for column in read_log(tmp_path / "log.csv").values())
    assert len(read(tmp_path / "trajectory.traj", ":")) == 3

    good = grid(2)
    good.calc = Wells(good.positions, 1.0)
    md.start(good, replace(settings, steps=steps), tmp_path / "good").run()
    expected = RestartState.load(tmp_path / "good" / "state.npz")
    last, state = read(tmp_path / "last.extxyz"), RestartState.load(tmp_path / "state.npz")
    assert np.array_equal(state.arrays["positions"], expected.arrays["positions"])
    assert np.array_equal(state.arrays["momenta"], expected.arrays["momenta"])
    assert last.positions == pytest.approx(state.arrays["positions"], abs=1e-7)
    assert last.get_momenta() == pytest.approx(state.arrays["momenta"], abs=1e-7)
    with pytest.raises(RunError, match="blew up"):
        resume(tmp_path, Wells(good.positions, 1.0))


def test_too_long_a_timestep_is_noticed(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc.k = 50.0
    summary = md.start(atoms, MDSettings(ensemble="nve", timestep=8.0, steps=2000), tmp_path).run()
    assert summary["status"] == "blew_up"


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_of_the_code_is_raised_and_the_state_saved(engine: Any, tmp_path: Path) -> None:
    def broken(results: dict[str, Any]) -> None:
        raise RuntimeError("a bug")

    atoms = grid(2)
    atoms.calc = Failing(atoms.positions, 1.0, 10**9, broken)
    simulation = md.start(atoms, MDSettings(engine=engine, steps=50, interval=10, seed=0), tmp_path)
    atoms.calc.after = atoms.calc.calls + 15
    with pytest.raises(RuntimeError, match="a bug"):
        simulation.run()
    assert RestartState.load(tmp_path / "state.npz").step == 15
    assert resume(tmp_path, Wells(grid(2).positions, 1.0))["status"] == "finished"


def test_lost_frames_are_not_papered_over(tmp_path: Path) -> None:
    md.start(ethanol(), MDSettings(steps=20), tmp_path).run()
    with (tmp_path / "trajectory.traj").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(RunError, match="shorter"):
        resume(tmp_path, ethanol().calc, steps=30)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", b"hello"], ids=["empty", "zip", "text"])
def test_damaged_states_are_refused(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.npz").write_bytes(damage)
    with pytest.raises(RunError, match="damaged"):
        RestartState.load(tmp_path / "state.npz")
    with pytest.raises(RunError, match="no run"):
        RestartState.load(tmp_path / "elsewhere" / "state.npz")


def test_a_state_names_its_own_files_only(tmp_path: Path) -> None:
    """A folder from somebody else: no name in its state leads out of it, and no link is followed."""
    folder, victim = tmp_path / "run", tmp_path / "victim"
    md.start(ethanol(), MDSettings(steps=20, format="xtc"), folder).run()
    victim.write_text("precious")
    sound = (folder / "state.npz").read_bytes()
    state = RestartState.load(folder / "state.npz")
    for name in ("../victim", str(victim), "log.csv/../../victim", "summary.json"):
        for marks in ({**state.marks, name: state.marks["log.csv"]}, {name: replace(state.marks["log.csv"], size=0)}):
            replace(state, marks=marks).save(folder / "state.npz")
            with pytest.raises(RunError, match="damaged: it names the files"):
                resume(folder, ethanol().calc, steps=30)
    (folder / "state.npz").write_bytes(sound)
    (folder / "log.csv").unlink()
    (folder / "log.csv").symlink_to(victim)
    with pytest.raises(StorageError, match="is a link to"):
        resume(folder, ethanol().calc, steps=30)
    assert victim.read_text() == "precious"


def test_a_folder_has_one_process(tmp_path: Path) -> None:
    """The second process is told who has it; when the first one dies, the folder is free."""
    simulation = md.start(ethanol(), MDSettings(steps=20), tmp_path)
    script = (
        "import sys\nfrom pathlib import Path\nfrom egnn_md.storage import Hold, StorageError\n"
        "try:\n    hold = Hold(Path(sys.argv[1]))\nexcept StorageError as error:\n    print(error)\n"
        "else:\n    print('mine', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    assert f"is in use by process {os.getpid()} on {platform.node()}" in told
    simulation.run()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(StorageError, match=f"process {other.pid}"):
            resume(tmp_path, ethanol().calc, steps=30)
        other.kill()
    assert resume(tmp_path, ethanol().calc, steps=30)["steps"] == 30
    assert not (tmp_path / ".lock").exists()


def test_a_log_of_two_processes_is_not_gone_on_with(tmp_path: Path) -> None:
    md.start(ethanol(), MDSettings(steps=100), tmp_path).run()
    lines = (tmp_path / "log.csv").read_text().splitlines(keepends=True)
    lines[3] = lines[5]
    (tmp_path / "log.csv").write_text("".join(lines))
    state = RestartState.load(tmp_path / "state.npz")
    marks = {**state.marks, "log.csv": FileMark.of(tmp_path / "log.csv")}
    replace(state, marks=marks).save(tmp_path / "state.npz")
    with pytest.raises(RunError, match="in their order"):
        resume(tmp_path, ethanol().calc, steps=200)


def test_a_trajectory_deleted_in_flight_ends_the_run(tmp_path: Path) -> None:
    simulation = md.start(ethanol(), MDSettings(steps=100, interval=1), tmp_path)
    for _ in range(10):
        simulation._advance()
        simulation.record()
    simulation.flush()
    (tmp_path / "trajectory.traj").unlink()
    with pytest.raises(RunError, match="changed or removed"):
        simulation.run()


def test_a_trajectory_deleted_while_it_is_written_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = md.start(ethanol(), MDSettings(steps=100, interval=1), tmp_path)
    simulation.flush()
    simulation._advance()
    simulation.record()
    append = simulation.log.append

    def removing(rows: Any) -> None:
        (tmp_path / "trajectory.traj").unlink()
        append(rows)

    monkeypatch.setattr(simulation.log, "append", removing)
    with pytest.raises(RunError, match="changed or removed"):
        simulation.flush()


def test_overwriting_takes_the_run_and_nothing_else(tmp_path: Path) -> None:
    md.start(ethanol(), MDSettings(steps=10, format="xtc"), tmp_path).run()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="already holds a run"):
        prepare_folder(tmp_path, overwrite=False)
    prepare_folder(tmp_path, overwrite=True).release()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_state_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = md.start(ethanol(), MDSettings(steps=10), tmp_path)
    before = (tmp_path / "state.npz").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="disk full"):
        simulation.save_state()
    assert (tmp_path / "state.npz").read_bytes() == before
    assert not list(tmp_path.glob(".partial*"))


@pytest.mark.parametrize("left_handed", [False, True])
def test_mdtraj_formats_keep_the_geometry_of_any_cell(left_handed: bool, tmp_path: Path) -> None:
    """xtc, dcd and h5 turn the cell; distances under periodic boundary conditions stay what they were."""
    import mdtraj

    for kind in ("xtc", "dcd", "h5"):
        atoms = crystal()
        rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
        rotation[:, 0] *= np.linalg.det(rotation) * (-1 if left_handed else 1)
        atoms.set_cell(atoms.cell.array @ rotation, scale_atoms=True)
        atoms.calc = Wells(atoms.positions, 1.0)
        folder = tmp_path / kind
        md.start(atoms, MDSettings(steps=20, interval=20, format=kind, seed=0), folder).run()
        top = {} if kind == "h5" else {"top": str(folder / "topology.pdb")}
        trajectory = mdtraj.load(str(folder / f"trajectory.{kind}"), **top)
        pairs = [(i, j) for i in range(8) for j in range(i)]
        found = 10.0 * mdtraj.compute_distances(trajectory, pairs, periodic=True)[-1]
        last = read(folder / "last.extxyz")
        expected = [last.get_distance(i, j, mic=True) for i, j in pairs]
        assert found == pytest.approx(expected, abs=0.02 if kind == "xtc" else 1e-4)
        assert 1e3 * trajectory.unitcell_volumes[-1] == pytest.approx(last.get_volume(), rel=1e-3)
        if kind != "dcd":
            assert trajectory.time.tolist() == pytest.approx([0.0, 0.01])


@pytest.mark.parametrize("kind", ["traj", "extxyz", "xtc", "dcd", "h5"])
def test_a_full_disk_loses_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the room ends, a frame or the h5 made at the end, it is an OSError of that file, and resume goes on."""
    from egnn_md.dynamics import trajectory

    settings = MDSettings(steps=40, interval=10, seed=1, format=kind)
    md.start(ethanol(), settings, tmp_path / "whole").run()
    left, room = tmp_path / "left", trajectory.require_room

    def full(path: Path, n_bytes: int) -> None:
        if path.suffix == ".h5" or kind != "h5":
            room(path, 2**62)

    simulation = md.start(ethanol(), settings, left)
    with monkeypatch.context() as patch:
        patch.setattr(trajectory, "require_room", full)
        with pytest.raises(OSError, match=rf"trajectory\.{kind}"):
            simulation.run()
    assert resume(left, ethanol().calc)["status"] == "finished"
    frames, expected = (positions_of(folder / f"trajectory.{kind}") for folder in (left, tmp_path / "whole"))
    assert np.array_equal(frames, expected)


def test_h5_without_its_package_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tables", None)
    with pytest.raises(SettingsError, match="pip install"):
        md.start(ethanol(), MDSettings(format="h5"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_summary_says_all_settings_and_versions(tmp_path: Path) -> None:
    settings = MDSettings(ensemble="nve", steps=20, seed=5)
    summary = md.start(ethanol(), settings, tmp_path, {"model": "springs"}).run()
    assert summary["settings"] == settings.to_dict()
    assert summary["information"] == {"model": "springs"}
    assert {"egnn_md", "ase", "numpy", "torch", "python"} <= summary["versions"].keys()
    assert summary["formula"] == "C2H6O"
    assert summary["time_ps"] == pytest.approx(0.01)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    shutil.rmtree(tmp_path)
