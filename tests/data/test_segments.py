"""Segments obey the laws of motion, depend on the seed alone, and survive a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule

from egnn_md.checkpoint import load
from egnn_md.chemistry.units import FS_PER_TIME_UNIT
from egnn_md.data.flow import DEUTERIUM, Segments, SegmentSettings, make_segments, read_segments
from egnn_md.data.frames import DataError
from egnn_md.models.potential import Potential

SETTINGS = SegmentSettings(
    copies=4, segments=2, length=2.0, equilibration=3.0, between=2.0, coldest=100.0, hottest=200.0, deuterium=0.7
)


@pytest.fixture
def make() -> Callable[..., Segments]:
    model = load("organic-xtb", dtype=torch.float64)
    assert isinstance(model, Potential)

    def run(**changes: object) -> Segments:
        starts = [(a.numbers.astype(np.int64), a.positions) for a in (molecule("H2O"), molecule("CH3OH"))]
        return make_segments(model, starts, replace(SETTINGS, **changes))  # type: ignore[arg-type]

    return run


def test_segments_conserve_energy_and_follow_their_velocities(make: Callable[..., Segments]) -> None:
    segments = make()
    assert (len(segments), segments.n_snapshots) == (2 * 8, 5)
    assert segments.n_atoms.tolist() == [3] * 4 + [6] * 4 + [3] * 4 + [6] * 4
    owner = np.repeat(np.arange(len(segments)), segments.n_atoms)
    squares = (segments.velocities.astype(float) ** 2).sum(-1) * FS_PER_TIME_UNIT**2
    kinetic = np.array([np.bincount(owner, 0.5 * segments.masses * column) for column in squares.T]).T
    total = segments.energy + kinetic
    assert np.ptp(kinetic, axis=1).max() > 1e-3
    assert np.ptp(total, axis=1).max() < 0.03 * np.ptp(kinetic, axis=1).max()
    middle = (segments.positions[:, 2:] - segments.positions[:, :-2]) / (2.0 * segments.spacing)
    np.testing.assert_allclose(middle, segments.velocities[:, 1:-1], atol=2e-3)


def test_every_second_copy_may_hold_deuterium(make: Callable[..., Segments]) -> None:
    segments = make()
    copy, heavy = np.repeat(segments.copy, segments.n_atoms), np.isclose(segments.masses, DEUTERIUM)
    assert heavy.any()
    assert not heavy[copy % 2 == 0].any()
    assert (segments.atomic_numbers[heavy] == 1).all()


def test_the_seed_decides(make: Callable[..., Segments]) -> None:
    first, same, other = make(), make(), make(seed=1)
    np.testing.assert_array_equal(first.positions, same.positions)
    assert not np.array_equal(first.positions, other.positions)


def test_a_file_gives_the_same_segments(make: Callable[..., Segments], tmp_path: Path) -> None:
    segments = make()
    segments.save(tmp_path / "segments.npz")
    read = read_segments(tmp_path / "segments.npz")
    for name in ("n_atoms", "copy", "masses", "positions", "velocities", "forces", "energy"):
        np.testing.assert_array_equal(getattr(read, name), getattr(segments, name))
    assert (read.spacing, read.origin["settings"]["seed"]) == (0.5, 0)
    assert list(tmp_path.iterdir()) == [tmp_path / "segments.npz"]


def test_selected_segments_keep_their_atoms(make: Callable[..., Segments]) -> None:
    segments = make()
    chosen = segments.select(np.array([5, 0]))
    assert chosen.n_atoms.tolist() == [6, 3]
    np.testing.assert_array_equal(chosen.positions[6:], segments.positions[:3])
    np.testing.assert_array_equal(chosen.composition((1, 6, 8)), [[4, 1, 1], [2, 0, 1]])


def test_broken_files_and_settings_are_refused(make: Callable[..., Segments], tmp_path: Path) -> None:
    segments = make()
    (tmp_path / "text.npz").write_text("nothing")
    replace(segments, forces=segments.forces[:, :2]).save(tmp_path / "short.npz")
    replace(segments, energy=segments.energy * np.nan).save(tmp_path / "nan.npz")
    for name, message in (
        ("missing", "no file of"),
        ("text", "no file of"),
        ("short", "same atoms"),
        ("nan", "finite"),
    ):
        with pytest.raises(DataError, match=message):
            read_segments(tmp_path / f"{name}.npz")
    for wrong in ({"length": 1.2}, {"timestep": 0.3}, {"copies": 0}, {"hottest": 100.0}, {"deuterium": 2.0}):
        with pytest.raises(ValueError, match="must"):
            SegmentSettings(**wrong)  # type: ignore[arg-type]
