"""Which side of a training a structure is on: of its group's name alone."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from egnn_md.data.frames import Frames


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
