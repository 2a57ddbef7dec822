"""The verbs that write, each small, and how to tell whether what they left is whole."""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EVENTS = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "shutil.copyfile", "shutil.move", "os.rmdir")


@dataclass(frozen=True)
class Verb:
    """A command line that writes into `folder`; what it leaves, as something to compare."""

    name: str
    begin: Callable[[Path], list[str]]
    go_on: Callable[[Path], list[str]] | None
    """None: it is begun anew."""
    left: Callable[[Path], Any]
    """What must be the same after any number of kills."""


@dataclass(frozen=True)
class Ended:
    """How a process went."""

    code: int
    """Exit code, or minus the signal."""
    said: str
    """Its stderr and stdout."""
    seconds: float
    events: int
    """Times that it opened, renamed or removed something below its folder."""

    @property
    def has_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.said


def call(
    arguments: list[str],
    folder: Path,
    *,
    kill_at: int | None = None,
    kill_after: float | None = None,
    largest_file: int | None = None,
    as_nobody: bool = False,
    label: str = "",
) -> Ended:
    """`egnn-md ARGUMENTS` in a fork of this process, which has everything imported already.

    kill_at: SIGKILL before so many changes below `folder`; kill_after: after so many seconds. largest_file: bytes
    beyond which files cannot grow. as_nobody: without the rights of root. label: of the files with what it says.
    """
    log, count = folder.parent / f"said{label}.txt", folder.parent / f"events{label}.txt"
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            _become(arguments, folder, log, count, kill_at, largest_file, as_nobody)
        finally:
            os._exit(99)
    status = _wait(child, 600.0 if kill_after is None else kill_after)
    said = log.read_text(errors="replace")
    events = int(count.read_text() or 0) if count.exists() else 0
    return Ended(os.waitstatus_to_exitcode(status), said, time.monotonic() - began, events)


def _wait(child: int, seconds: float) -> int:
    """The status of a child that ends by itself within so many seconds; after them it is killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _give_up_rights() -> None:
    """Root without its rights to files of any mode; nothing changes for others."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capset(header, nothing)


