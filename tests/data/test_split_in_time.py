"""Frames of one molecule are divided in blocks of time, and found again."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from egnn_md.data.frames import Frames
from egnn_md.data.split import split_in_time


def frames(groups: list[str]) -> Frames:
    n = len(groups)
    return Frames(
        n_atoms=np.ones(n, np.int64),
        atomic_numbers=np.ones(n, np.int64),
        positions=np.zeros((n, 3)),
        energy=np.zeros(n),
        forces=None,
        cell=np.zeros((n, 3, 3)),
        pbc=np.zeros((n, 3), bool),
        stress=None,
        group=np.array(groups),
        tag=np.full(n, ""),
    )


@pytest.mark.parametrize(("n", "smallest"), [(10, 1), (40, 6), (251, 20), (3000, 150)])
def test_sides_have_a_smallest_size_and_are_blocks(n: int, smallest: int) -> None:
    sides = split_in_time(frames(["aspirin"] * n), 0.05, 0.05).tolist()
    assert sides.count("valid") >= smallest
    assert sides.count("test") >= smallest
    assert sides.count("train") >= n / 2
    assert sum(a != b for a, b in pairwise(sides)) <= 20
    assert split_in_time(frames(["aspirin"] * n), 0.05, 0.0).tolist().count("test") == 0


def test_each_group_is_divided() -> None:
    groups = ["a", "b"] * 200
    sides = split_in_time(frames(groups), 0.1, 0.1)
    for name in "ab":
        own = sides[np.array(groups) == name].tolist()
        assert 20 <= own.count("valid") <= 40
        assert 20 <= own.count("test") <= 40
