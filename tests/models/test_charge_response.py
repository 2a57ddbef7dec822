"""Charge that surroundings do not show: counted or given, and shared out, with exact derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from graphs import crystal, make_graph, molecule

from egnn_md.dynamics.batched import Batch
from egnn_md.dynamics.many import refusal
from egnn_md.graph import Graph
from egnn_md.laws import check_laws
from egnn_md.models.charge_response import ChargeResponse, Totals, Window
from egnn_md.models.potential import Potential, PotentialConfig
from egnn_md.predict import ChargeError, Geometry, Predictor

Make = Callable[..., Potential]
CUTOFF = 4.0
OH = Geometry(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.97]]), np.array([8, 1]))


@pytest.fixture
def responding(random_potential: Make) -> Potential:
    """Random, its charges far from whole numbers."""
    model = random_potential(long_range=True, charge_response=True, n_tensors=2)
    assert model.long_range is not None
    assert model.long_range.response is not None
    head = model.long_range.response.head
    head.weight.normal_()
    head.bias.normal_()
    return model


def showing(model: Potential, charge: float) -> Potential:
    """The surroundings of every atom show this charge."""
    assert model.long_range is not None
    last = model.long_range.head[2]
    last.weight.zero_()
    last.bias.copy_(torch.tensor([4.0 * math.atanh(charge / 4.0), 0.0, 0.0]))
    return model


def charged(graph: Graph, charge: float) -> Graph:
    return replace(graph, charge=torch.tensor([charge]))


@pytest.mark.parametrize("charge", [None, 2.0, -1.0])
def test_forces_and_stress_are_the_slopes_of_the_energy(responding: Potential, charge: float | None) -> None:
    numbers, positions, cell = crystal()
    for graph in (make_graph(*molecule("CH3CH2OH"), CUTOFF), make_graph(numbers, positions, CUTOFF, cell)):
        graph = graph if charge is None else charged(graph, charge)
        prediction = responding(graph, stress=True)
        step = 1e-5
        for atom, axis in ((0, 0), (2, 1), (4, 2)):
            ends = []
            for sign in (1.0, -1.0):
                moved = graph.positions.clone()
                moved[atom, axis] += sign * step
                ends.append(float(responding(replace(graph, positions=moved)).energy))
            assert float(prediction.forces[atom, axis]) == pytest.approx(-(ends[0] - ends[1]) / (2 * step), abs=1e-5)
        if graph.pbc.all():
            ends = []
            for sign in (1.0, -1.0):
                strain = torch.eye(3, dtype=torch.float64)
                strain[0, 1] = strain[1, 0] = 0.5 * sign * step
                strained = replace(graph, positions=graph.positions @ strain, cell=graph.cell @ strain)
                ends.append(float(responding(strained).energy))
            volume = float(torch.linalg.det(graph.cell[0]).abs())
            assert prediction.stress is not None
            slope = (ends[0] - ends[1]) / (2 * step) / volume
            assert float(prediction.stress[0, 0, 1]) == pytest.approx(slope, abs=1e-6)


def test_what_is_missing_is_added(responding: Potential) -> None:
    graph = make_graph(*molecule("CH3CH2OH"), CUTOFF)
    counted = responding(graph)
    assert counted.shown_charge is not None
    shown = float(counted.shown_charge)
    assert abs(shown - 2 * round(shown / 2)) > 0.4  # else it would not be a test
    assert float(counted.charge) == pytest.approx(2 * round(shown / 2))
    for charge in (-1.0, 2.0):
        assert float(responding(charged(graph, charge)).charge) == pytest.approx(charge)


def test_electrons_are_paired(random_potential: Make) -> None:
    model = random_potential(long_range=True, charge_response=True)
    showing(model, -0.3)  # of two atoms: -0.6 e
    hydroxide = make_graph([8, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.97]], CUTOFF)
    water = make_graph([8, 8], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.4]], CUTOFF)
    assert float(model(hydroxide).charge) == pytest.approx(-1.0)
    assert float(model(water).charge) == pytest.approx(0.0)


def test_nothing_is_added_where_surroundings_show_the_charge(random_potential: Make) -> None:
    graph = make_graph([8, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.97]], CUTOFF)
    with_it, without = (showing(random_potential(long_range=True, charge_response=on), -0.46) for on in (True, False))
    assert with_it.long_range is not None
    assert with_it.long_range.response is not None
    with_it.long_range.response.head.bias.normal_()
    found, expected = with_it(graph), without(graph)
    assert torch.equal(found.energy, expected.energy)
    assert torch.equal(found.forces, expected.forces)
    assert float(found.charge) == pytest.approx(-0.92)


def test_the_window_says_where_it_sets_in(random_potential: Make) -> None:
    """0.08 e are missing: nothing is added in the window of the test before, all of it beyond a nearer one."""
    graph = make_graph([8, 1], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.97]], CUTOFF)
    window = {"response_window": (0.05, 0.003, 0.02)}
    model = showing(random_potential(long_range=True, charge_response=True, **window), -0.46)
    assert float(model(graph).charge) == pytest.approx(-1.0)


def test_side_by_side_as_by_themselves(responding: Potential) -> None:
    parts = [make_graph(*molecule("CH3CH2OH"), CUTOFF), charged(make_graph(*molecule("H2O"), CUTOFF), -2.0)]
    together = responding(Graph.collate(parts))
    for k, part in enumerate(parts):
        assert float(together.energy[k]) == pytest.approx(float(responding(part).energy), rel=1e-13)


def test_the_way_back_is_autograds() -> None:
    torch.manual_seed(0)
    response = ChargeResponse(4, Window()).double()
    torch.nn.init.normal_(response.head.weight)
    structure = torch.tensor([0, 0, 0, 1, 1])
    missing = torch.tensor([math.nan, 1.0, math.nan]).double()
    totals = Totals(structure, missing, torch.tensor([1.0, 0.0, 0.0]).double())
    features = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    own = torch.tensor([0.1, 0.2, 0.1, 0.3, 0.48], dtype=torch.float64, requires_grad=True)  # on the step, and above it
    charges, tape = response(features, own, totals)
    elsewhere = 3.0 * charges.square()  # stands for the far field
    energies, by_own, by_features = response.vjp(tape, 6.0 * charges, totals)
    expected = torch.autograd.grad((energies + elsewhere).sum(), [own, features])
    torch.testing.assert_close(by_own, expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(by_features, expected[1], rtol=1e-12, atol=1e-12)
    assert float(tape.added[3:].detach().sum()) == pytest.approx(1.0 - 0.78, abs=0.2)


def test_what_cannot_be_the_charge_is_refused(random_potential: Make) -> None:
    predictor = Predictor(showing(random_potential(long_range=True, charge_response=True), -0.3))
    assert predictor(OH.positions, OH.atomic_numbers).charge == pytest.approx(-1.0)
    assert predictor(OH.positions, OH.atomic_numbers, charge=-1).charge == pytest.approx(-1.0)
    with pytest.raises(ChargeError, match="odd number of electrons"):
        predictor(OH.positions, OH.atomic_numbers, charge=0)
    with pytest.raises(ChargeError, match=r"said to be \+1, but the structure looks like one of -1"):
        predictor(OH.positions, OH.atomic_numbers, charge=1)
    undecided = Predictor(showing(random_potential(long_range=True, charge_response=True), 0.02))
    with pytest.raises(ChargeError, match=r"may be \+1 or -1: say which one"):
        undecided(OH.positions, OH.atomic_numbers)
    results = undecided.many([OH._replace(charge=charge) for charge in (-1.0, 1.0)])
    assert [result.charge for result in results] == pytest.approx([-1.0, 1.0])


def test_laws_hold(responding: Potential) -> None:
    """What is far apart adds up where surroundings show the charge."""
    water = {result.law: result for result in check_laws(Predictor(responding, closest=0))}
    assert [law for law, result in water.items() if not result.holds] in ([], ["what is far apart adds up (molecule)"])
    neutral = check_laws(Predictor(showing(responding, 1e-3), closest=0))
    assert [result.law for result in neutral if not result.holds] == []


def test_a_window_is_three_numbers() -> None:
    for window in ((0.1, 0.003), (0.1, 0.003, 0.0), (-0.1, 0.003, 0.2), (float("nan"), 0.0, 0.2)):
        with pytest.raises(ValueError, match="response_window must be three numbers"):
            PotentialConfig((1,), (0.0,), response_window=window)  # type: ignore[arg-type]


def test_it_needs_charges() -> None:
    with pytest.raises(ValueError, match="charge_response needs long_range"):
        PotentialConfig((1,), (0.0,), charge_response=True)


def test_structures_side_by_side_have_the_charges_that_they_say(random_potential: Make) -> None:
    model = showing(random_potential(long_range=True, charge_response=True), 0.02)
    assert model.long_range is not None
    assert model.long_range.response is not None
    model.long_range.response.head.bias.normal_()
    said = [Atoms("OH", OH.positions, info=info) for info in ({"charge": 1}, {"charge": -1}, {"charge": 1.0})]
    batch = Batch(model, said)
    found = batch.evaluate(batch.positions).energy.tolist()
    expected = [result.energy for result in Predictor(model).many([OH._replace(charge=c) for c in (1.0, -1.0, 1.0)])]
    assert found == pytest.approx(expected, rel=1e-12)
    assert abs(found[0] - found[1]) > 0.1
    assert refusal(model, said[0]) == ""
    assert "say which one" in refusal(model, Atoms("OH", OH.positions))
    assert "odd number of electrons" in refusal(model, Atoms("OH", OH.positions, info={"charge": 0}))
