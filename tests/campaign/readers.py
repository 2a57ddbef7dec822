"""Mutated files for every reader: structures, labels, configurations, checkpoints.

What a reader takes must be usable; what it does not take it must refuse by name. Neither may write anywhere.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import Fault, Tally, explore, is_refusal
from mutations import NUMBERS, mutate

Read = Callable[[Path], Any]


@dataclass(frozen=True)
class Subject:
    """One kind of file and those who read it."""

    name: str
    """Of the file, its ending included."""
    sound: tuple[bytes, ...]
    readers: dict[str, Read]
    spoil: Callable[[bytes, np.random.Generator], bytes] = mutate


# Structures


def usable(numbers: Any, positions: Any) -> None:
    """Raise Fault for atoms that nothing can be computed of."""
    numbers, positions = np.asarray(numbers), np.asarray(positions)
    if len(numbers) == 0 or numbers.min() < 1 or numbers.max() > 118 or not np.isfinite(positions).all():
        raise Fault("a structure without sound atoms was accepted")


def _by_md(path: Path) -> None:
    from egnn_md.dynamics.starting_structures import read_structure

    atoms = read_structure(str(path))
    usable(atoms.numbers, atoms.positions)


def _by_predict(path: Path) -> None:
    from egnn_md.data.reading import DataError
    from egnn_md.data.stream import stream

    for count, (_, found) in enumerate(stream(path)):
        if not isinstance(found, DataError) and found.problem(range(1, 119)) is None:
            usable(found.atomic_numbers, found.positions)
        if count > 1000:
            return


def _by_train(path: Path) -> None:
    from egnn_md.data.frame_files import read_frames

    frames = read_frames(path)
    usable(frames.atomic_numbers, frames.positions)
    if len(frames.atomic_numbers) != frames.n_atoms.sum() or len(frames.energy) != len(frames):
        raise Fault("labels that do not fit their atoms were accepted")
    if np.isinf(frames.energy).any():
        raise Fault("an infinite energy was accepted")


SDF = b"""water
  made by hand

  3  2  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.1193 O   0  0  0  0  0  0  0  0  0  0  0  0
    0.0000    0.7632   -0.4770 H   0  0  0  0  0  0  0  0  0  0  0  0
    0.0000   -0.7632   -0.4770 H   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0
  1  3  1  0
M  END
$$$$
"""
MOL2 = b"""@<TRIPOS>MOLECULE
water
3 2 1 0 0
SMALL
NO_CHARGES

