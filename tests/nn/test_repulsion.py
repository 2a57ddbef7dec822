"""Short range: the ZBL formula, and that every pair repels whatever the network says."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import cast

import numpy as np
import pytest
import torch
from graphs import make_graph
from torch import Tensor

from egnn_md.checkpoint import load
from egnn_md.chemistry.elements import COVALENT_RADII
from egnn_md.graph import Graph
from egnn_md.models.potential import Potential
from egnn_md.nn.radial import soft_core
from egnn_md.nn.repulsion import Repulsion

ELEMENTS = (1, 6, 7, 8, 9)
PAIRS = list(combinations_with_replacement(ELEMENTS, 2))
Make = Callable[..., Potential]


def pair_terms(z1: int, z2: int, distances: Tensor) -> tuple[Tensor, Tensor]:
    """(ZBL energy, seen distance) of dimers at `distances`."""
    n = len(distances)
    kinds = torch.full((n,), ELEMENTS.index(z1) * len(ELEMENTS) + ELEMENTS.index(z2))
    energy, _ = Repulsion(ELEMENTS, reach=1.5).double()(distances.unsqueeze(-1), kinds)
    seen, _ = soft_core(distances, torch.tensor(0.4 * bond(z1, z2)), torch.tensor(0.65 * bond(z1, z2)))
    return energy.squeeze(-1), seen


def bond(z1: int, z2: int) -> float:
    return COVALENT_RADII[z1] + COVALENT_RADII[z2]


@pytest.mark.parametrize(("z1", "z2"), PAIRS)
def test_energy_is_the_published_formula(z1: int, z2: int) -> None:
    """Ziegler, Biersack, Littmark 1985, times the envelope that ends at 1.5 bonds (the tables are float32)."""
    distances = torch.linspace(0.05, 1.5 * bond(z1, z2) - 0.05, 40, dtype=torch.float64)
    found, _ = pair_terms(z1, z2, distances)
    found_swapped, _ = pair_terms(z2, z1, distances)
    assert torch.equal(found, found_swapped)
    for d, energy in zip(distances.tolist(), found.tolist(), strict=True):
        s = d * (z1**0.23 + z2**0.23) / 0.4685
        phi = (
            0.18175 * math.exp(-3.1998 * s)
            + 0.50986 * math.exp(-0.94229 * s)
            + 0.28022 * math.exp(-0.4029 * s)
            + 0.02817 * math.exp(-0.20162 * s)
        )
        x = d / (1.5 * bond(z1, z2))
        envelope = (1 - x) ** 3 * (1 + 3 * x + 6 * x**2 + 10 * x**3 + 15 * x**4 + 21 * x**5)
        assert energy == pytest.approx(14.3996454 * z1 * z2 * phi / d * envelope, rel=2e-5)


def test_energy_ends_at_one_and_a_half_bonds() -> None:
    for z1, z2 in PAIRS:
        end = 1.5 * bond(z1, z2)
        energy, seen = pair_terms(z1, z2, torch.tensor([end - 0.05, end + 1e-6, 10.0], dtype=torch.float64))
        assert energy[0] > 0
        assert (energy[1:] == 0).all()
        assert torch.equal(seen, torch.tensor([end - 0.05, end + 1e-6, 10.0], dtype=torch.float64))


def radial_forces(model: Potential, z1: int, z2: int, distances: np.ndarray) -> Tensor:
    """Force on the second atom of each isolated dimer, positive where the two repel, eV/Å."""
    dimers = [make_graph([z1, z2], [[0, 0, 0], [0, 0, d]], model.config.cutoff, dtype=model.dtype) for d in distances]
    return cast(Tensor, model(Graph.collate(dimers)).forces[1::2, 2])


def test_every_pair_repels_with_random_weights(random_potential: Make) -> None:
    for seed in range(3):
        model = random_potential(
            seed=seed,
        )
        for z1, z2 in PAIRS:
            assert (radial_forces(model, z1, z2, np.linspace(0.3, 0.6 * bond(z1, z2), 15)) > 0).all(), (seed, z1, z2)


def test_in_its_core_every_pair_repels_whatever_the_weights(random_potential: Make) -> None:
    """Weights twice too large stand for a network gone wrong: inside the core its forces are not felt at all.

    The energy is a high power of the weights: at three times it is 10 GeV, and even the 1e-12 Å² that keep distances
    finite are felt.
    """
    factor = 2.0
    for seed in range(2):
        plain, wrong = (random_potential(seed=seed, core_start=0.5, core_end=0.75) for _ in range(2))
        for p in wrong.parameters():
            p.mul_(factor)
        for z1, z2 in PAIRS:
            core = np.linspace(0.15, 0.5 * bond(z1, z2), 15)
            outside = np.linspace(0.6, 1.0, 5) * bond(z1, z2)
            forces = radial_forces(wrong, z1, z2, core)
            assert (forces > 0).all(), (seed, z1, z2, core[forces.numpy() <= 0])
            assert torch.allclose(forces, radial_forces(plain, z1, z2, core), rtol=1e-5)
            assert (radial_forces(wrong, z1, z2, outside) - radial_forces(plain, z1, z2, outside)).abs().max() > 0.1


@pytest.mark.parametrize(("z1", "z2"), PAIRS)
def test_shipped_model_repels(shipped: str, z1: int, z2: int) -> None:
    """From 0.3 Å up to where the bond is compressed to 0.7 of the covalent radii."""
    model = cast(Potential, load(shipped, dtype=torch.float64))
    forces = radial_forces(model, z1, z2, np.linspace(0.3, 0.7 * bond(z1, z2), 40))
    assert (forces > 0).all()
