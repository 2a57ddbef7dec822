"""Strain of bonds: 1 at the ends of the training's range, more beyond, infinite for kinds never seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase.build import molecule

from egnn_md import load
from egnn_md.models.property import FAR, PropertyModel
from egnn_md.nn.bond_lengths import MOST_NEIGHBORS, OUTLIERS, TOLERANCE, BondLengths

PAIRS = torch.tensor([[0, 1, 0], [1, 2, 2]])  # of three atoms


def distances(first: float, second: float) -> torch.Tensor:
    """H-C-H in a line."""
    return torch.tensor([first, second, first + second])


SPECIES = torch.tensor([0, 1, 0])


def fitted(lengths: list[float]) -> BondLengths:
    net = BondLengths((1, 6))
    parts = [net.bonds(distances(a, a), PAIRS, SPECIES) for a in lengths]
    net.fit(torch.cat([p[0] for p in parts]).numpy(), torch.cat([p[1] for p in parts]).numpy())
    return net


@pytest.mark.parametrize(
    ("length", "strain"), [(1.05, 0.0), (1.075, 0.5), (1.0, 1.0), (1.1, 1.0), (1.11, 1.5), (0.98, 2.0)]
)
def test_strain_counts_from_the_range(length: float, strain: float) -> None:
    assert TOLERANCE == 0.02
    found = fitted([1.0, 1.04, 1.1])(distances(1.05, length), PAIRS, SPECIES)
    assert found.tolist() == pytest.approx([0.0, strain, strain], abs=2e-4)


def test_atoms_that_nothing_binds_have_no_strain_and_new_kinds_an_infinite_one() -> None:
    net = fitted([1.0, 1.1])
    assert net(distances(3.0, 3.0), PAIRS, SPECIES).tolist() == [0.0, 0.0, 0.0]
    apart = net(distances(1.05, 3.0), PAIRS, SPECIES)  # the carbon has one neighbour: never seen
    assert apart.tolist() == [math.inf, math.inf, 0.0]


def test_single_outliers_do_not_widen_the_range() -> None:
    n = int(2 / OUTLIERS)
    lengths = np.concatenate([np.linspace(1.0, 1.1, n, dtype=np.float32), np.float32([0.7, 1.3])])
    net = BondLengths((1,))
    net.fit(np.random.default_rng(0).permutation(lengths), np.full(len(lengths), 3))
    assert float(net.shortest[3]) == pytest.approx(1.0, abs=1e-3)
    assert float(net.longest[3]) == pytest.approx(1.1, abs=1e-3)
    assert int(net.shortest.isfinite().sum()) == 1


def test_double_precision() -> None:
    net = BondLengths((1,)).double()
    net.fit(np.float32([0.7, 0.8]), np.array([3, 3]))
    assert net.shortest.dtype == torch.float64
    assert (float(net.shortest[3]), float(net.longest[3])) == pytest.approx((0.7, 0.8))


def test_crowded_atoms_are_one_kind() -> None:
    n = MOST_NEIGHBORS + 4
    pairs = torch.triu_indices(n, n, 1)
    lengths, kinds, _ = BondLengths((1,)).bonds(torch.full((pairs.shape[1],), 0.5), pairs, torch.zeros(n).long())
    assert len(lengths) == 2 * pairs.shape[1]
    assert kinds.unique().tolist() == [MOST_NEIGHBORS * (MOST_NEIGHBORS + 1) + MOST_NEIGHBORS]


def test_the_shipped_model_tells_distorted_molecules() -> None:
    """A twentieth of an Å is flagged always; minima of another method are not."""
    model = load("qm9")
    assert isinstance(model, PropertyModel)
    random = np.random.default_rng(0)
    minima = [molecule(name) for name in ("C6H6", "CH3CH2OH", "CH3CONH2", "C4H4NH", "CH3COCH3")]
    distorted = []
    for atoms in minima * 4:
        direction = random.standard_normal((len(atoms), 3))
        distorted.append(atoms.copy())
        distorted[-1].positions += 0.05 * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    assert (model.predict(minima, uncertainty=True)["extrapolation"] < FAR).all()
    assert (model.predict(distorted, uncertainty=True)["extrapolation"] > FAR).all()
