"""Laws of flow maps, which hold whatever the weights: conservation, reversibility, volume, symmetry."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from flow_maps import inputs, moving, random_flow
from torch import Tensor

from egnn_md.checkpoint import load, save
from egnn_md.chemistry.elements import UnsupportedElement
from egnn_md.models.flow import FlowConfig, FlowMap, advance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_momentum_and_angular_momentum_are_conserved(dtype: torch.dtype) -> None:
    model, atoms = random_flow(dtype=dtype), moving()
    x, p, *rest = inputs(model, atoms, 5.0)
    y, q, *_ = model(x, p, *rest, 3)
    assert not torch.allclose(p, q, atol=0.1)
    torch.testing.assert_close(q.sum(0), p.sum(0), atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.cross(y, q, -1).sum(0), torch.cross(x, p, -1).sum(0), atol=1e-11, rtol=0)


def test_turning_the_momenta_round_leads_back() -> None:
    model, atoms = random_flow(), moving()
    x, p, *rest = inputs(model, atoms, 4.0)
    y, q, *_ = model(x, p, *rest, 3)
    back, turned, *_ = model(y, -q, *rest, 3)
    assert (y - x).abs().max() > 0.05
    torch.testing.assert_close(back, x, atol=1e-9, rtol=0)
    torch.testing.assert_close(-turned, p, atol=1e-9, rtol=0)


def test_phase_space_volume_is_preserved() -> None:
    model, atoms = random_flow(), moving("H2O")
    x, p, *rest = inputs(model, atoms, 5.0)

    def flow(state: Tensor) -> Tensor:
        y, q, *_ = model(state[:9].view(3, 3), state[9:].view(3, 3), *rest)
        return torch.cat([y.flatten(), q.flatten()])

    jacobian = torch.autograd.functional.jacobian(flow, torch.cat([x.flatten(), p.flatten()]))
    assert (jacobian - torch.eye(18)).abs().max() > 0.1
    assert abs(float(torch.linalg.det(jacobian)) - 1.0) < 1e-9


def test_rotated_start_gives_rotated_end_and_translation_nothing() -> None:
    model, atoms = random_flow(), moving()
    x, p, *rest = inputs(model, atoms, 5.0)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    shift = torch.tensor([3.0, -2.0, 1.0])
    y, q, first, _ = model(x, p, *rest)
    turned_y, turned_q, turned_first, _ = model(x @ rotation + shift, p @ rotation, *rest)  # a mirror image if det < 0
    torch.testing.assert_close(turned_y, y @ rotation + shift)
    torch.testing.assert_close(turned_q, q @ rotation)
    torch.testing.assert_close(turned_first[1].sum(), first[1].sum())


def test_order_of_atoms_and_direction_of_pairs_do_not_matter() -> None:
    model, atoms = random_flow(), moving()
    order = np.random.default_rng(0).permutation(len(atoms))
    y, q, first, _ = model(*inputs(model, atoms, 5.0))
    x, p, species, masses, pairs, substep = inputs(model, atoms[order], 5.0)
    new_y, new_q, new_first, _ = model(x, p, species, masses, pairs.flip(0), substep)
    torch.testing.assert_close(new_y, y[order])
    torch.testing.assert_close(new_q, q[order])
    torch.testing.assert_close(new_first[1].sum(), first[1].sum())


def test_a_batch_equals_its_molecules() -> None:
    model, both = random_flow(), [moving(), moving("H2O", seed=1)]
    single = [inputs(model, atoms, s) for atoms, s in zip(both, (5.0, 2.0), strict=True)]
    joined = [torch.cat(values) for k, values in enumerate(zip(*single, strict=True)) if k != 4]
    pairs = torch.cat([single[0][4], single[1][4] + len(both[0])], 1)
    y, q, *_ = model(*joined[:4], pairs, joined[4], 2)
    for part, at in zip(single, (slice(0, 9), slice(9, 12)), strict=True):
        expected = model(*part, 2)
        torch.testing.assert_close(y[at], expected[0])
        torch.testing.assert_close(q[at], expected[1])


def test_substeps_follow_one_another() -> None:
    model, atoms = random_flow(), moving()
    x, p, *rest = inputs(model, atoms, 3.0)
    twice = model(*model(x, p, *rest)[:2], *rest)
    torch.testing.assert_close(model(x, p, *rest, 2)[0], twice[0])
    torch.testing.assert_close(model(x, p, *rest, 2)[1], twice[1])


def test_masses_and_substep_decide_the_kicks() -> None:
    model, light, heavy = random_flow(), moving(), moving()
    masses = heavy.get_masses()
    masses[-1] = 2.014
    heavy.set_masses(masses)
    kicks = [model(*inputs(model, atoms, s))[2][0] for atoms, s in ((light, 5.0), (heavy, 5.0), (light, 4.0))]
    assert (kicks[0] - kicks[1]).abs().max() > 1e-6
    assert (kicks[0] - kicks[2]).abs().max() > 1e-6


@pytest.mark.parametrize("phase", [0.3, 2.0, 4.0, 6.0])
def test_the_right_linear_kicks_rotate_a_vibration_exactly(phase: float) -> None:
    """The formulas at the top of models/flow.py, for ω s = phase up to nearly one period."""
    s = 0.7
    omega = phase / s
    inner = 4.0 / s * (1.0 - math.sin(phase) / phase)
    outer = 2.0 / s - omega / math.tan(0.5 * phase)
    kinds = torch.tensor([outer / (s / 6.0), inner / (s / 1.5)], dtype=torch.float64)

    def kick(x: Tensor, stiffness: Tensor) -> tuple[Tensor, Tensor]:
        return -stiffness * x, torch.zeros(1)

    x, p = torch.tensor([0.4], dtype=torch.float64), torch.tensor([-1.1], dtype=torch.float64)
    number = torch.tensor(s, dtype=torch.float64)
    y, q, _ = advance(kick, x, p, kick(x, kinds[0]), kinds, 0.5 * number, number, 1)
    assert float(y) == pytest.approx(0.4 * math.cos(phase) - 1.1 * math.sin(phase) / omega)
    assert float(q) == pytest.approx(-1.1 * math.cos(phase) - 0.4 * omega * math.sin(phase))


def test_strides_are_cut_into_equal_substeps() -> None:
    model = random_flow(longest_substep=5.0)
    assert [model.n_substeps(stride) for stride in (0.5, 5.0, 5.1, 10.0, 12.0, 0.3 * 50)] == [1, 1, 2, 2, 3, 3]


def test_a_checkpoint_gives_the_same_flow(tmp_path: Path) -> None:
    model, atoms = random_flow(dtype=torch.float32), moving()
    save(model, tmp_path / "flow.safetensors", {"name": "nonsense"})
    loaded = load(tmp_path / "flow.safetensors")
    assert isinstance(loaded, FlowMap)
    arguments = inputs(model, atoms, 5.0)
    assert torch.equal(loaded(*arguments)[0], model(*arguments)[0])


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UnsupportedElement, match="knows H, C, O; the structure has N"):
        random_flow().check_elements(torch.tensor([1, 7]))
    for wrong in ({"longest_substep": 0.0}, {"cutoff": math.nan}, {"n_layers": 0}, {"reference_energies": (1.0,)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FlowConfig(**{"elements": (1, 6), "reference_energies": (0.0, 0.0), **wrong})  # type: ignore[arg-type]