@<TRIPOS>ATOM
1 O 0.0000 0.0000 0.1193 O.3 1 WAT 0.0
2 H1 0.0000 0.7632 -0.4770 H 1 WAT 0.0
3 H2 0.0000 -0.7632 -0.4770 H 1 WAT 0.0
@<TRIPOS>BOND
1 1 2 1
2 1 3 1
"""
FORMATS = {
    # ending: ase's name of the format
    "xyz": "xyz", "extxyz": "extxyz", "pdb": "proteindatabank", "cif": "cif", "traj": "traj", "json": "json",
    "vasp": "vasp", "gen": "gen", "xsf": "xsf", "gro": "gromacs", "in": "aims", "cfg": "cfg", "res": "res",
}  # fmt: skip


CHARGED_SDF = SDF.replace(b"M  END", b"M  CHG  1   1  -1\nM  RAD  1   2   2\nM  END")
CHARGED_PDB = b"".join(
    b"HETATM%5d %-4s WAT A   1    %8.3f%8.3f%8.3f  1.00  0.00          %2s%2s\n" % row
    for row in ((1, b"O", 0.0, 0.0, 0.0, b"O", b"1-"), (2, b"H1", 0.0, 0.0, 0.97, b"H", b"  "))
)
CHARGED_XYZ = (
    b'2\nProperties=species:S:1:pos:R:3:charges:R:1 charge=-1 spin=1 energy=-1.0 dipole="0 0 1" pbc="F F F"\n'
    b"O 0 0 0 -0.9\nH 0 0 0.97 -0.1\n",
    b"2\ncharge=-1 multiplicity=1\nO 0 0 0\nH 0 0 0.97\n",
)


def _by_labelling(path: Path) -> None:
    """What `label`, `relax` and `md` of many read."""
    from egnn_md.jobs.source import as_atoms, read_items

    for count, item in enumerate(read_items(path)):
        try:
            as_atoms(item)
        except ValueError as error:
            if not is_refusal(error):
                raise
        if count > 1000:
            return


def structure_files(folder: Path) -> list[Subject]:
    """Sound files of sixteen formats, written by ase but for what it cannot write, and files that tell charges."""
    from ase.build import bulk, molecule
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    readers: dict[str, Read] = {"md": _by_md, "predict": _by_predict, "train": _by_train, "label": _by_labelling}
    subjects = [Subject("a.sdf", (SDF, SDF * 3, CHARGED_SDF), readers), Subject("a.mol2", (MOL2,), readers)]
    subjects.append(Subject("a.smi", (b"CCO ethanol\nc1ccccc1 benzene\n",), {"predict": _by_predict, "md": _by_md}))
    water, ice = molecule("H2O"), bulk("Si", cubic=True)
    water.center(vacuum=3.0)
    for atoms in (water, ice):
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.full((len(atoms), 3), 0.1))
    for ending, name in FORMATS.items():
        made = []
        for atoms in (water, ice):
            write(folder / "made", atoms, format=name)
            made.append((folder / "made").read_bytes())
        made += {"xyz": CHARGED_XYZ[1:], "extxyz": CHARGED_XYZ, "pdb": [CHARGED_PDB]}.get(ending, [])
        subjects.append(Subject(f"a.{ending}", tuple(made), readers))
    return subjects


# Arrays


def spoil_npz(data: bytes, rng: np.random.Generator) -> bytes:
    """An npz with other arrays, or its bytes mutated."""
    if rng.random() < 0.3:
        return mutate(data, rng)
    with np.load(io.BytesIO(data)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for _ in range(int(rng.integers(1, 3))):
        name = sorted(arrays)[int(rng.integers(len(arrays)))]
        arrays = _spoil_array(arrays, name, rng)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _spoil_array(arrays: dict[str, Any], name: str, rng: np.random.Generator) -> dict[str, Any]:
    value = np.array(arrays[name])
    bad = (-1, 0, 10**9, np.nan, np.inf, 1e300, 2**62)[int(rng.integers(7))]
    kind = int(rng.integers(10))
    with np.errstate(all="ignore"):
        if kind <= 2 and value.size and value.dtype.kind in "iufb":
            flat = value.astype(np.float64 if isinstance(bad, float) else value.dtype).ravel()
            flat[int(rng.integers(flat.size))] = np.array(bad).astype(flat.dtype)
            value = flat.reshape(value.shape)
        elif kind == 3:
            value = value[: max(0, len(value) - 1)] if value.ndim else value[None]
        elif kind == 4:
            value = value.reshape(-1)
        elif kind == 5:
            return {key: kept for key, kept in arrays.items() if key != name} or {"x": value}
        elif kind == 6:
            value = value.astype("U9")
        elif kind == 7:
            value = value[None]
        elif kind == 8:
            value = value.astype(np.complex128) if value.dtype.kind in "iufb" else value
        else:
            return {**arrays, "note": np.array(["free text"] * 3)}
    return {**arrays, name: value}


def npz_files() -> list[Subject]:
    """Structures with labels."""
    rng = np.random.default_rng(0)
    arrays = {
        "n_atoms": np.array([3, 3]),
        "atomic_numbers": np.array([8, 1, 1] * 2),
        "positions": rng.normal(size=(6, 3)),
        "energy": np.array([-1.0, -2.0]),
        "forces": rng.normal(size=(6, 3)),
        "gdb": np.array([1, 2]),
        "tag": np.array(["a", "b"]),
        "cell": np.zeros((2, 3, 3)),
        "pbc": np.zeros((2, 3), bool),
        "charge": np.array([0.0, -1.0]),
        "multiplicity": np.ones(2),
        "charges": np.array([0.0, 0.1, -0.1, -0.8, -0.1, -0.1]),
        "dipole": rng.normal(size=(2, 3)),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    readers: dict[str, Read] = {"train": _by_train, "predict": _by_predict, "label": _by_labelling}
    return [Subject("a.npz", (buffer.getvalue(),), readers, spoil_npz)]


# Configurations

CONFIGURATIONS = (
    b"""task = "potential"
