"""Dipole moments of charges and of atoms' own dipoles, which the energy does not see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from graphs import make_graph, molecule

from egnn_md.laws import check_laws
from egnn_md.models.potential import Potential, PotentialConfig
from egnn_md.predict import Geometry, Predictor

Make = Callable[..., Potential]
CUTOFF = 4.0


@pytest.fixture
def polar(random_potential: Make) -> Potential:
    """Random, with atoms' own dipoles."""
    model = random_potential(long_range=True, charge_response=True, atomic_dipoles=True, n_tensors=2)
    assert model.long_range is not None
    assert model.long_range.dipole_gates is not None
    model.long_range.dipole_gates.weight.normal_()
    model.long_range.dipole_gates.bias.normal_()
    return model


def test_they_turn_with_the_structure_and_stay_where_it_is_moved(polar: Potential) -> None:
    graph = make_graph(*molecule("CH3CH2OH"), CUTOFF)
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))[0]
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    first = polar(graph)
    assert first.dipole is not None
    assert first.charge is not None
    for matrix in (turn, -turn):
        moved = polar(replace(graph, positions=graph.positions @ matrix.mT + shift))
        assert moved.dipole is not None
        expected = first.dipole @ matrix.mT + first.charge * shift
        assert torch.allclose(moved.dipole, expected, atol=1e-10)


def test_they_are_beside_those_of_the_charges(polar: Potential) -> None:
    graph = make_graph(*molecule("CH3CHO"), CUTOFF)
    whole = polar(graph)
    assert polar.long_range is not None
    gates, polar.long_range.dipole_gates = polar.long_range.dipole_gates, None
    of_charges = polar(graph)
    polar.long_range.dipole_gates = gates
    assert whole.dipole is not None
    assert of_charges.dipole is not None
    assert float((whole.dipole - of_charges.dipole).norm()) > 0.1
    assert torch.equal(whole.forces, of_charges.forces)
    assert whole.charges is not None
    assert of_charges.charges is not None
    assert torch.equal(whole.charges, of_charges.charges)


def test_a_batch_has_those_of_each(polar: Potential) -> None:
    shapes = [Geometry(x, z) for z, x in (molecule(name) for name in ("CH3OH", "H2O", "CH3CHO"))]
    predictor = Predictor(polar)
    for shape, one in zip(shapes, predictor.many(shapes), strict=True):
        alone = predictor(*shape)
        assert alone.dipole is not None
        assert one.dipole == pytest.approx(alone.dipole, abs=1e-10)
        assert np.linalg.norm(alone.dipole) > 1e-3


def test_laws_hold(polar: Potential) -> None:
    found = {result.law for result in check_laws(Predictor(polar, closest=0)) if not result.holds}
    assert found <= {"what is far apart adds up (molecule)"}  # surroundings do not show its random charge


def test_they_need_charges() -> None:
    with pytest.raises(ValueError, match="atomic_dipoles needs long_range"):
        PotentialConfig((1,), (0.0,), atomic_dipoles=True)
