"""Laws of every potential: derivatives, symmetries, locality, smoothness, additivity, precision."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import crystal, make_graph, molecule
from torch import Tensor

from egnn_md.checkpoint import save
from egnn_md.chemistry.elements import UnsupportedElement
from egnn_md.graph import Graph
from egnn_md.models.potential import Potential
from egnn_md.predict import Predictor

CUTOFF = 4.0
NO_REFERENCE = (0.0,) * 5
STENCIL = [(-3, -1 / 60), (-2, 3 / 20), (-1, -3 / 4), (1, 3 / 4), (2, -3 / 20), (3, 1 / 60)]
"""First derivative, error of sixth order in the step."""

Make = Callable[..., Potential]


def make_potential(random_potential: Make, **settings: object) -> Potential:
    return random_potential(reference_energies=NO_REFERENCE, cutoff=CUTOFF, **settings)


def ethanol(cutoff: float = CUTOFF) -> Graph:
    return make_graph(*molecule("CH3CH2OH"), cutoff)


def solid(cutoff: float = CUTOFF) -> Graph:
    numbers, positions, cell = crystal()
    return make_graph(numbers, positions, cutoff, cell)


def energies_at(model: Potential, graphs: list[Graph]) -> Tensor:
    return model(Graph.collate(graphs)).energy


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("bound", [None, 2.0])
@pytest.mark.parametrize("structure", [ethanol, solid])
def test_forces_are_minus_the_gradient(
    random_potential: Make, structure: Callable[[], Graph], bound: float | None
) -> None:
    model, graph, step = make_potential(random_potential, bound=bound), structure(), 2e-3
    forces = model(graph).forces
    displaced, weights = [], []
    for k in range(graph.positions.numel()):
        for multiple, weight in STENCIL:
            positions = graph.positions.flatten().clone()
            positions[k] += multiple * step
            displaced.append(replace(graph, positions=positions.view_as(graph.positions)))
            weights.append(weight)
    slopes = (energies_at(model, displaced) * torch.tensor(weights, dtype=torch.float64)).view(-1, 6).sum(1) / step
    assert relative_error(forces, -slopes.view_as(forces)) < 1e-8


def test_stress_is_the_derivative_by_strain(random_potential: Make) -> None:
    model, graph, step = make_potential(random_potential), solid(), 5e-4
    stress = model(graph, stress=True).stress
    volume = torch.linalg.det(graph.cell[0])
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for a in range(3):
        for b in range(3):
            strained, weights = [], []
            for multiple, weight in STENCIL:
                deformation = torch.eye(3, dtype=torch.float64)
                deformation[a, b] += multiple * step
                strained.append(
                    replace(graph, positions=graph.positions @ deformation.T, cell=graph.cell @ deformation.T)
                )
                weights.append(weight)
            expected[a, b] = energies_at(model, strained) @ torch.tensor(weights, dtype=torch.float64) / step / volume
    assert stress is not None
    assert stress.shape == (1, 3, 3)
    assert relative_error(stress[0], expected) < 1e-8


def test_stress_only_where_it_means_something(random_potential: Make) -> None:
    model = random_potential()
    both = Graph.collate([ethanol(), solid()])
    stress = model(both, stress=True).stress
    assert stress is not None
    assert torch.isnan(stress[0]).all()
    assert torch.isfinite(stress[1]).all()
    assert model(both).stress is None


def test_rotation_reflection_translation(random_potential: Make) -> None:
    model, graph = make_potential(random_potential), solid()
    before = model(graph, stress=True)
    for determinant in (1.0, -1.0):
        q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
        q = q * torch.sign(torch.linalg.det(q)) * determinant
        turned = replace(graph, positions=graph.positions @ q.T + 3.0, cell=graph.cell @ q.T)
        after = model(turned, stress=True)
        assert abs(after.energy - before.energy) < 1e-12 * before.energies.abs().sum()
        assert relative_error(after.forces, before.forces @ q.T) < 1e-11
        assert relative_error(after.stress, q @ before.stress @ q.T) < 1e-11


def test_permuted_atoms_give_permuted_forces(random_potential: Make) -> None:
    model, graph = make_potential(random_potential), ethanol()
    order = torch.randperm(graph.n_atoms)
    shuffled = make_graph(graph.atomic_numbers[order], graph.positions[order], CUTOFF)
    before, after = model(graph), model(shuffled)
    assert relative_error(after.energies, before.energies[order]) < 1e-12
    assert relative_error(after.forces, before.forces[order]) < 1e-12


def test_momentum_and_angular_momentum_are_conserved(random_potential: Make) -> None:
    model = make_potential(random_potential)
    for graph in (ethanol(), solid()):
        forces = model(graph).forces
        assert forces.sum(0).abs().max() < 1e-12 * forces.abs().sum()
    graph = ethanol()
    forces = model(graph).forces
    torque = torch.linalg.cross(graph.positions, forces).sum(0)
    assert forces.abs().max() > 0.1
    assert torque.abs().max() < 1e-12 * forces.abs().sum() * graph.positions.abs().max()


def visitor(distance: float) -> Graph:
    """Formaldehyde and an atom in front of its oxygen, all other atoms of it out of that atom's reach near CUTOFF."""
    numbers = [8, 6, 1, 1, 7]
    positions = [[0, 0, 0], [-1.2, 0, 0], [-1.8, 0.95, 0], [-1.8, -0.95, 0.1], [distance, 0, 0]]
    return make_graph(numbers, positions, CUTOFF + 1.0)


