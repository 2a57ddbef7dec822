"""The loss: against its definition, traced equal to eager, finite whatever labels are missing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from graphs import crystal, make_graph, molecule
from torch import Tensor

from egnn_md.compiled.package import NoCompiler, check_compiler
from egnn_md.data.frame_batches import Batch, Charges
from egnn_md.graph import Graph
from egnn_md.models.long_range import far_of
from egnn_md.models.potential import Potential
from egnn_md.training.potential_config import PotentialTrainingConfig as TrainingConfig
from egnn_md.training.potential_loss import LossTerms, PotentialLoss

CUTOFF = 4.0
Make = Callable[..., Potential]


def graphs(kinds: str) -> list[Graph]:
    """m: a molecule, w: another, s: a crystal."""
    numbers, positions, cell = crystal()
    made = {
        "m": make_graph(*molecule("CH3CH2OH"), CUTOFF),
        "w": make_graph(*molecule("H2O", seed=1), CUTOFF),
        "s": make_graph(numbers, positions, CUTOFF, cell),
    }
    return [made[kind] for kind in kinds]


def labelled(kinds: str, stress: bool = False) -> Batch:
    parts = graphs(kinds)
    graph = Graph.collate(parts)
    generator = torch.Generator().manual_seed(len(kinds))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    stresses = normal(graph.n_graphs, 3, 3)
    stresses[~graph.pbc.all(-1)] = torch.nan
    return Batch(
        graph=graph,
        energy=-1000.0 * graph.n_atoms + normal(graph.n_graphs),
        forces=normal(graph.n_atoms, 3),
        stress=stresses + stresses.mT if stress else None,
        share=torch.tensor([1 / graph.n_graphs, 1 / graph.n_atoms], dtype=torch.float64),
    )


def gradients(loss: PotentialLoss, batch: Batch) -> tuple[LossTerms, list[Tensor]]:
    terms = loss(batch)
    found = torch.autograd.grad(terms.total, list(loss.model.parameters()), allow_unused=True)
    return terms, [g for g in found if g is not None]


def trainable(random_potential: Make, **settings: object) -> Potential:
    return random_potential(**settings).requires_grad_()


@pytest.mark.parametrize("kind", ["l1", "mse"])
def test_loss_is_what_it_says(random_potential: Make, kind: str) -> None:
    model, batch = trainable(random_potential), labelled("mws", stress=True)
    weights = {"energy_weight": 0.7, "force_weight": 3.0, "stress_weight": 11.0}
    terms = PotentialLoss(model, TrainingConfig(max_steps=1, loss=kind, **weights))(batch)  # type: ignore[arg-type]
    prediction = model(batch.graph, stress=True)
    counts = torch.tensor([9.0, 3.0, 5.0], dtype=torch.float64)
    assert batch.stress is not None
    assert prediction.stress is not None
    energy = (prediction.energy - batch.energy) / counts
    force = (prediction.forces - batch.forces).norm(dim=-1)
    stress = (prediction.stress[2] - batch.stress[2]).norm()
    power = 1 if kind == "l1" else 2
    assert terms.energy.item() == pytest.approx((energy.abs() ** power).mean().item(), rel=1e-5)
    assert terms.force.item() == pytest.approx((force**power).mean().item(), rel=1e-5)
    assert terms.stress.item() == pytest.approx((stress**power / 3).item(), abs=1.1e-3)  # l1: √(0 + 1e-6) without label
    weighted = 0.7 * terms.energy + 3 * terms.force + 11 * terms.stress
    assert terms.total.item() == pytest.approx(weighted.item())
    assert terms.total.requires_grad
    assert not any(part.requires_grad for part in terms[1:])


@pytest.fixture
def _no_logging() -> Iterator[None]:
    """Tracing writes thousands of debug records, which pytest would keep."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("_no_logging")
def test_traced_equals_eager_for_any_sizes(random_potential: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trace alone, without the compiler's minute: its code is what torch.compile gets.

    Gradients too: a trace can lose what autograd connects behind the scenes.
    """
    monkeypatch.setattr(torch, "compile", lambda traced, **options: traced)
    model = trainable(random_potential)
    config = TrainingConfig(max_steps=1, stress_weight=1.0)
    eager, traced = (PotentialLoss(model, config.model_copy(update={"compile": c})) for c in (False, True))
    for kinds in ("sws", "sm", "swwmsmms"):
        batch = labelled(kinds, stress=True)
        expected, expected_gradients = gradients(eager, batch)
        found, found_gradients = gradients(traced, batch)
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, rtol=1e-11)
        scale = max(float(g.abs().max()) for g in expected_gradients)
        for one, other in zip(found_gradients, expected_gradients, strict=True):
            assert (one - other).abs().max() < 1e-10 * scale


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.usefixtures("_no_logging")
def test_compiled_for_real_equals_eager(random_potential: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile itself, of the smallest network: at other sizes than it was traced with, and after a change of the
    weights.
    """
    try:
        check_compiler()
    except NoCompiler as error:
        pytest.skip(str(error))
    monkeypatch.setenv("TORCHINDUCTOR_DEBUG_COMPILE", "1")  # -O0: a third of the time
    sizes = {"n_layers": 1, "hidden_dim": 4, "message_dim": 4, "n_vectors": 2, "n_radial": 3}
    model = trainable(random_potential, **sizes)
    eager, compiled = (PotentialLoss(model, TrainingConfig(max_steps=1, compile=c)) for c in (False, True))
    for kinds in ("sws", "swwmsmms"):
        batch = labelled(kinds)
        expected, expected_gradients = gradients(eager, batch)
        found, found_gradients = gradients(compiled, batch)
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, rtol=1e-9)
        scale = max(float(g.abs().max()) for g in expected_gradients)
        for one, other in zip(found_gradients, expected_gradients, strict=True):
            assert (one - other).abs().max() < 1e-9 * scale
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)