def _become(
    arguments: list[str],
    folder: Path,
    log: Path,
    count: Path,
    kill_at: int | None,
    largest_file: int | None,
    as_nobody: bool,
) -> None:
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    counted = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    seen, below = 0, str(folder)

    def watch(event: str, details: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in EVENTS or not any(isinstance(part, str) and part.startswith(below) for part in details):
            return
        if event == "open" and not (isinstance(details[2], int) and details[2] & WRITES):
            return
        seen += 1
        os.pwrite(counted, str(seen).encode(), 0)
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if as_nobody and os.getuid() == 0:
        _give_up_rights()
    from egnn_md.cli import main

    try:
        main(arguments)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 98
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# What they leave


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"


def frames(folder: Path) -> Any:
    """Log and trajectory of a run folder."""
    log = (folder / "log.csv").read_text()
    times = [float(line.split(",")[0]) for line in log.splitlines()[1:]]
    if times != sorted(set(times)):
        raise AssertionError("the log's times are not monotone")
    growing = [folder / f"trajectory.{kind}" for kind in ("extxyz", "xtc")]
    found: dict[str, Any] = {path.name: digest(path) for path in growing if path.exists()}
    if (folder / "trajectory.dcd").exists():  # its header holds the time of its making
        from mdtraj.formats import DCDTrajectoryFile

        with DCDTrajectoryFile(str(folder / "trajectory.dcd")) as file:
            found["dcd"] = file.read()[0].tobytes()
    if (folder / "trajectory.traj").exists():
        from ase.io import read

        every = read(folder / "trajectory.traj", ":")
        found["traj"] = [(atoms.positions.tobytes(), atoms.get_momenta().tobytes()) for atoms in every]
    if (folder / "trajectory.h5").exists():
        from mdtraj.formats import HDF5TrajectoryFile

        with HDF5TrajectoryFile(str(folder / "trajectory.h5")) as file:
            found["h5"] = file.read().coordinates.tobytes()
    return log, found


def tensors(path: Path) -> Any:
    from safetensors.numpy import load_file

    return {name: value.tobytes() for name, value in load_file(path).items()}


def training(folder: Path) -> Any:
    lines = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
    return tensors(folder / "model.safetensors"), [line[:1] + line[2:] for line in lines]


def arrays(path: Path) -> Any:
    with np.load(path) as archive:
        return {name: archive[name].tobytes() for name in archive.files}


# The verbs


def prepare(folder: Path) -> dict[str, Path]:
    """Small models and small data."""
    import torch
    from ase import Atoms
    from ase.build import molecule
    from ase.io import write

    from egnn_md.checkpoint import save
    from egnn_md.models.potential import Potential, PotentialConfig

    torch.manual_seed(0)
    size = {"hidden_dim": 8, "message_dim": 8, "n_vectors": 2, "n_layers": 1, "n_radial": 4, "cutoff": 3.5}
    model = Potential(PotentialConfig((1, 6, 8), (-13.6, -1029.0, -2042.0), **size))
    model.familiarity.fit(torch.randn(150, 8), torch.arange(3).repeat(50))
    model.familiarity.unit.fill_(1e6)  # weights from nowhere: no structure is strange to it
    model.valences.ranges.copy_(torch.tensor([-1e3, 1e3]))
    files = {name: folder / name for name in ("small.safetensors", "water.xyz", "many.xyz", "train.npz", "train.toml")}
    save(model, files["small.safetensors"], {"name": "small"})
    write(files["water.xyz"], molecule("H2O"))
    rng = np.random.default_rng(0)
    base = molecule("CH4")
    moved = [Atoms(base.numbers, base.positions + rng.normal(scale=0.05, size=(5, 3))) for _ in range(2000)]
    write(files["many.xyz"], moved, format="xyz")
    np.savez(
        files["train.npz"],
        n_atoms=np.full(60, 5),
        atomic_numbers=np.tile(base.numbers, 60),
        positions=np.concatenate([atoms.positions for atoms in moved[:60]]),
        energy=rng.normal(-1080.0, 0.1, 60),
        forces=rng.normal(size=(300, 3)),
        gdb=np.arange(60),
    )
    files["train.toml"].write_text(
        'name = "small"\n[data]\nfiles = ["train.npz"]\nvalid_fraction = 0.2\n[model]\nhidden_dim = 8\n'
        "message_dim = 8\nn_layers = 1\nn_vectors = 2\nn_radial = 4\ncutoff = 3.5\n[training]\nmax_steps = 40\n"
        "batch_size = 4\nvalidate_every = 10\ncheckpoint_every = 10\nwarmup_steps = 2\n"
    )
    return files


def verbs(files: dict[str, Path]) -> list[Verb]:
    """Every verb that writes, from small inputs."""
    model, water = str(files["small.safetensors"]), str(files["water.xyz"])
    made = []
    common = ["--steps", "60", "--interval", "3", "--seed", "1", "--threads", "1"]
    for name, extra in (
        ("md traj", []),
        ("md extxyz", ["--format", "extxyz"]),
        ("md xtc", ["--format", "xtc"]),
        ("md dcd", ["--format", "dcd"]),
        ("md h5", ["--format", "h5"]),
        ("md openmm", ["--engine", "openmm", "--format", "dcd"]),
    ):
        begin = ["md", water, *common, *extra]
        made.append(
            Verb(
                name,
                lambda folder, begin=begin: [*begin, "-o", str(folder), "--state-interval", "0.02", "--overwrite"],
                lambda folder: ["md", "--resume", str(folder), "--state-interval", "0.02", "--threads", "1"],
                frames,
            )
        )
    flow = ["rollout", "ethanol-flow", "CH3CH2OH", "--steps", "30", "--interval", "2", "--seed", "1", "--threads", "1"]
    made.append(
        Verb(
            "rollout",
            lambda folder: [*flow, "-o", str(folder), "--overwrite"],
            lambda folder: ["rollout", "ethanol-flow", "--resume", "-o", str(folder), "--threads", "1"],
            frames,
        )
    )
    config = str(files["train.toml"])
    made.append(
        Verb(
            "train",
            lambda folder: ["train", config, "-o", str(folder), "--device", "cpu", "--threads", "1"],
            lambda folder: ["train", "--resume", str(folder), "--device", "cpu", "--threads", "1"],
            training,
        )
    )
    for ending in ("csv", "jsonl", "extxyz"):
        table = ["predict", str(files["many.xyz"]), "--threads", "1"]
        made.append(
            Verb(
                f"predict {ending}",
                lambda folder, e=ending, t=table: [*t, "-o", str(folder / f"t.{e}"), "--overwrite"],
                lambda folder, e=ending, t=table: [*t, "-o", str(folder / f"t.{e}"), "--resume"],
                lambda folder, e=ending: digest(folder / f"t.{e}"),
            )
        )
    relax = ["relax", water, "--model", model, "--steps", "5", "--threads", "1", "--overwrite"]
    made.append(
        Verb(
            "relax",
            lambda folder: [*relax, "-o", str(folder / "relaxed.extxyz")],
            None,
            lambda folder: digest(folder / "relaxed.extxyz"),
        )
    )
    sizes = ["--train", "20", "--valid", "5", "--test", "5", "--seed", "1", "--overwrite"]
    for kind, extra in (("nbody", ["--rollout", "5"]), ("community", []), ("erdos-renyi", [])):
        made.append(
            Verb(
                f"data {kind}",
                lambda folder, k=kind, e=extra: ["data", k, *sizes, *e, "-o", str(folder / "data.npz")],
                None,
                lambda folder: arrays(folder / "data.npz"),
            )
        )
    segments = ["--copies", "1", "--segments", "1", "--seed", "1", "--overwrite"]
    made.append(
        Verb(
            "data flow",
            lambda folder: ["data", "flow", water, *segments, "-o", str(folder / "flow.npz")],
            None,
            lambda folder: arrays(folder / "flow.npz"),
        )
    )
    return made
