"""Frames of single neutral molecules, of labels that are there already: what a general flow map may learn from.

usage: python recipes/flow_from_labels.py train.npz xtb_frames.npz flow.npz

train.npz: of label_organics.py; xtb_frames.npz: as in with_ions.py. All labels are GFN2-xTB's, of the same zero.
Taken are molecules of H C N O F S Cl at up to 600 K, whose forces stay below 15 eV/Å. gdb % 20 = 0 or 7 stay out, and
what label_organics.py keeps for testing is not in train.npz.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from egnn_md.storage import write_npz

ELEMENTS = (1, 6, 7, 8, 9, 16, 17)
TAGS = ("alone", "monomer", "thermal", "torsion", "peptide", "rare", "M", "F")
HOTTEST = 600.0
LARGEST_FORCE = 15.0
PER_ATOM = ("atomic_numbers", "positions", "forces")


def main(labelled: Path, frames: Path, target: Path) -> None:
    parts = [usable(path) for path in (labelled, frames)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    write_npz(target, columns)
    print(f"{len(columns['n_atoms'])} frames of {len(np.unique(columns['group']))} molecules")


def usable(path: Path) -> dict[str, Any]:
    with np.load(path) as data:
        arrays = dict(data)
    n_atoms = arrays["n_atoms"]
    owner = np.repeat(np.arange(len(n_atoms)), n_atoms)
    bad = ~np.isin(arrays["atomic_numbers"], ELEMENTS) | (np.abs(arrays["forces"]).max(-1) > LARGEST_FORCE)
    kept = np.isin(arrays["tag"], TAGS) & (arrays["T"] <= HOTTEST) & (n_atoms > 2) & (np.bincount(owner, bad) == 0)
    if "gdb" in arrays:
        arrays["group"] = np.char.add("gdb", arrays["gdb"].astype(str))
    gdb = np.array([int(name[3:]) if name.startswith("gdb") else -1 for name in arrays["group"].astype(str)])
    kept &= ~np.isin(gdb % 20, (0, 7)) | (gdb < 0)
    if "charge" in arrays:
        kept &= arrays["charge"] == 0
    rows = kept[owner]
    per_frame = {
        "n_atoms": n_atoms,
        "energy": arrays["energy"],
        "group": arrays["group"].astype(str),
        "tag": arrays["tag"],
    }
    return {name: arrays[name][rows] for name in PER_ATOM} | {name: value[kept] for name, value in per_frame.items()}


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*map(Path, sys.argv[1:]))