def unknown(batch: Batch, name: str, rows: Any) -> Batch:
    values = getattr(batch, name).clone()
    values[rows] = torch.nan
    return replace(batch, **{name: values})


def test_unknown_labels_count_for_nothing_and_leave_gradients_finite(random_potential: Make) -> None:
    """Molecules beside a crystal: they have no stress, and no volume to divide by."""
    model = trainable(random_potential)
    loss = PotentialLoss(model, TrainingConfig(max_steps=1, stress_weight=1.0))
    batch = labelled("mws", stress=True)
    batch = unknown(unknown(batch, "forces", slice(0, 9)), "energy", 1)
    terms, found = gradients(loss, batch)
    assert torch.isfinite(terms.total)
    assert all(torch.isfinite(g).all() for g in found)
    without = replace(batch, energy=batch.energy.clone().nan_to_num(nan=5.0))
    assert not torch.allclose(loss(without).energy, terms.energy)


def test_processes_share_a_step(random_potential: Make) -> None:
    """The mean over two processes, each with its half and share x 2, is the loss of the whole step."""
    loss = PotentialLoss(trainable(random_potential), TrainingConfig(max_steps=1))
    whole, halves = labelled("mwms"), []
    for chosen in ([0, 2], [1, 3]):
        atoms = torch.isin(whole.graph.batch, torch.tensor(chosen))
        graph = Graph.collate([graphs("mwms")[k] for k in chosen])
        labels = {"energy": whole.energy[chosen], "forces": whole.forces[atoms]}
        halves.append(replace(whole, graph=graph, share=whole.share * 2, **labels))
    whole_gradients = gradients(loss, whole)[1]
    halves_gradients = [gradients(loss, half)[1] for half in halves]
    for total, *parts in zip(whole_gradients, *halves_gradients, strict=True):
        assert torch.allclose(total, sum(parts) / 2, rtol=1e-9, atol=1e-12)


def with_charges(kinds: str) -> Batch:
    batch = labelled(kinds)
    n_atoms, n_graphs = batch.graph.n_atoms, batch.graph.n_graphs
    of_atoms = torch.linspace(-0.5, 0.5, n_atoms, dtype=torch.float64)
    of_atoms[0] = torch.nan
    dipole = torch.ones(n_graphs, 3, dtype=torch.float64)
    dipole[batch.graph.pbc.all(-1)] = torch.nan
    return replace(batch, charges=Charges(torch.zeros(n_graphs, dtype=torch.float64), of_atoms, dipole))


def test_losses_of_charges_are_what_they_say(random_potential: Make) -> None:
    model, batch = trainable(random_potential, long_range=True), with_charges("mw")
    terms = PotentialLoss(model, TrainingConfig(max_steps=1))(batch)
    prediction = model(batch.graph)
    assert batch.charges is not None
    assert prediction.charges is not None
    assert prediction.charge is not None
    assert prediction.dipole is not None
    call = model.local_call(
        batch.graph.pair_vectors(),
        model.species(batch.graph.atomic_numbers),
        batch.graph.pairs,
        far_of(batch.graph, model.dtype),
    )
    assert call.charges is not None
    label = batch.charges.of_atoms[1:]
    apart = (prediction.charges[1:] - label).abs().sum() + 0.1 * (call.charges[1:, 0] - label).abs().sum()
    expected = apart / len(batch.charges.of_atoms) + prediction.charge.abs().mean()
    assert terms.charge.item() == pytest.approx(expected.item())
    dipole = (prediction.dipole - batch.charges.dipole).norm(dim=-1).mean()
    assert terms.dipole.item() == pytest.approx(dipole.item(), rel=1e-5)


def test_charges_are_learned_from_cells_too(random_potential: Make) -> None:
    model, batch = trainable(random_potential, long_range=True), with_charges("msw")
    terms, found = gradients(PotentialLoss(model, TrainingConfig(max_steps=1, stress_weight=1.0)), batch)
    assert torch.isfinite(terms.total)
    assert all(bool(torch.isfinite(g).all()) for g in found)


@pytest.mark.parametrize("counted", [False, True])
def test_traced_equals_eager_with_charges(
    random_potential: Make, monkeypatch: pytest.MonkeyPatch, counted: bool
) -> None:
    monkeypatch.setattr("torch.compile", lambda traced, **_: traced)
    model = trainable(random_potential, long_range=True, charge_response=counted)
    eager, traced = (PotentialLoss(model, TrainingConfig(max_steps=1, compile=c)) for c in (False, True))
    for kinds in ("mw", "w", "mmw"):
        batch = with_charges(kinds)
        (terms, found), (expected_terms, expected) = gradients(traced, batch), gradients(eager, batch)
        assert terms.total.item() == pytest.approx(expected_terms.total.item(), rel=1e-12)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
