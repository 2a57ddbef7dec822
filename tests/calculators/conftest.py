"""Fixtures of the engines' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from egnn_md.checkpoint import save
from egnn_md.models.potential import Potential


@pytest.fixture
def familiar_potential(random_potential: Callable[..., Potential]) -> Callable[..., Potential]:
    """Make a random potential, its network as strong as its repulsion, to which nothing is unfamiliar."""

    def make(seed: int = 0, **settings: object) -> Potential:
        model = random_potential(seed, **settings)
        model.familiarity.unit.fill_(1e6)
        model.network.readout[2].weight.mul_(30.0)
        return model

    return make


@pytest.fixture
def familiar_file(familiar_potential: Callable[..., Potential], tmp_path: Path) -> Path:
    """A checkpoint of such a potential."""
    path = tmp_path / "familiar.safetensors"
    save(familiar_potential(), path)
    return path
