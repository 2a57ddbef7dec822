"""The part of label_organics.py's train.npz that a neutral potential learns from, as `egnn-md train` reads it.

usage: python recipes/neutral_part.py train.npz neutral.npz

Left out: charged frames, frames with metals, and the relabelled frames of xtb_frames.npz, which are trained on from
that file. Groups (molecules) become numbers from a million on, so that none is a gdb number.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

METALS = (3, 11, 12, 19, 20, 30)
RELABELLED = ("M", "C", "E", "R", "F")
KEPT = ("n_atoms", "atomic_numbers", "positions", "forces", "energy", "tag", "T")


def main(source: Path, target: Path) -> None:
    with np.load(source) as data:
        frame = np.repeat(np.arange(len(data["n_atoms"])), data["n_atoms"])
        metals = np.isin(np.arange(len(data["n_atoms"])), frame[np.isin(data["atomic_numbers"], METALS)])
        keep = (data["charge"] == 0) & ~metals & ~np.isin(data["tag"], RELABELLED)
        columns = {name: data[name][keep[frame] if len(data[name]) == len(frame) else keep] for name in KEPT}
        _, group = np.unique(data["group"][keep], return_inverse=True)
    np.savez(target, gdb=group.astype(np.int64) + 1_000_001, **columns)
    print(f"{int(keep.sum())} of {len(keep)} frames")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