def test_energy_forces_and_their_derivative_vanish_smoothly_at_the_cutoff(random_potential: Make) -> None:
    """The visitor's share falls as (1 - d/cutoff)³: halving the gap divides E, F and F' by 8, 4 and 2."""
    model = make_potential(random_potential)
    beyond = model(visitor(CUTOFF + 0.5))

    def changes(gap: float) -> np.ndarray:
        step = gap / 50
        inside, near, far = (model(visitor(CUTOFF - gap + s)) for s in (0, -step, step))
        energy = (inside.energy - beyond.energy).abs().item()
        force = (inside.forces - beyond.forces).abs().max().item()
        return np.array([energy, force, ((far.forces - near.forces) / (2 * step)).abs().max().item()])

    assert relative_error(model(visitor(CUTOFF + 1e-9)).forces, beyond.forces) < 1e-12
    gaps = [0.08, 0.04, 0.02]
    measured = np.array([changes(gap) for gap in gaps])
    assert (measured[0] > 1e-9).all()  # the visitor is felt, or smoothness says nothing
    ratios = measured[:-1] / measured[1:]
    assert (ratios > [6.0, 3.2, 1.7]).all(), ratios
    assert (ratios < [10.0, 5.0, 2.4]).all(), ratios


@pytest.mark.parametrize("structure", [ethanol, solid])
def test_pairs_beyond_the_cutoff_change_nothing(random_potential: Make, structure: Callable[[float], Graph]) -> None:
    model = make_potential(random_potential)
    exact, longer = structure(CUTOFF), structure(CUTOFF + 2.0)
    assert longer.n_pairs > exact.n_pairs
    before, after = model(exact, stress=True), model(longer, stress=True)
    assert relative_error(after.energies, before.energies) < 1e-12
    assert relative_error(after.forces, before.forces) < 1e-12
    if structure is solid:
        assert relative_error(after.stress, before.stress) < 1e-12


def test_far_molecules_add_up(random_potential: Make) -> None:
    model = random_potential()
    (z1, x1), (z2, x2) = molecule("CH3CH2OH"), molecule("H2CO")
    apart = make_graph([*z1, *z2], np.concatenate([x1, x2 + 60.0]), CUTOFF)
    whole, one, two = (model(g) for g in (apart, make_graph(z1, x1, CUTOFF), make_graph(z2, x2, CUTOFF)))
    assert abs(whole.energy - one.energy - two.energy) < 1e-12 * abs(whole.energy)
    assert relative_error(whole.forces, torch.cat([one.forces, two.forces])) < 1e-12


def test_a_supercell_has_the_energy_of_its_cells(random_potential: Make) -> None:
    model = random_potential()
    numbers, x, cell = crystal()
    doubled = make_graph(numbers * 2, np.concatenate([x, x + cell[1]]), CUTOFF, cell * [[1], [2], [1]])
    one, two = model(solid(), stress=True), model(doubled, stress=True)
    assert abs(two.energy - 2 * one.energy) < 1e-12 * abs(two.energy)
    assert relative_error(two.forces, one.forces.repeat(2, 1)) < 1e-11
    assert relative_error(two.stress, one.stress) < 1e-11


def test_a_batch_of_different_structures_is_a_loop(random_potential: Make) -> None:
    model = random_potential()
    graphs = [ethanol(), make_graph([8], [[0.0, 0, 0]], CUTOFF), solid(), make_graph(*molecule("CH4"), CUTOFF)]
    together, alone = model(Graph.collate(graphs), stress=True), [model(graph, stress=True) for graph in graphs]
    for name in ("energy", "forces", "energies"):
        expected = torch.cat([getattr(prediction, name) for prediction in alone])
        assert relative_error(getattr(together, name), expected) < 1e-12, name
    assert together.stress is not None
    assert relative_error(together.stress[2:3], alone[2].stress) < 1e-12


