"""The potential's layer: invariance, equivariance, angles, quiet edges beyond the cutoff."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from egnn_md.nn.radial import BesselBasis, cutoff_envelope, distance
from egnn_md.nn.vector_egcl import VectorEGCL

HIDDEN, MESSAGE, N_RADIAL, N_VECTORS, CUTOFF = 8, 12, 5, 3, 4.0


def stack(n_vectors: int = N_VECTORS, n_layers: int = 3, bound: float | None = None) -> torch.nn.ModuleList:
    torch.manual_seed(0)
    sizes = (HIDDEN, MESSAGE, N_RADIAL, n_vectors)
    return torch.nn.ModuleList(
        VectorEGCL(*sizes, first=k == 0, last=k == n_layers - 1, bound=bound) for k in range(n_layers)
    ).double()


def edges_of(positions: Tensor) -> Any:
    n = len(positions)
    index = torch.tensor([(i, j) for i in range(n) for j in range(n) if i != j]).T
    vectors = positions[index[1]] - positions[index[0]]
    d = distance(vectors)
    radial, _ = BesselBasis(N_RADIAL, CUTOFF).double()(d)
    envelope, _ = cutoff_envelope(d, CUTOFF)
    return SimpleNamespace(index=index, directions=(vectors / d).unsqueeze(-1), radial=radial, envelope=envelope)


def states(layers: torch.nn.ModuleList, h: Tensor, positions: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    edges, v, vectors = edges_of(positions), None, []
    for layer in layers:
        h, v = layer(h, v, edges)
        vectors.append(v)
    return h, vectors


def points(n: int, n_dim: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(n, HIDDEN, generator=generator, dtype=torch.float64)
    return h, torch.randn(n, n_dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("n_dim", [2, 3, 5, 10])
@pytest.mark.parametrize("determinant", [1.0, -1.0], ids=["rotation", "reflection"])
@pytest.mark.parametrize("bound", [None, 0.1])
def test_features_are_invariant_and_vectors_turn(n_dim: int, determinant: float, bound: float | None) -> None:
    layers, (h, positions) = stack(bound=bound), points(6, n_dim)
    q, _ = torch.linalg.qr(torch.randn(n_dim, n_dim, dtype=torch.float64))
    q[:, 0] *= torch.sign(torch.linalg.det(q)) * determinant
    before, after = states(layers, h, positions), states(layers, h, positions @ q.T + 1.5)
    assert (after[0] - before[0]).abs().max() < 1e-12 * before[0].abs().max()
    for old, new in zip(before[1][:-1], after[1][:-1], strict=True):
        assert old is not None
        assert new is not None
        assert old.abs().max() > 1e-3
        turned = torch.einsum("ab,nbc->nac", q, old)  # a, b dimension; n atom; c channel
        assert (new - turned).abs().max() < 1e-12 * old.abs().max()
    assert before[1][-1] is None


@torch.no_grad()
def test_a_bound_holds_whatever_the_weights() -> None:
    """What runs away without a bound stays within it; far below the bound nothing changes."""
    free, bounded, wide = (stack(n_layers=4, bound=bound) for bound in (None, 5.0, 1e9))
    h, positions = points(6, 3)
    for one, other in zip(states(free, h, positions)[1][:-1], states(wide, h, positions)[1][:-1], strict=True):
        assert one is not None
        assert other is not None
        assert (one - other).abs().max() < 1e-12 * one.abs().max()
    for layers in (free, bounded):
        for weight in layers.parameters():
            weight *= 4.0
    sizes = [
        [float(v.norm(dim=1).max()) for v in states(layers, h, positions)[1] if v is not None]
        for layers in (free, bounded)
    ]
    assert sizes[0][-1] > 1e4
    assert max(sizes[1]) <= 5.0


def literal_layer(layer: VectorEGCL, h: Tensor, v: Tensor | None, edges: Any) -> tuple[Tensor, Tensor]:
    """The equations at the top of the module, edge by edge."""
    n, n_dim = len(h), edges.directions.shape[1]
    normed = h / (h.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    m_i = torch.zeros(n, MESSAGE, dtype=h.dtype)
    v_new = torch.zeros(n, n_dim, N_VECTORS, dtype=h.dtype) if v is None else v.clone()
    for e, (i, j) in enumerate(edges.index.T.tolist()):
        r = edges.directions[e, :, 0]
        parts = [layer.source.weight @ normed[i] + layer.source.bias, layer.target.weight @ normed[j]]
        parts.append(layer.radial.weight @ edges.radial[e])
        if v is not None:
            parts.append(layer.geometry.weight @ torch.cat([r @ v[i], r @ v[j], (v[i] * v[j]).sum(0)]))
        hidden = torch.stack(parts).sum(0)
        m = hidden * torch.sigmoid(hidden) * edges.envelope[e]
        m_i[i] += m / 4
        gates = layer.gate.weight @ m
        v_new[i] += torch.outer(r, gates[:N_VECTORS]) / 4
        if v is not None:
            v_new[i] += v[j] * gates[N_VECTORS:] / 4
    read = ((v_new @ layer.read_left.weight.T) * (v_new @ layer.read_right.weight.T)).sum(1) / 2
    node = torch.cat([normed, m_i, read], -1) @ layer.node_in.weight.T + layer.node_in.bias
    node = node * torch.sigmoid(node)
    h_new = h + node @ layer.node_out.weight.T + layer.node_out.bias
    if layer.last:
        return h_new, v_new
    return h_new, v_new * (1 + node @ layer.vector_scale.weight.T + layer.vector_scale.bias).unsqueeze(1)


def test_layers_follow_their_equations() -> None:
    layers, (h, positions) = stack(), points(5, 3)
    edges = edges_of(positions)
    fast: tuple[Tensor, Tensor | None] = (h, None)
    slow: tuple[Tensor, Tensor | None] = (h, None)
    for layer in layers:
        fast, slow = layer(*fast, edges), literal_layer(layer, *slow, edges)  # type: ignore[arg-type]
        assert (fast[0] - slow[0]).abs().max() < 1e-12 * slow[0].abs().max()
        if fast[1] is not None:
            assert slow[1] is not None
            assert (fast[1] - slow[1]).abs().max() < 1e-12 * slow[1].abs().max()


def test_vectors_see_angles_that_an_invariant_layer_cannot() -> None:
    """A centre whose neighbours stand in a line or at a right angle, they themselves out of each other's reach."""
    far = 0.9 * CUTOFF
    line = torch.tensor([[0.0, 0, 0], [far, 0, 0], [-far, 0, 0]], dtype=torch.float64)
    bent = torch.tensor([[0.0, 0, 0], [far, 0, 0], [0, far, 0]], dtype=torch.float64)
    h, _ = points(3, 3)
    difference = {n: (states(stack(n), h, line)[0] - states(stack(n), h, bent)[0]).abs().max() for n in (0, N_VECTORS)}
    assert difference[0] < 1e-12
    assert difference[N_VECTORS] > 1e-6


def test_atoms_out_of_reach_change_nothing() -> None:
    layers, (h, positions) = stack(), points(5, 3)
    alone, _ = states(layers, h[:4], positions[:4])
    positions = positions.clone()
    positions[4] += 50.0
    together, _ = states(layers, h, positions)
    assert (together[:4] - alone).abs().max() < 1e-12 * alone.abs().max()


def test_coincident_points_leave_values_and_derivatives_finite() -> None:
    layers, (h, positions) = stack(), points(5, 3)
    positions[1] = positions[0]
    positions.requires_grad_()
    features, _ = states(layers, h, positions)
    (gradient,) = torch.autograd.grad(features.sum(), positions, create_graph=True)
    second = torch.autograd.grad(gradient.square().sum(), [positions, *layers.parameters()], allow_unused=True)
    assert torch.isfinite(features).all()
    assert torch.isfinite(gradient).all()
    assert all(torch.isfinite(g).all() for g in second if g is not None)
