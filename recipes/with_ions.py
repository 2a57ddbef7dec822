"""All of label_organics.py's train.npz and of xtb_frames.npz in one file, as `egnn-md train` reads it for `egnn-xtb`.

usage: python recipes/with_ions.py train.npz xtb_frames.npz whole.npz

Of xtb_frames.npz those frames that train.npz has labelled again, with charges, are left out, and so are the molecules
that are for testing: gdb % 20 == 0 or 7, and five that are among the unseen molecules of test.npz. Groups are SMILES,
or the gdb number of xtb_frames' molecules. Lone ions, of which there is one frame each, stand fifty times: all binding
of ions is relative to them. Rare kinds and drug-like molecules stand two or three times (`COPIES`), beside the many
frames of small neutral molecules.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

TESTED = (8, 659, 1246, 28435, 122878)
PER_ATOM = {"atomic_numbers": (), "positions": (3,), "forces": (3,), "charges": ()}
PER_FRAME = {"n_atoms": (), "charge": (), "energy": (), "dipole": (3,), "tag": (), "group": ()}
LONE_IONS = 50
COPIES = {"thermal": 3, "rare": 3, "state": 3, "torsion": 3, "peptide": 3, "droplet": 3, "metal": 3}
COPIES |= {"interaction": 2, "bound": 2, "distorted": 2}
"""Of each frame, by its tag; the others stand once."""
MISSING = {"charge": 0.0, "charges": np.nan, "dipole": np.nan}


def main(labelled: Path, frames: Path, target: Path) -> None:
    first, second = _read(labelled), _read(frames)
    first["group"] = np.char.replace(first["group"].astype(str), "gdb", "")
    gdb = second["gdb"]
    second["group"] = gdb.astype(str)
    again = {_key(first, k) for k in np.flatnonzero(np.char.isdigit(first["group"]))}
    seen = np.array([_key(second, k) in again for k in range(len(gdb))])
    second = _select(second, ~np.isin(gdb % 20, (0, 7)) & ~np.isin(gdb, TESTED) & ~seen)
    first = _select(first, ~np.isin(first["group"], [str(number) for number in TESTED]))
    lone = _select(first, (first["tag"] == "ion") & np.isin(np.arange(len(first["tag"])), _firsts(first)))
    copies = np.array([COPIES.get(tag, 1) for tag in first["tag"]])
    more = (_select(first, copies > k) for k in range(1, max(COPIES.values())))
    parts = (first, *more, second, *[lone] * (LONE_IONS - 1))
    columns = {name: np.concatenate([_column(part, name) for part in parts]) for name in PER_ATOM | PER_FRAME}
    with target.with_suffix(".partial").open("wb") as file:
        np.savez(file, **columns)
    target.with_suffix(".partial").replace(target)
    print(f"{len(first['n_atoms'])} and {len(second['n_atoms'])} frames, {int((columns['charge'] != 0).sum())} charged")


def _firsts(arrays: dict[str, Any]) -> np.ndarray:
    """Of each group its first frame."""
    return np.unique(arrays["group"], return_index=True)[1]


def _read(path: Path) -> dict[str, Any]:
    with np.load(path) as data:
        arrays = dict(data)
    arrays["starts"] = np.concatenate([[0], np.cumsum(arrays["n_atoms"])]).astype(np.int64)
    return arrays


def _key(arrays: dict[str, Any], k: int) -> tuple[str, bytes]:
    """A frame by its group and its first atom, to 1e-3 Å."""
    return str(arrays["group"][k]), np.round(arrays["positions"][arrays["starts"][k]].astype(np.float64), 3).tobytes()


def _select(arrays: dict[str, Any], keep: np.ndarray) -> dict[str, Any]:
    atoms = np.repeat(keep, arrays["n_atoms"])
    chosen = {name: arrays[name][atoms] for name in PER_ATOM if name in arrays}
    return chosen | {name: arrays[name][keep] for name in PER_FRAME if name in arrays}


def _column(arrays: dict[str, Any], name: str) -> np.ndarray:
    if name in arrays:
        return np.asarray(arrays[name])
    n = len(arrays["positions"]) if name in PER_ATOM else len(arrays["n_atoms"])
    return np.full((n, *(PER_ATOM | PER_FRAME)[name]), MISSING[name])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
