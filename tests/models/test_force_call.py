"""A force call: its derivatives are autograd's, whatever the blocks, and of the weights as they are now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from graphs import crystal, make_graph, molecule

from egnn_md.graph import Graph
from egnn_md.models.potential import Potential
from egnn_md.models.terms import System
from egnn_md.nn import ends

Make = Callable[..., Potential]
CUTOFF = 4.0


def several() -> Graph:
    """A molecule, a crystal with pairs longer than the cutoff, and an atom on its own."""
    numbers, positions, cell = crystal()
    alone = make_graph([8], [[0.0, 0.0, 0.0]], CUTOFF)
    return Graph.collate(
        [make_graph(*molecule("CH3CH2OH"), CUTOFF), make_graph(numbers, positions, CUTOFF + 0.5, cell), alone]
    )


def by_autograd(model: Potential, graph: Graph) -> tuple[torch.Tensor, ...]:
    """Energies, ∂E/∂x and features; the energies alone are taken from the model."""
    positions = graph.positions.clone().requires_grad_()
    graph = replace(graph, positions=positions)
    species = model.species(graph.atomic_numbers)
    system = System(graph.pair_vectors(), species, graph.pairs, len(model.config.elements))
    learned, features, _ = model.network.evaluate(system)
    energies = learned + model.repulsion(system).energies + model.reference(system).energies
    (gradient,) = torch.autograd.grad(energies.sum(), positions)
    return energies, gradient, features


def by_hand(model: Potential, graph: Graph) -> tuple[torch.Tensor, ...]:
    prediction = model(graph)
    with torch.no_grad():
        call = model.force_call(graph.pair_vectors(), model.species(graph.atomic_numbers), graph.pairs)
    return prediction.energies, -prediction.forces, call.features


@pytest.mark.parametrize("n_layers", [1, 2, 4])
@pytest.mark.parametrize("block", [17, 10**6])
def test_energies_gradient_and_features_are_autograds(
    random_potential: Make, monkeypatch: pytest.MonkeyPatch, n_layers: int, block: int
) -> None:
    monkeypatch.setitem(ends.BLOCK_PAIRS, "cpu", block)
    monkeypatch.setitem(ends.KEPT_PAIRS, "cpu", block)
    model, graph = random_potential(cutoff=CUTOFF, n_layers=n_layers, hidden_dim=24, message_dim=20), several()
    for found, expected in zip(by_hand(model, graph), by_autograd(model, graph), strict=True):
        expected = expected.detach()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))


def test_pairs_beyond_the_cutoff_add_nothing(random_potential: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU they are left in."""
    model, graph = random_potential(cutoff=CUTOFF), several()
    expected = model(graph, stress=True)
    monkeypatch.setattr(Potential, "_pairs", lambda self, graph: (graph.pair_vectors(), graph.pairs))
    found = model(graph, stress=True)
    for name in ("energies", "forces", "stress"):
        one, other = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11, equal_nan=True)


def test_no_pairs(random_potential: Make) -> None:
    model = random_potential(cutoff=CUTOFF)
    graph = make_graph([8, 1], [[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]], CUTOFF)
    prediction = model(graph)
    assert torch.equal(prediction.forces, torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(prediction.energies, by_autograd(model, graph)[0], rtol=1e-13, atol=0)


def test_a_force_call_sees_new_weights(random_potential: Make) -> None:
    model, graph = random_potential(cutoff=CUTOFF), several()
    before = model(graph).energies
    with torch.no_grad():
        model.network.layers[0].gate.weight.mul_(1.5)
        model.network.layers[1].gate.weight.data.mul_(1.5)  # bumps no version
    changed = model(graph).energies
    assert not torch.allclose(before, changed)
    torch.testing.assert_close(changed, by_autograd(model, graph)[0], rtol=1e-12, atol=0)


def test_a_force_call_sees_substituted_weights(random_potential: Make) -> None:
    model, graph = random_potential(cutoff=CUTOFF), several()
    before = model(graph).energies
    other = {name: 1.1 * value for name, value in model.named_parameters()}
    inside = torch.func.functional_call(model, other, (graph,)).energies
    assert not torch.allclose(before, inside)
    torch.testing.assert_close(model(graph).energies, before, rtol=0, atol=0)


def test_pairs_beyond_the_cutoff_change_nothing(random_potential: Make) -> None:
    model = random_potential(cutoff=CUTOFF)
    numbers, positions = molecule("C6H6")
    near, far = (make_graph(numbers, positions, reach) for reach in (CUTOFF, CUTOFF + 2.0))
    assert far.n_pairs > near.n_pairs
    here, there = model(near), model(replace(far))
    torch.testing.assert_close(here.energies, there.energies, rtol=1e-13, atol=0)
    torch.testing.assert_close(here.forces, there.forces, rtol=1e-11, atol=1e-12)


def test_inference_mode_changes_nothing(random_potential: Make) -> None:
    model = random_potential()
    for graph in (several(), make_graph(*molecule("CH3CH2OH"), 9.0), make_graph([8], [[0.0, 0.0, 0.0]], CUTOFF)):
        expected = model(graph)
        with torch.inference_mode():
            found = model(graph)
        for name in ("energy", "energies", "forces", "extrapolation"):
            torch.testing.assert_close(
                getattr(found, name).clone(), getattr(expected, name), rtol=1e-12, atol=1e-12, equal_nan=True
            )
