"""QM9's training molecules at the minima of a potential, with the labels of their own: what examples/qm9-continue.toml
learns from beside QM9 itself, so that predictions at such geometries are right too.

    python recipes/relax_qm9.py --data FOLDER -o FOLDER/qm9-relaxed.npz      (a quarter of an hour on one core)

Molecules with all twelve labels, drawn at random from the training side and relaxed side by side. Those that do not get
to a minimum, or whose bonds change on the way, are left out. So is the label of <R^2>: it belongs to a geometry.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from egnn_md.models.potential import Potential

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # which knows how to move many molecules at once
from _batched_md import Batch
from _common import RESERVED_INDEX, Molecule, load_potential, make_parser, parse

FloatArray = NDArray[np.float64]
FMAX, MAX_STEPS = 0.01, 150  # eV/Å
MAX_MOVE = 0.1  # Å, of one atom in one step
STIFFNESS = 70.0  # eV/Å², of all at the start
AT_ONCE = 64


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--count", type=int, default=6000, help="molecules")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="NPZ")
    parser.add_argument("--seed", type=int, default=0)
    options = parse(parser, arguments)
    from rich.progress import track

    from egnn_md.chemistry.molecules import environments
    from egnn_md.chemistry.targets import NAMES
    from egnn_md.data.qm9 import read_qm9, write_qm9

    data = read_qm9(Path(options.data) / "qm9.npz").side("train")
    usable = (data.index % 20 != RESERVED_INDEX) & np.isfinite(data.targets).all(1)
    data = data.select(np.flatnonzero(usable)).having([1, 6, 7, 8])
    chosen = data.select(np.sort(np.random.default_rng(options.seed).permutation(len(data))[: options.count]))
    n = len(chosen)
    numbers = np.split(chosen.atomic_numbers, chosen.starts[1:-1])
    minima = np.split(chosen.positions.astype(np.float64), chosen.starts[1:-1])
    model = load_potential(options.model, "float32")
    kept, relaxed = [], []
    for first in track(range(0, len(chosen), AT_ONCE), "relaxing"):
        part = range(first, min(first + AT_ONCE, len(chosen)))
        ends = relax(model, [Molecule(int(chosen.index[k]), numbers[k], minima[k]) for k in part])
        for k, end in zip(part, ends, strict=True):
            if end is not None and environments(numbers[k], end) == environments(numbers[k], minima[k]):
                kept.append(k)
                relaxed.append(end)
    chosen = replace(chosen.select(np.array(kept)), positions=np.concatenate(relaxed))
    chosen.targets[:, NAMES.index("r2")] = np.nan
    write_qm9(chosen, options.output)
    print(f"{options.output}: {len(kept)} of {n} molecules")


def relax(model: Potential, molecules: list[Molecule]) -> list[FloatArray | None]:
    """The minima by BFGS, (n_atoms, 3) Å each, or None. Arrays are padded to the largest molecule."""
    n, largest = len(molecules), max(len(molecule.numbers) for molecule in molecules)
    there = np.arange(largest) < np.array([len(molecule.numbers) for molecule in molecules])[:, None]
    batch, x = Batch(model, molecules), np.zeros((n, largest, 3))
    x[there] = np.concatenate([molecule.positions for molecule in molecules])

    def forces() -> FloatArray:
        found = np.zeros_like(x)
        found[there] = batch.forces(torch.tensor(x[there], dtype=model.dtype))[1].detach().numpy()
        return found

    f, inverse = forces(), np.tile(np.eye(3 * largest) / STIFFNESS, (n, 1, 1))
    for _ in range(MAX_STEPS):
        moving = np.linalg.norm(f, axis=2).max(1) > FMAX
        if not moving.any():
            break
        move = np.einsum("nij,nj->ni", inverse, f.reshape(n, -1)).reshape(x.shape) * moving[:, None, None]
        longest = np.linalg.norm(move, axis=2).max(1)
        move *= np.minimum(1.0, MAX_MOVE / np.maximum(longest, 1e-12))[:, None, None]
        x, before = x + move, f
        f = forces()
        step, change = move.reshape(n, -1), (before - f).reshape(n, -1)
        along = (step * change).sum(1)
        bent = np.einsum("nij,nj->ni", inverse, change)
        share = np.where(along > 1e-9, 1.0 / np.maximum(along, 1e-9), 0.0)[:, None, None]
        both = np.einsum("ni,nj->nij", bent, step)
        weight = (along + (change * bent).sum(1))[:, None, None] * share
        inverse += share * (weight * np.einsum("ni,nj->nij", step, step) - both - both.transpose(0, 2, 1))
    down = np.linalg.norm(f, axis=2).max(1) <= FMAX
    return [x[k][there[k]] if down[k] else None for k in range(n)]


if __name__ == "__main__":
    main()