def test_atomic_energies_sum_to_the_energy(random_potential: Make) -> None:
    model = random_potential()
    graph = Graph.collate([ethanol(), solid()])
    prediction = model(graph)
    for k in range(2):
        assert torch.allclose(prediction.energy[k], prediction.energies[graph.batch == k].sum(), rtol=1e-14)


def test_a_lone_atom_has_no_forces(random_potential: Make) -> None:
    prediction = random_potential()(make_graph([6], [[1.0, 2, 3]], CUTOFF), stress=True)
    assert torch.isfinite(prediction.energy).all()
    assert torch.equal(prediction.forces, torch.zeros(1, 3, dtype=torch.float64))


def test_a_bound_holds_in_the_layers_alone(random_potential: Make) -> None:
    free, wide, narrow = (make_potential(random_potential, bound=bound)(ethanol()).energy for bound in (None, 1e6, 1.0))
    assert float(wide) == pytest.approx(float(free), abs=1e-9)
    assert abs(float(narrow) - float(free)) > 1e-6


def test_coincident_atoms_leave_numbers_finite(random_potential: Make) -> None:
    """In both precisions, and with the derivatives that training takes."""
    for dtype in (torch.float32, torch.float64):
        model = random_potential(dtype=dtype).requires_grad_()
        numbers, positions = molecule("CH3CH2OH")
        positions[1] = positions[0]
        graph = make_graph(numbers, positions, CUTOFF, dtype=dtype)
        prediction = model(graph, differentiable=True)
        assert torch.isfinite(prediction.energy).all()
        assert torch.isfinite(prediction.forces).all()
        prediction.forces.square().sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients
        assert all(torch.isfinite(g).all() for g in gradients)


def test_float32_networks_report_float64_energies(random_potential: Make) -> None:
    """The reference energies, a thousand times the rest, survive float32 to the last bit."""
    reference = (-13.587222780835477, -1029.4889999855063, -1484.9814568572233, -2041.9816003861047, -2713.0)
    single = random_potential(dtype=torch.float32, reference_energies=reference)
    graph = ethanol()
    prediction = single(graph.to(dtype=torch.float32))
    assert prediction.energy.dtype == prediction.energies.dtype == torch.float64
    assert prediction.forces.dtype == torch.float32
    assert single.dtype == torch.float32
    exact = torch.tensor(reference, dtype=torch.float64)
    there_and_back = copy.deepcopy(single).to(torch.float64)
    assert torch.equal(there_and_back.reference.energies, exact)
    double = there_and_back(graph)
    assert (double.energy - prediction.energy).abs().max() < 1e-4
    assert relative_error(prediction.forces.double(), double.forces) < 1e-4


def test_predictions_hold_no_autograd_graph_unless_asked(random_potential: Make) -> None:
    model = random_potential().requires_grad_()
    plain, differentiable = model(ethanol(), stress=True), model(ethanol(), stress=True, differentiable=True)
    for name in ("energy", "forces", "energies", "stress", "extrapolation"):
        assert not getattr(plain, name).requires_grad, name
    assert differentiable.energy.requires_grad
    assert differentiable.forces.requires_grad
    assert differentiable.stress.requires_grad
    with torch.no_grad():
        assert torch.equal(model(ethanol()).forces, plain.forces)


def test_prediction_leaves_its_input_alone(random_potential: Make) -> None:
    graph = solid()
    kept = copy.deepcopy(graph)
    random_potential()(graph, stress=True)
    for name in ("positions", "atomic_numbers", "pairs", "shifts", "cell", "pbc", "batch"):
        assert torch.equal(getattr(graph, name), getattr(kept, name)), name
    assert not graph.positions.requires_grad


@pytest.mark.parametrize("stranger", [0, 2, 14, 103, 255, 300])
def test_unknown_elements_raise(random_potential: Make, stranger: int) -> None:
    model = random_potential()
    for numbers in ([6, stranger], [stranger, stranger], [stranger]):
        positions = np.arange(3 * len(numbers)).reshape(-1, 3) * 0.5
        with pytest.raises(UnsupportedElement, match=r"knows H, C, N, O, F; the structure has"):
            model(make_graph(numbers, positions, CUTOFF))


def test_a_model_of_isolated_structures_says_so_of_liquids(
    random_potential: Callable[..., Potential], tmp_path: Path
) -> None:
    save(random_potential(), tmp_path / "m.safetensors", {"training_data": {"n_periodic": 0}})
    x, z, pbc = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), np.array([8, 1]), np.ones(3, bool)
    for cell, warns in ((30.0, False), (3.5, True)):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            predictor = Predictor(tmp_path / "m.safetensors")
            for _ in range(2):
                predictor(x, z, cell * np.eye(3), pbc)
        assert ["learned from isolated structures" in str(w.message) for w in found] == [True] * warns
