"""Errors are what their definitions say, whatever the batches and whichever labels are missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from egnn_md.chemistry.elements import UnsupportedElement
from egnn_md.data.frame_batches import FrameBatches, PairTable
from egnn_md.data.frames import Frames
from egnn_md.evaluation.potential import evaluate
from egnn_md.models.potential import Potential

FLAWED = 0.01
"""eV/Å added to every force component, and eV per atom to every energy."""


@pytest.fixture
def model(random_potential: Callable[..., Potential]) -> Potential:
    return random_potential()


@pytest.fixture
def frames(model: Potential) -> Frames:
    """Structures of several sizes, labelled by the model itself."""
    rng, n_atoms = np.random.default_rng(0), np.array([3, 7, 2, 5, 4, 6])
    total = int(n_atoms.sum())
    bare = Frames(
        n_atoms=n_atoms,
        atomic_numbers=rng.choice([1, 6, 8], total),
        positions=np.concatenate([1.4 * np.arange(n)[:, None] + rng.uniform(0, 0.4, (n, 3)) for n in n_atoms]),
        energy=np.zeros(len(n_atoms)),
        forces=np.zeros((total, 3)),
        cell=np.zeros((len(n_atoms), 3, 3)),
        pbc=np.zeros((len(n_atoms), 3), dtype=bool),
        stress=None,
        group=np.arange(len(n_atoms)).astype(str),
        tag=np.array(["a", "b", "a", "a", "b", "b"]),
    )
    batches = FrameBatches(bare, PairTable.build(bare, model.config.cutoff), torch.float64)
    predictions = [model(batches[[k]].graph) for k in range(len(bare))]
    return replace(
        bare,
        energy=np.array([float(p.energy) for p in predictions]),
        forces=np.concatenate([p.forces.numpy() for p in predictions]),
    )


def test_a_model_agrees_with_its_own_labels(model: Potential, frames: Frames) -> None:
    result = evaluate(model, frames)
    assert result.n_structures == 6
    assert max(result.force_mae, result.force_rmse, result.energy_mae, result.energy_rmse) < 1e-9


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_errors_follow_their_definitions(batch_size: int, model: Potential, frames: Frames) -> None:
    assert frames.forces is not None
    rng = np.random.default_rng(1)
    force_error, energy_error = rng.normal(size=frames.forces.shape), rng.normal(size=6)
    labelled = replace(frames, forces=frames.forces + force_error, energy=frames.energy + energy_error)
    result = evaluate(model, labelled, batch_size)
    per_atom = energy_error / frames.n_atoms
    assert result.force_mae == pytest.approx(1e3 * np.abs(force_error).mean())
    assert result.force_rmse == pytest.approx(1e3 * np.sqrt((force_error**2).mean()))
    assert result.energy_mae == pytest.approx(1e3 * np.abs(per_atom).mean())
    assert result.energy_rmse == pytest.approx(1e3 * np.sqrt((per_atom**2).mean()))
    rows = np.repeat(frames.tag == "b", frames.n_atoms)
    assert result.by_tag["b"].force_mae == pytest.approx(1e3 * np.abs(force_error[rows]).mean())
    assert result.by_tag["b"].energy_mae == pytest.approx(1e3 * np.abs(per_atom[frames.tag == "b"]).mean())
    assert {tag: part.n_structures for tag, part in result.by_tag.items()} == {"a": 3, "b": 3}


def test_missing_labels_do_not_count(model: Potential, frames: Frames) -> None:
    assert frames.forces is not None
    forces, energy = frames.forces + FLAWED, frames.energy + FLAWED * frames.n_atoms
    forces[3:10], energy[2] = np.nan, np.nan  # all of frame 1, the energy of frame 2
    result = evaluate(model, replace(frames, forces=forces, energy=energy))
    assert result.force_mae == pytest.approx(1e3 * FLAWED)
    assert result.force_rmse == pytest.approx(1e3 * FLAWED)
    assert result.energy_mae == pytest.approx(1e3 * FLAWED)
    without = evaluate(model, replace(frames, forces=None, tag=np.full(6, "")))
    assert np.isnan(without.force_mae)
    assert without.to_dict()["force_mae"] is None
    assert without.to_dict()["energy_mae"] < 1e-9
    assert without.by_tag == {}


def test_a_prediction_that_is_nan_shows(model: Potential, frames: Frames) -> None:
    with torch.no_grad():
        model.network.readout[-1].weight.fill_(torch.nan)  # type: ignore[union-attr]
    result = evaluate(model, frames)
    assert np.isnan(result.force_mae)
    assert np.isnan(result.energy_mae)


def test_unknown_elements_are_named(model: Potential, frames: Frames) -> None:
    numbers = frames.atomic_numbers.copy()
    numbers[[1, 8]] = [14, 35]
    with pytest.raises(UnsupportedElement, match="Si, Br"):
        evaluate(model, replace(frames, atomic_numbers=numbers))


def test_nothing_to_evaluate_is_an_error(model: Potential, frames: Frames) -> None:
    with pytest.raises(ValueError, match="no structures"):
        evaluate(model, frames.select(np.array([], dtype=np.int64)))
    with pytest.raises(ValueError, match="batch_size"):
        evaluate(model, frames, 0)


def test_progress_is_told(model: Potential, frames: Frames) -> None:
    seen: list[int] = []
    evaluate(model, frames, 4, seen.append)
    assert seen == [4, 6]