seed = 1
[data]
files = ["a.npz"]
valid_fraction = 0.1
[model]
hidden_dim = 16
cutoff = 4.0
long_range = true
[training]
max_steps = 10
learning_rate = 1e-3
clip_norm = 1.0
charge_weight = 1.0
""",
    b"""task = "nbody"
[data]
files = ["a.npz"]
[model]
[training]
max_steps = 10
""",
    b"""task = "property"
[data]
files = ["a.npz"]
[model]
targets = ["gap"]
[training]
max_steps = 10
""",
)
VALUES = (
    b"10000000000000000000000000000000", b"inf", b"nan", b"-1", b"[]", b"{}", b"['x']", b"true", b'""', b"1e400",
    b"[[[[[]]]]]", b"1979-05-27", b'"\\u0000"', b"[" * 2000 + b"]" * 2000, b"9" * 4301, b"{a = {a = {}}}",
)  # fmt: skip


def spoil_toml(data: bytes, rng: np.random.Generator) -> bytes:
    """One value of a configuration replaced, or its bytes mutated."""
    if rng.random() < 0.5:
        return mutate(data, rng)
    lines = data.split(b"\n")
    keys = [k for k, line in enumerate(lines) if b"=" in line]
    k = keys[int(rng.integers(len(keys)))]
    choices = VALUES + NUMBERS
    lines[k] = lines[k].split(b"=")[0] + b"= " + choices[int(rng.integers(len(choices)))]
    return b"\n".join(lines)


def _by_config(path: Path) -> None:
    from egnn_md.training.tasks import load_config

    config: Any = load_config(path)
    training = config.training
    if not np.isfinite([training.learning_rate, training.clip_norm]).all():
        raise Fault("an infinite setting was accepted")
    if not getattr(config.model, "hidden_dim", 1) <= 65536:
        raise Fault("a network of any width was accepted")


def configurations() -> list[Subject]:
    """Training configurations of three tasks."""
    return [Subject("config.toml", CONFIGURATIONS, {"train": _by_config}, spoil_toml)]


# Checkpoints


def spoil_checkpoint(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes mutated, a value of the configuration replaced, or one weight changed."""
    kind = rng.random()
    length = int.from_bytes(data[:8], "little")
    if kind < 0.3:
        return mutate(data, rng)
    if kind < 0.5:  # one bit of one weight
        changed = bytearray(data)
        changed[int(rng.integers(8 + length, len(data)))] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    header = json.loads(data[8 : 8 + length])
    ours = json.loads(header["__metadata__"]["egnn_md"])
    values = (None, True, -1, 0, 1e9, 10**40, "x", [], [[]], {}, [1, 2], [True], float("nan"), "../../victim", 2**31)
    where = ours["config"] if kind < 0.85 else ours
    key = sorted(where)[int(rng.integers(len(where)))]
    where[key] = values[int(rng.integers(len(values)))]
    if kind > 0.95:
        first, second = sorted(name for name in header if name != "__metadata__")[:2]
        header[first], header[second] = header[second], header[first]
    header["__metadata__"]["egnn_md"] = json.dumps(ours)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _by_load(sound: tuple[bytes, ...]) -> Read:
    def read(path: Path) -> None:
        from egnn_md.checkpoint import load

        load(path)
        if _weights(path.read_bytes()) not in map(_weights, sound):
            raise Fault("changed weights or another configuration were loaded")

    return read


