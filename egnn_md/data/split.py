"""Which side of a training a structure is on: of its group's name alone, or of its time where there is one group."""

from __future__ import annotations

import hashlib
import math
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from egnn_md.data.frames import Frames

BLOCKS: Final = 20
SMALLEST_SIDE: Final = 20
"""Frames to validate and to test with, where there are enough of them: at most 15 % each."""


def side_of_group(group: str, valid: float, test: float) -> Literal["train", "valid", "test"]:
    """The side of one group: the first 64 bits of its SHA-256, as a fraction, against the fractions of groups."""
    u = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    return "valid" if u < valid else "test" if u < valid + test else "train"


def assign_split(frames: Frames, valid: float, test: float) -> NDArray[np.str_]:
    """ "train", "valid" or "test" of each frame, by a hash of its group alone.

    A group keeps its side whatever else a file holds and however often data is added. `valid` and `test` are the
    fractions of groups.
    """
    groups, inverse = np.unique(frames.group, return_inverse=True)
    return np.array([side_of_group(str(group), valid, test) for group in groups])[inverse]


def split_in_time(frames: Frames, valid: float, test: float) -> NDArray[np.str_]:
    """ "train", "valid" or "test" of each frame of a molecule or two, by blocks of frames one after another.

    Frames that follow each other are nearly alike: each group is cut into `BLOCKS` blocks in the file's order, and
    whole blocks, evenly over the time, are held out: at least `SMALLEST_SIDE` frames, or 15 % of all, if the fraction
    is not 0.
    """
    blocks = np.zeros(len(frames), np.int64)
    for group in np.unique(frames.group):
        members = np.flatnonzero(frames.group == group)
        blocks[members] = np.arange(len(members)) * BLOCKS // len(members)
    smallest = min(SMALLEST_SIDE / len(frames), 0.15)
    n_valid, n_test = (math.ceil(BLOCKS * max(part, smallest)) if part > 0 else 0 for part in (valid, test))
    sides = np.full(BLOCKS, "train", "U5")
    held = np.linspace(0, BLOCKS - 1, n_valid + n_test + 2).round().astype(int)[1:-1]
    turns = np.arange(len(held) + 1) * n_test // len(held)  # test in every so manieth of them
    sides[held] = np.where(np.diff(turns) > 0, "test", "valid")
    return sides[blocks]
