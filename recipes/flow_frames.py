"""Thermal frames of many molecules with the forces of one potential: what a general flow map learns from.

Two kinds of chunks in turn, each a file under OUT/parts, written whole or not at all; the same command goes on after a
kill, and OUT/train.npz holds all there are:

- md: 64 molecules of the SMILES, a conformer each, warmed by a force field and then by Langevin dynamics under the
  potential, all as one batch; a frame every `--between` fs.
- frames: neutral frames of --frames (tags M and F, at most 600 K) with the potential's forces in place of their own, so
  that all labels are of one potential. gdb % 20 = 0 or 7 stay out.

OUT/held_out.smi lists molecules for evaluation: the first 100 of the side that label_organics.py keeps for testing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _gfn2 import Dropped
from _molecules import ForceField, Species, conformer
from _sources import Ragged, read_molecules
from ase import Atoms

from egnn_md.checkpoint import load
from egnn_md.compiled.forces import use_compiled
from egnn_md.dynamics.batched import Batch, Thermostat, run
from egnn_md.models.potential import Potential
from egnn_md.storage import write_npz, write_whole

ELEMENTS = frozenset((1, 6, 7, 8, 9, 16, 17))
COLDEST, HOTTEST = 250.0, 550.0
FRICTION = 50.0
HELD_OUT = 100
LARGEST_FORCE = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--molecules", type=Path, required=True, help="SMILES, a line each")
    parser.add_argument("--frames", type=Path, required=True, help="npz with tag, T and gdb")
    parser.add_argument("--exclude", type=Path, help="npz of structures whose molecules are left out")
    parser.add_argument("--model", default="egnn-xtb", help="the potential")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=64, help="molecules side by side")
    parser.add_argument("--equilibration", type=int, default=30, help="fs before the first frame")
    parser.add_argument("--between", type=int, default=6, help="fs between frames of a molecule")
    parser.add_argument("--per-molecule", type=int, default=8, help="frames of a molecule")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    (options.out / "parts").mkdir(parents=True, exist_ok=True)
    model = load(options.model, dtype=torch.float32)
    assert isinstance(model, Potential)
    use_compiled(model, "auto", print)
    molecules, held_out = (wanted(side) for side in read_molecules(options))
    with write_whole(options.out / "held_out.smi") as temporary:
        temporary.write_text("".join(f"{piece.smiles}\n" for piece in held_out[:HELD_OUT]))
    order = np.random.default_rng(options.seed).permutation(len(molecules))
    frames = thermal_frames(options.frames, options.seed)
    stop = time.monotonic() + 3600 * options.hours
    for number in range(len(molecules) // options.batch):
        for kind in ("md", "frames"):
            path = options.out / "parts" / f"{kind}-{options.seed}-{number:04d}.npz"
            if path.exists():
                continue
            if time.monotonic() > stop:
                merge(options.out)
                return
            began = time.process_time()
            if kind == "md":
                chosen = [molecules[k] for k in order[number * options.batch :][: options.batch]]
                made = dynamics(model, chosen, options, np.random.default_rng([options.seed, number]))
            else:
                made = relabelled(model, *frames, number, 2 * options.batch * options.per_molecule)
            if made:
                write_npz(path, arrays(made), compress=False)
                print(f"{path.name} {len(made)} frames, {time.process_time() - began:.0f} s", flush=True)
    merge(options.out)


def wanted(molecules: list[Species]) -> list[Species]:
    """Neutral ones of 5 to 20 heavy atoms of these elements."""
    return [m for m in molecules if m.charge == 0 and 5 <= m.heavy <= 20 and m.elements <= ELEMENTS]


def dynamics(
    model: Potential, molecules: list[Species], options: argparse.Namespace, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Frames of molecules side by side; those that RDKit cannot place or that burst are left out."""
    temperatures, structures, groups = [], [], []
    for piece in molecules:
        temperature = float(rng.uniform(COLDEST, HOTTEST))
        try:
            placed = conformer(piece.smiles, rng)  # a force field does not keep its molecule alive
            field = ForceField(placed)
            positions, _ = field.thermal(field.minimum(), temperature, 40, rng)
        except (Dropped, RuntimeError, ValueError):
            continue
        structures.append(Atoms(field.numbers, positions))
        temperatures.append(temperature)
        groups.append(piece.group)
    if not structures:
        return []
    batch, generator = Batch(model, structures), torch.Generator().manual_seed(int(rng.integers(2**62)))
    target, made = torch.tensor(temperatures, dtype=torch.float64), []
    thermostat = Thermostat(target, FRICTION, generator)
    state = run(batch, batch.start(target, generator), options.equilibration, 1.0, thermostat=thermostat)
    for _ in range(options.per_molecule):
        state = run(batch, state, options.between, 1.0, thermostat=thermostat)
        made += split(batch, structures, state.positions, state.energy, state.forces, groups, temperatures, "md")
    return made


