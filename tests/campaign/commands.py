"""The verbs that write, each small, and how to tell whether what they left is whole."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from verbs import Verb

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


class Close:
    """Numbers that are equal to within a tolerance."""

    def __init__(self, values: list[float], tolerance: float) -> None:
        self.values, self.tolerance = values, tolerance

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Close) and np.allclose(self.values, other.values, rtol=0, atol=self.tolerance)

    __hash__ = None  # type: ignore[assignment]


def job(output: Path, tolerance: float | None) -> Any:
    """Structures and table of a job: each structure once, in its place, its energy to within `tolerance` eV (None: any,
    where what a kill leaves undone goes on in batches of its own).
    """
    from ase.io import read

    with output.with_name(output.name + ".csv").open() as file:
        rows = list(csv.DictReader(file))
    if [row["index"] for row in rows] != [str(k) for k in range(len(rows))]:
        raise AssertionError(f"the table has rows {[row['index'] for row in rows]}")
    found = [(len(atoms), atoms.info.get("step"), atoms.info.get("charge")) for atoms in read(output, ":")]
    energies = Close([float(row["energy"] or 0.0) for row in rows], np.inf if tolerance is None else tolerance)
    return [(row["status"], row["reason"]) for row in rows], found, energies


def minima(table: Path) -> Any:
    """A table of properties at minima, which batches of other sizes find to within round-off."""
    with table.open() as file:
        rows = list(csv.DictReader(file))
    numbers = [float(row[name]) for row in rows for name in ("gap_eV", "relax_energy_eV")]
    return [(row["index"], row["formula"], row["flag"]) for row in rows], Close(numbers, 1e-3)


def distilled(folder: Path) -> Any:
    return tensors(folder / "model.safetensors"), digest(folder / "data.extxyz")


def arrays(path: Path) -> Any:
    with np.load(path) as archive:
        return {name: archive[name].tobytes() for name in archive.files}


# The verbs


def prepare(folder: Path) -> dict[str, Path]:
    """Small models and small data, by name."""
    import torch
    from ase import Atoms
    from ase.build import molecule
    from ase.io import write

    from egnn_md.checkpoint import save
    from egnn_md.models.potential import Potential, PotentialConfig

    torch.manual_seed(0)
    names = ("small.safetensors", "water.xyz", "many.xyz", "some.xyz", "ion.extxyz", "train.toml", "charges.toml")
    files = {name: folder / name for name in names}
    size = {"hidden_dim": 8, "message_dim": 8, "n_vectors": 2, "n_layers": 1, "n_radial": 4, "cutoff": 3.5}
    model = Potential(PotentialConfig((1, 6, 8), (-13.6, -1029.0, -2042.0), **size))
    model.familiarity.fit(torch.randn(150, 8), torch.arange(3).repeat(50))
    model.familiarity.unit.fill_(1e6)  # weights from nowhere: no structure is strange to it
    model.valences.ranges.copy_(torch.tensor([-1e3, 1e3]))
    save(model, files["small.safetensors"], {"name": "small"})
    write(files["water.xyz"], molecule("H2O"))
    write(files["ion.extxyz"], Atoms("OH", [[0, 0, 0], [0, 0, 0.97]], info={"charge": -1}))
    rng = np.random.default_rng(0)
    base = molecule("CH4")
    moved = [Atoms(base.numbers, base.positions + rng.normal(scale=0.05, size=(5, 3))) for _ in range(1500)]
    write(files["many.xyz"], moved, format="xyz")
    write(files["some.xyz"], moved[:12], format="xyz")
    charges = rng.normal(scale=0.1, size=(60, 5))
    np.savez(
        folder / "train.npz",
        n_atoms=np.full(60, 5),
        atomic_numbers=np.tile(base.numbers, 60),
        positions=np.concatenate([atoms.positions for atoms in moved[:60]]),
        energy=rng.normal(-1080.0, 0.1, 60),
        forces=rng.normal(size=(300, 3)),
        gdb=np.arange(60),
        charges=(charges - charges.mean(1, keepdims=True)).ravel(),
        dipole=rng.normal(scale=0.1, size=(60, 3)),
        charge=np.zeros(60),
    )
    config = (
        'name = "small"\n[data]\nfiles = ["train.npz"]\nvalid_fraction = 0.2\n[model]\nhidden_dim = 8\n'
        "message_dim = 8\nn_layers = 1\nn_vectors = 2\nn_radial = 4\ncutoff = 3.5\n[training]\nmax_steps = 24\n"
        "batch_size = 4\nvalidate_every = 6\ncheckpoint_every = 6\nwarmup_steps = 2\n"
    )
    files["train.toml"].write_text(config)
    files["charges.toml"].write_text(config.replace("cutoff = 3.5\n", "cutoff = 3.5\nlong_range = true\n"))
    return files


def verbs(files: dict[str, Path]) -> list[Verb]:
    """Every verb that writes, from small inputs."""
    return [*_runs(files), *_trainings(files), *_tables(files), *_jobs(files), *_data(files)]


def _runs(files: dict[str, Path]) -> list[Verb]:
    made = []
    common = ["--steps", "60", "--interval", "3", "--seed", "1", "--threads", "1"]
    water = ["md", str(files["water.xyz"])]
    for name, begin in (
        ("md traj", water),
        ("md extxyz", [*water, "--format", "extxyz"]),
        ("md xtc", [*water, "--format", "xtc"]),
        ("md dcd", [*water, "--format", "dcd"]),
        ("md h5", [*water, "--format", "h5"]),
        ("md openmm", [*water, "--engine", "openmm", "--format", "dcd"]),
        ("md charged", ["md", str(files["ion.extxyz"]), "--model", "egnn-xtb-1", "--format", "extxyz"]),
    ):
        again = ["--state-interval", "0.02", "--threads", "1"]
        made.append(
            Verb(
                name,
                lambda folder, b=begin: [*b, *common, "-o", str(folder), "--state-interval", "0.02", "--overwrite"],
                lambda folder, again=again: ["md", "--resume", str(folder), *again],
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
    return made


def _trainings(files: dict[str, Path]) -> list[Verb]:
    machine = ["--device", "cpu", "--threads", "1"]
    made = [
        Verb(
            name,
            lambda folder, c=str(files[config]): ["train", c, "-o", str(folder), *machine],
            lambda folder: ["train", "--resume", str(folder), *machine],
            training,
            makes_folder=True,
        )
        for name, config in (("train", "train.toml"), ("train charges", "charges.toml"))
    ]
    teacher = ["cheap_teachers:shipped", "--with", f"log={files['water.xyz'].parent}/calls"]
    water = str(files["water.xyz"])
    small = ["--start", "none", "--labels", "10", "--rounds", "2", "--steps", "8", "--ps", "0.05", "--copies", "2"]
    made.append(
        Verb(
            "distill",
            lambda folder: ["distill", *teacher, water, *small, "-o", str(folder), "--threads", "1"],
            lambda folder: ["distill", *teacher, "--resume", str(folder), "--threads", "1"],
            distilled,
            every=8,
        )
    )
    return made


def shorten_distillations() -> None:
    """Their tests of the finished model, which are no part of what may be lost."""
    from egnn_md.distill import card, rounds

    card.NVE_PS = card.STABILITY_PS = 0.02  # type: ignore[misc]
    rounds.TEST_FRAMES = 4  # type: ignore[misc]


def _tables(files: dict[str, Path]) -> list[Verb]:
    made = []
    for name, source, ending, extra, left in (
        ("predict csv", "many.xyz", "csv", [], digest),
        ("predict jsonl", "many.xyz", "jsonl", [], digest),
        ("predict extxyz", "many.xyz", "extxyz", [], digest),
        ("predict relax", "some.xyz", "csv", ["--relax"], minima),
        ("predict workers", "many.xyz", "csv", ["--workers", "2"], digest),
    ):
        table = ["predict", str(files[source]), "--threads", "1", *extra]
        made.append(
            Verb(
                name,
                lambda folder, e=ending, t=table: [*t, "-o", str(folder / f"t.{e}"), "--overwrite"],
                lambda folder, e=ending, t=table: [*t, "-o", str(folder / f"t.{e}"), "--resume"],
                lambda folder, e=ending, left=left: left(folder / f"t.{e}"),
                every=16 if "--workers" in extra else 1,
            )
        )
    return made


def _jobs(files: dict[str, Path]) -> list[Verb]:
    """What goes on with the same command."""
    model, some = str(files["small.safetensors"]), str(files["some.xyz"])
    made: list[Verb] = []
    relax = ["relax", some, "--threads", "1"]
    md = ["md", some, "--model", model, "--steps", "20", "--interval", "5", "--seed", "1", "--threads", "1"]
    label = ["label", "ase.calculators.emt:EMT", some]
    for name, words, output, tolerance, every in (
        ("relax many", [*relax, "--chunk", "5"], "relaxed.extxyz", 1e-3, 1),
        ("md many", [*md, "--chunk", "5"], "trajectory.extxyz", None, 1),
        ("label", [*label, "--chunk", "5"], "labelled.extxyz", 1e-9, 1),
        ("relax workers", [*relax, "--chunk", "3", "--workers", "2"], "relaxed.extxyz", 1e-3, 16),
        ("label workers", [*label, "--chunk", "3", "--workers", "2"], "labelled.extxyz", 1e-9, 16),
    ):

        def begin(folder: Path, name: str = name, words: list[str] = words, output: str = output) -> list[str]:
            return [*words, "-o", str(folder if name == "md many" else folder / output)]

        left: Callable[[Path], Any] = lambda folder, o=output, t=tolerance: job(folder / o, t)  # noqa: E731
        made.append(Verb(name, begin, begin, left, every=every))
    one = ["relax", str(files["water.xyz"]), "--model", model, "--steps", "5", "--threads", "1", "--overwrite"]
    relaxed = "relaxed.extxyz"
    made.append(
        Verb("relax", lambda folder: [*one, "-o", str(folder / relaxed)], None, lambda folder: digest(folder / relaxed))
    )
    return made


def _data(files: dict[str, Path]) -> list[Verb]:
    sizes = ["--train", "4", "--valid", "2", "--test", "2", "--seed", "1", "--overwrite"]
    segments = ["--copies", "1", "--segments", "1", "--seed", "1", "--overwrite"]
    flow = ["flow", str(files["water.xyz"]), *segments]
    return [
        Verb(
            f"data {words[0]}",
            lambda folder, words=words: ["data", *words, "-o", str(folder / "data.npz")],
            None,
            lambda folder: arrays(folder / "data.npz"),
        )
        for words in (
            ["nbody", "--rollout", "2", *sizes],
            ["community", *sizes],
            ["erdos-renyi", *sizes],
            flow,
        )
    ]
