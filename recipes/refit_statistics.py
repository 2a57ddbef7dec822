"""Take a potential's statistics anew, with the weights it has: what the extrapolation signal measures against, and the
force error that it promises.

usage: python recipes/refit_statistics.py MODEL frames.npz NEW.safetensors

`frames.npz` is divided as the model's header says: the signal from its training side, the expected error from the
others. For weights that were chosen or changed after a training.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from egnn_md.checkpoint import load, read_header, save
from egnn_md.data.frame_files import read_frames
from egnn_md.data.split import assign_split
from egnn_md.evaluation.potential import errors_by_atom
from egnn_md.models.potential import Potential
from egnn_md.training.potential import fit_familiarity

MADE_BY_SAVE = ("format_version", "library_version", "kind", "config", "units", "sha256")


def main(model: str, frames: Path, target: Path) -> None:
    header, potential = read_header(model), load(model, dtype=torch.float32)
    if not isinstance(potential, Potential):
        raise SystemExit(f"{model} is no potential")
    data, split = read_frames(frames), header["split"]
    sides = assign_split(data, split["valid"], split["test"])
    train, held_out = (data.select(np.flatnonzero((sides == "train") == side)) for side in (True, False))
    fit_familiarity(potential, train)
    potential.expected_error.fit(*errors_by_atom(potential, held_out))
    save(potential, target, {name: value for name, value in header.items() if name not in MADE_BY_SAVE})
    print(f"from {len(train)} frames; errors from {len(held_out)} others")
    for signal, error in zip(*potential.expected_error.table.tolist(), strict=True):
        print(f"  extrapolation {signal:5.2f}: {1e3 * error:8.1f} meV/Å")


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:4]))
