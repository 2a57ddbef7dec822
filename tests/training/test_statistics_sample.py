"""The sample from which a training takes the statistics of the extrapolation signal."""

from __future__ import annotations

import numpy as np

from egnn_md.data.frames import Frames
from egnn_md.training.potential import _of_each_kind


def frames_of(tags: list[str]) -> Frames:
    n = len(tags)
    return Frames(
        n_atoms=np.ones(n, np.int64),
        atomic_numbers=np.ones(n, np.int64),
        positions=np.zeros((n, 3)),
        energy=np.zeros(n),
        forces=None,
        cell=np.zeros((n, 3, 3)),
        pbc=np.zeros((n, 3), bool),
        stress=None,
        group=np.array(tags),
        tag=np.array(tags),
    )


def test_rare_kinds_are_there_as_often_as_common_ones() -> None:
    tags = np.array(["common"] * 900 + ["rare"] * 20 + ["other"] * 80)
    chosen = _of_each_kind(frames_of(tags.tolist()), 120)
    assert (np.diff(chosen) > 0).all()
    counts = dict(zip(*np.unique(tags[chosen], return_counts=True), strict=True))
    assert counts == {"common": 50, "rare": 20, "other": 50}
    assert len(_of_each_kind(frames_of(tags.tolist()), 5000)) == len(tags)