def _weights(data: bytes) -> object:
    """What decides the numbers of a model."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    ours = json.loads(header["__metadata__"]["egnn_md"])
    names = {name: value for name, value in header.items() if name != "__metadata__"}
    return json.dumps([ours["kind"], ours["config"], names], sort_keys=True), data[8 + length :]


def checkpoints(folder: Path) -> list[Subject]:
    """A small potential with charges and one without, with their checksums."""
    import torch

    from egnn_md.checkpoint import save
    from egnn_md.models.potential import Potential, PotentialConfig

    torch.manual_seed(0)
    size = {"hidden_dim": 8, "message_dim": 8, "n_vectors": 2, "n_layers": 1, "n_radial": 4}
    made = []
    for long_range in (False, True):
        config = PotentialConfig((1, 6, 8), (-13.6, -1029.0, -2042.0), long_range=long_range, **size)
        save(Potential(config), folder / "sound.safetensors")
        made.append((folder / "sound.safetensors").read_bytes())
    sound = tuple(made)
    return [Subject("a.safetensors", sound, {"load": _by_load(sound)}, spoil_checkpoint)]


# The campaign


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(folder: Path, seconds: float, seed: int, most: int = 10**9) -> list[Tally]:
    """Fuzz every reader for its share of the time."""
    sources = {
        "structure files": (0.5, structure_files(folder)),
        "labels": (0.15, npz_files()),
        "configurations": (0.15, configurations()),
        "checkpoints": (0.2, checkpoints(folder)),
    }
    tallies = []
    for part, (share, subjects) in sources.items():
        tally = Tally(part)
        inside = folder / "inside"
        inside.mkdir(exist_ok=True)
        (folder / "victim").write_text("untouched")

        def case(number: int, part: str = part, subjects: list[Subject] = subjects, inside: Path = inside) -> Any:
            rng = np.random.default_rng((seed, number))
            subject = subjects[number % len(subjects)]
            data = subject.spoil(subject.sound[int(rng.integers(len(subject.sound)))], rng)
            reader = sorted(subject.readers)[int(rng.integers(len(subject.readers)))]

            def act() -> None:
                path = inside / subject.name
                path.write_bytes(data)
                try:
                    subject.readers[reader](path)
                finally:
                    if sorted(inside.iterdir()) != [path] or (folder / "victim").read_text() != "untouched":
                        raise Fault("a reader wrote a file")
                    path.unlink()

            return f"{part} seed {seed} number {number} ({subject.name} by {reader})", act

        explore(tally, case, seconds * share, most)
        for path in inside.iterdir():
            path.unlink()
        tallies.append(tally)
        tally.show()
    return tallies


def bombs(folder: Path) -> Tally:
    """Small files that unpack to gigabytes."""
    tally = Tally("bombs")
    made = folder / "bombs"
    made.mkdir(exist_ok=True)
    with zipfile.ZipFile(made / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, count in (("n_atoms", 1), ("atomic_numbers", 3 * 10**8), ("positions", 3 * 10**8), ("energy", 1)):
            shape = (count, 3) if name == "positions" else (count,)
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": shape})
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(head.getvalue())
                for _ in range(300 if count > 1 else 0):
                    file.write(b"\0" * 10**7)
                file.write(b"\0" * 8 * (count == 1))
    with (made / "sparse.xyz").open("wb") as file:
        file.truncate(5 * 10**9)
    import gzip

    with gzip.open(made / "bomb.xyz.gz", "wb") as file:
        file.write(b"100000000\n\n")
        for _ in range(150):
            file.write(b"H 0 0 0\n" * 10**6)
    readers = {"md": _by_md, "predict": _by_predict, "train": _by_train}
    pairs = [(path, name) for path in sorted(made.iterdir()) for name in readers]

    def case(number: int) -> Any:
        path, name = pairs[number]
        return f"{path.name} by {name}", lambda: readers[name](path)

    explore(tally, case, 600, len(pairs))
    for path in made.iterdir():
        path.unlink()
    tally.show()
    return tally
