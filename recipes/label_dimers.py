"""Pairs of atoms on their own, labelled with GFN2-xTB: where every learned pair interaction shows alone.

    python recipes/label_dimers.py -o dimers.npz      (half a minute on one core; needs tblite)

Every pair of H, C, N, O and F, at distances from where GFN2-xTB's force falls below 60 eV/Å to twice the sum of the
covalent radii. The output has the layout of the shared ragged npz (tag "D"), all frames in one group, which is on the
training side.
"""

from __future__ import annotations

import argparse
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
from label_collisions import MAX_FORCE, RADII, Frame, label, write_frames
from rich.progress import track

ELEMENTS = (1, 6, 7, 8, 9)
GROUP = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("dimers.npz"))
    parser.add_argument("--points", type=int, default=250, help="distances of each pair")
    options = parser.parse_args()
    frames: list[Frame] = []
    for pair in track(list(combinations_with_replacement(ELEMENTS, 2)), description="GFN2-xTB dimers"):
        numbers = np.array(pair)
        for distance in RADII[numbers].sum() * np.geomspace(0.3, 2.0, options.points):
            positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, distance]])
            try:
                energy, forces = label((numbers, positions))
            except RuntimeError:  # the self-consistent charges did not converge
                continue
            if np.abs(forces).max() < MAX_FORCE:
                frames.append(Frame(GROUP, numbers, positions, energy, forces))
    write_frames(options.output, frames, "D")


if __name__ == "__main__":
    main()
