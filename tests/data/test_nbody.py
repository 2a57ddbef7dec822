"""The particle simulator against the physics it states; its files are read back whole or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from egnn_md.data import nbody
from egnn_md.data.frames import DataError


def literal_run(positions: np.ndarray, velocities: np.ndarray, couplings: np.ndarray, n_steps: int) -> np.ndarray:
    """The equations at the top of the module, one system and one pair after another."""
    x, v = positions.astype(float).copy(), velocities.astype(float).copy()
    for _ in range(n_steps):
        force = np.zeros_like(x)
        for i in range(len(x)):
            for j in range(len(x)):
                if i != j:
                    force[i] += couplings[i, j] * (x[i] - x[j]) / np.linalg.norm(x[i] - x[j]) ** 3
        v += 1e-3 * np.clip(force, -100, 100)
        x += 1e-3 * v
    return x


@pytest.mark.parametrize(("n_particles", "n_dim"), [(5, 3), (3, 2), (4, 5)])
def test_charged_particles_follow_the_equations(n_particles: int, n_dim: int) -> None:
    made = nbody.generate("charged", 3, n_particles, 1, n_dim, frames=(0, 1))
    assert set(np.unique(made.charges)) <= {-1.0, 1.0}
    for k in range(3):
        expected = literal_run(made.positions[k, 0], made.velocities[k, 0], made.couplings[k], 100)
        assert made.positions[k, 1] == pytest.approx(expected, abs=2e-5)  # float32 in the file


def test_a_close_pair_is_clipped_component_by_component() -> None:
    x = np.array([[[0.0, 0.0, 0.0], [0.02, 0.0005, 0.0]]])
    v, couplings = np.zeros_like(x), np.array([[[0.0, 1.0], [1.0, 0.0]]])
    _, after = nbody.advance("charged", x, v, couplings, 1)
    full = 1e-3 * (x[0, 0] - x[0, 1]) / np.linalg.norm(x[0, 0] - x[0, 1]) ** 3
    assert abs(full[0]) > 0.1 > abs(full[1]) > 0.0
    assert after[0, 0].tolist() == pytest.approx([-0.1, full[1], 0.0])
    assert after[0, 1].tolist() == pytest.approx([0.1, -full[1], 0.0])


def test_two_particles_on_a_spring_swing_with_its_frequency() -> None:
    x, couplings = np.array([[[0.5, 0, 0], [-0.5, 0, 0]]]), np.array([[[0.0, 1.0], [1.0, 0.0]]])
    period = 2 * np.pi / np.sqrt(2 * nbody.SPRING_CONSTANT)
    steps = round(period / nbody.TIMESTEP)
    later, _ = nbody.advance("springs", x, np.zeros_like(x), couplings, steps)
    half_way, _ = nbody.advance("springs", x, np.zeros_like(x), couplings, steps // 2)
    assert later == pytest.approx(x, abs=1e-3)
    assert half_way == pytest.approx(-x, abs=1e-3)


def test_frames_are_a_hundred_steps_apart_and_go_on_from_each_other() -> None:
    made = nbody.generate("charged", 20, 5, 0, frames=(3, 1))
    assert made.frames.tolist() == [1, 3]
    x, v = nbody.advance("charged", made.positions[:, 0], made.velocities[:, 0], made.couplings, 200)
    assert np.median(np.abs(x - made.positions[:, 1])) < 1e-5
    assert np.median(np.abs(v - made.velocities[:, 1])) < 1e-5


def test_starts_are_as_the_benchmark_says() -> None:
    """Seen a tenth of a time unit later, when little has changed."""
    wide = nbody.generate("charged", 400, 20, 0, frames=(0,))
    assert wide.positions.std() == pytest.approx((20 / 5) ** (1 / 3), rel=0.05)
    springs = nbody.generate("springs", 400, 5, 0, frames=(0,))
    off_diagonal = springs.couplings[:, ~np.eye(5, dtype=bool)]
    assert off_diagonal.mean() == pytest.approx(0.5, abs=0.03)
    assert np.array_equal(springs.couplings, springs.couplings.swapaxes(1, 2))
    speeds = np.linalg.norm(springs.velocities, axis=-1)
    assert np.median(speeds) == pytest.approx(0.5, abs=0.01)
    assert speeds.std() < 0.05


def test_the_seed_decides_and_batching_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = nbody.generate("charged", 8, 4, (1, 2), frames=(0, 2))
    monkeypatch.setattr(nbody, "_STATE_NUMBERS", 50)
    parts = nbody.generate("charged", 8, 4, (1, 2), frames=(0, 2))
    assert np.allclose(whole.positions, parts.positions, atol=1e-6)
    assert not np.allclose(whole.positions, nbody.generate("charged", 8, 4, (1, 3), frames=(0, 2)).positions)


def test_energy_hardly_changes_without_close_encounters() -> None:
    made = nbody.generate("springs", 50, 5, 0, frames=(0, 40))
    energy = nbody.energies("springs", made.positions, made.velocities, made.couplings[:, None])
    assert np.abs(energy[:, 1] / energy[:, 0] - 1).max() < 1e-2
    charged = nbody.generate("charged", 50, 5, 0, frames=(0, 40))
    energy = nbody.energies("charged", charged.positions, charged.velocities, charged.couplings[:, None])
    assert np.quantile(np.abs(energy[:, 1] - energy[:, 0]), 0.3) < 5e-3


@pytest.mark.parametrize("law", ["charged", "springs"])
def test_a_file_is_read_back(law: nbody.Law, tmp_path: Path) -> None:
    path = tmp_path / "n.npz"
    sides = {
        "test": nbody.generate(law, 4, 3, 0, frames=(1, 2)),
        "rollout": nbody.generate(law, 2, 3, 1, frames=range(4)),
    }
    nbody.write(path, sides)
    assert [p.name for p in tmp_path.iterdir()] == ["n.npz"]
    for side, made in sides.items():
        found = nbody.read(path, side)
        assert found.law == law
        assert found.frames.tolist() == made.frames.tolist()
        for name in ("positions", "velocities", "couplings"):
            assert np.array_equal(getattr(found, name), getattr(made, name)), name
        assert found.sources[0].startswith("n.npz ")
    with pytest.raises(DataError, match="there is no frame 30, only 1, 2"):
        nbody.read(path, "test").column(30)
    with pytest.raises(DataError, match="no train trajectories"):
        nbody.read(path, "train")


def test_files_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.npz"
    good = nbody.generate("charged", 3, 4, 0, frames=(1, 2))
    arrays = {
        "frames": good.frames,
        "test_positions": good.positions,
        "test_velocities": good.velocities,
        "test_charges": good.charges,
    }
    broken = good.positions.copy()
    broken[1, 0, 2] = np.nan
    changes = [
        ({"test_positions": broken}, "not finite"),
        ({"test_velocities": good.velocities[:2]}, "must be"),
        ({"frames": np.arange(3)}, "must be"),
        ({"test_charges": np.ones((3, 5))}, "shape"),
        ({"test_charges": np.array(["+"] * 12).reshape(3, 4)}, "not finite"),
    ]
    for change, message in changes:
        np.savez(path, **(arrays | change))
        with pytest.raises(DataError, match=message):
            nbody.read(path, "test")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="not a readable npz"):
        nbody.read(path, "test")
    with pytest.raises(DataError, match="no such file"):
        nbody.read(tmp_path / "absent.npz", "test")


@pytest.mark.parametrize(
    "change", [{"n_particles": 1}, {"n_dim": 0}, {"n_systems": 0}, {"law": "gravity"}, {"frames": (-1,)}]
)
def test_impossible_sizes_are_refused(change: dict[str, object]) -> None:
    options: dict[str, object] = {"law": "charged", "n_systems": 2, "n_particles": 3, "seed": 0}
    with pytest.raises(DataError):
        nbody.generate(**(options | change))  # type: ignore[arg-type]