def thermal_frames(path: Path, seed: int) -> tuple[Ragged, np.ndarray]:
    """The file, and the frames of it that are meant, in random order."""
    source = Ragged(path)
    data, side = source.arrays, source.arrays["gdb"] % 20
    thermal = np.isin(data["tag"], ("M", "F")) & (data["T"] <= 600) & (side != 0) & (side != 7)
    return source, np.random.default_rng(seed).permutation(np.flatnonzero(thermal))


def relabelled(model: Potential, source: Ragged, order: np.ndarray, number: int, size: int) -> list[dict[str, Any]]:
    """One chunk of frames with the potential's energies and forces."""
    chosen, made = order[number * size : (number + 1) * size], []
    for part in np.array_split(chosen, max(1, len(chosen) // 64)) if len(chosen) else ():
        structures = [Atoms(*source.structure(int(k))) for k in part]
        batch = Batch(model, structures)
        found = batch.evaluate(batch.positions)
        groups = [f"gdb {source.arrays['gdb'][k]}" for k in part]
        warm = source.arrays["T"][part].tolist()
        made += split(batch, structures, batch.positions, found.energy, found.forces, groups, warm, "frames")
    return made


def split(
    batch: Batch,
    structures: list[Atoms],
    positions: torch.Tensor,
    energy: torch.Tensor,
    forces: torch.Tensor,
    groups: list[str],
    temperatures: list[float],
    tag: str,
) -> list[dict[str, Any]]:
    """Each structure's frame, unless a force is beyond what thermal motion gives."""
    ends, made = batch.n_atoms.cumsum(0).tolist(), []
    for k, atoms in enumerate(structures):
        rows = slice(ends[k] - len(atoms), ends[k])
        force = forces[rows].numpy().astype(np.float32)
        if not np.isfinite(force).all() or np.abs(force).max() > LARGEST_FORCE:
            continue
        frame = {"atomic_numbers": atoms.numbers.astype(np.uint8), "forces": force, "energy": float(energy[k])}
        places = (positions[rows] - positions[rows].mean(0)).numpy().astype(np.float32)
        made.append({**frame, "positions": places, "group": groups[k], "T": temperatures[k], "tag": tag})
    return made


def arrays(frames: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Ragged arrays as egnn-md train reads them."""
    found = {name: np.concatenate([frame[name] for frame in frames]) for name in ("atomic_numbers", *PER_ATOM)}
    found |= {name: np.array([frame[name] for frame in frames]) for name in PER_FRAME}
    return {"n_atoms": np.array([len(frame["atomic_numbers"]) for frame in frames]), **found}


PER_ATOM = ("positions", "forces")
PER_FRAME = ("energy", "group", "T", "tag")


def merge(out: Path) -> None:
    """train.npz of all parts, replaced whole."""
    loaded = []
    for part in sorted((out / "parts").glob("*.npz")):
        with np.load(part) as data:
            loaded.append(dict(data))
    whole = {name: np.concatenate([part[name] for part in loaded]) for name in loaded[0]}
    write_npz(out / "train.npz", whole, compress=False)
    counts = {str(tag): int((whole["tag"] == tag).sum()) for tag in np.unique(whole["tag"])}
    print(
        f"train.npz: {len(whole['n_atoms'])} frames {counts} of {len(np.unique(whole['group']))} molecules", flush=True
    )


if __name__ == "__main__":
    main()
