"""The potential's layer: invariance, equivariance, angles, quiet pairs beyond the cutoff."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from egnn_md.nn.ends import Ends
from egnn_md.nn.radial import BesselBasis, cutoff_envelope, distance
from egnn_md.nn.symmetric import SymmetricSquare
from egnn_md.nn.vector_layer import NEIGHBOR_SCALE, PairGradients, Pairs, State, VectorLayer

HIDDEN, MESSAGE, N_RADIAL, N_VECTORS, CUTOFF = 8, 12, 5, 3, 4.0


def stack(n_vectors: int = N_VECTORS, n_layers: int = 3, bound: float | None = None) -> torch.nn.ModuleList:
    torch.manual_seed(0)
    sizes = (HIDDEN, MESSAGE, N_RADIAL, n_vectors)
    return torch.nn.ModuleList(
        VectorLayer(*sizes, first=k == 0, last=k == n_layers - 1, bound=bound) for k in range(n_layers)
    ).double()


def pairs_of(positions: Tensor) -> Pairs:
    n = len(positions)
    index = torch.triu_indices(n, n, 1)
    vectors = positions[index[1]] - positions[index[0]]
    d = distance(vectors)
    radial, _ = BesselBasis(N_RADIAL, CUTOFF).double()(d)
    envelope, _ = cutoff_envelope(d, CUTOFF)
    return Pairs(Ends(index, n), (vectors / d).unsqueeze(-1), radial, envelope * NEIGHBOR_SCALE)


def states(layers: torch.nn.ModuleList, h: Tensor, positions: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    pairs, state, vectors = pairs_of(positions), State(h), []
    for layer in layers:
        state, _ = layer(state, [pairs])
        vectors.append(state.v)
    return state.h, vectors


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


def literal_layer(layer: VectorLayer, h: Tensor, v: Tensor | None, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The equations at the top of the module, edge by edge."""
    n, n_dim = len(h), pairs.directions.shape[1]
    normed = h / (h.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    m_i = torch.zeros(n, MESSAGE, dtype=h.dtype)
    v_new = torch.zeros(n, n_dim, N_VECTORS, dtype=h.dtype) if v is None else v.clone()
    ends = torch.stack([pairs.ends.first, pairs.ends.second], 1).tolist()
    both = [(k, end, pair[end], pair[1 - end]) for k, pair in enumerate(ends) for end in (0, 1)]
    for k, end, i, j in both:
        r = (1 - 2 * end) * pairs.directions[k, :, 0]
        parts = [layer.source.weight @ normed[i] + layer.source.bias, layer.target.weight @ normed[j]]
        parts.append(layer.radial.weight @ pairs.radial[k])
        if v is not None:
            parts.append(layer.geometry.weight @ torch.cat([r @ v[i], r @ v[j], (v[i] * v[j]).sum(0)]))
        hidden = torch.stack(parts).sum(0)
        m = hidden * torch.sigmoid(hidden) * pairs.weight[k]
        m_i[i] += m
        gates = layer.gate.weight @ m
        v_new[i] += torch.outer(r, gates[:N_VECTORS])
        if v is not None:
            v_new[i] += v[j] * gates[N_VECTORS:]
    read = ((v_new @ layer.read_left.weight.T) * (v_new @ layer.read_right.weight.T)).sum(1) / 2
    node = torch.cat([normed, m_i, read], -1) @ layer.node_in.weight.T + layer.node_in.bias
    node = node * torch.sigmoid(node)
    h_new = h + node @ layer.node_out.weight.T + layer.node_out.bias
    if layer.last:
        return h_new, v_new
    return h_new, v_new * (1 + node @ layer.vector_scale.weight.T + layer.vector_scale.bias).unsqueeze(1)


def test_layers_follow_their_equations() -> None:
    layers, (h, positions) = stack(), points(5, 3)
    pairs = pairs_of(positions)
    fast = State(h)
    slow: tuple[Tensor, Tensor | None] = (h, None)
    for layer in layers:
        fast, slow = layer(fast, [pairs])[0], literal_layer(layer, *slow, pairs)  # type: ignore[arg-type]
        assert (fast[0] - slow[0]).abs().max() < 1e-12 * slow[0].abs().max()
        if fast[1] is not None:
            assert slow[1] is not None
            assert (fast[1] - slow[1]).abs().max() < 1e-12 * slow[1].abs().max()


def test_vectors_see_angles() -> None:
    """A centre whose neighbours stand in a line or at a right angle, they themselves out of each other's reach."""
    far = 0.9 * CUTOFF
    line = torch.tensor([[0.0, 0, 0], [far, 0, 0], [-far, 0, 0]], dtype=torch.float64)
    bent = torch.tensor([[0.0, 0, 0], [far, 0, 0], [0, far, 0]], dtype=torch.float64)
    h, _ = points(3, 3)
    assert (states(stack(), h, line)[0] - states(stack(), h, bent)[0]).abs().max() > 1e-6


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


def random_blocks(sizes: tuple[int, ...], n: int, n_dim: int) -> list[Pairs]:
    """Pairs with random values that can be differentiated by."""
    blocks = []
    for size in sizes:
        ends = Ends(torch.randint(0, n, (2, size)), n)
        shapes = ((size, n_dim, 1), (size, N_RADIAL), (size, 1), (size, n_dim * (n_dim + 1) // 2, 1))
        values = [torch.randn(*shape, dtype=torch.float64) for shape in shapes]
        blocks.append(Pairs(ends, *(value.requires_grad_() for value in values)))
    return blocks


@pytest.mark.parametrize("sizes", [(30,), (11, 19, 1)], ids=["whole", "blocks"])
@pytest.mark.parametrize("n_dim", [2, 3, 5, 10])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("bound", [None, 0.7])
@pytest.mark.parametrize("n_tensors", [0, 4])
def test_the_way_back_is_autograds(
    n_dim: int, sizes: tuple[int, ...], first: bool, last: bool, bound: float | None, n_tensors: int
) -> None:
    """`vjp`, by ordinary operations and by those without history."""
    torch.manual_seed(n_dim)
    widths = (HIDDEN, MESSAGE, N_RADIAL, N_VECTORS)
    layer = VectorLayer(*widths, first=first, last=last, bound=bound, n_tensors=n_tensors, n_dim=n_dim).double()
    with torch.no_grad():
        for weight in layer.parameters():
            weight += 0.3 * torch.randn_like(weight)
    n = 7
    shapes = [(HIDDEN,)] if first else [(HIDDEN,), (n_dim, N_VECTORS)]
    shapes += [(n_dim * (n_dim + 1) // 2, n_tensors)] if n_tensors and not first else []
    state = State(*(torch.randn(n, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes))
    blocks = random_blocks(sizes, n, n_dim)
    after, tape = layer(state, blocks)
    assert (after.v is None, after.t is None) == (last, last or not n_tensors)
    by = State(*(None if x is None else torch.randn_like(x) for x in after))  # type: ignore[arg-type]
    energy = sum((x * b).sum() for x, b in zip(after, by, strict=True) if x is not None and b is not None)
    of_pairs = [x for p in blocks for x in (p.directions, p.radial, p.weight, *([p.quadrupoles] if n_tensors else []))]
    inputs = [x for x in state if x is not None]
    expected = torch.autograd.grad(energy, [*inputs, *of_pairs], retain_graph=True)  # type: ignore[list-item,arg-type]
    for tracked in (True, False):
        with torch.set_grad_enabled(tracked):
            by_pairs = [PairGradients() for _ in blocks]
            before = layer.vjp(tape, by, by_pairs)
        found = [x for x in before if x is not None]
        for of in by_pairs:
            assert of.by_directions is not None
            assert of.by_weight is not None
            by_pair = [of.by_directions.sum(-1, keepdim=True), of.by_radial, of.by_weight.sum(-1, keepdim=True)]
            found += [x for x in (*by_pair, of.by_quadrupoles) if x is not None]
        for one, other in zip(found, expected, strict=True):
            assert one.requires_grad == tracked
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n_dim", [2, 3, 5, 10])
def test_packed_squares_have_the_products_of_matrices(n_dim: int) -> None:
    """⟨a ⊗ a, b ⊗ b⟩ = (a·b)², and without the trace that of a unit vector with itself is 1 - 1/n."""
    square = SymmetricSquare(n_dim).double()
    a, b = torch.randn(2, 6, n_dim, 1, dtype=torch.float64).unbind(0)
    inner = (square(a) * square(b)).sum(-2)
    torch.testing.assert_close(inner, (a * b).sum(-2).square(), rtol=1e-12, atol=1e-12)
    traceless = square(a / a.norm(dim=-2, keepdim=True)) - square.trace
    expected = torch.full((6, 1), 1 - 1 / n_dim, dtype=torch.float64)
    torch.testing.assert_close(traceless.square().sum(-2), expected, rtol=1e-12, atol=0)


def test_tensor_invariants_do_not_turn() -> None:
    """Rank 2: features stay, whatever the rotation or reflection, in three dimensions and in five."""
    for n_dim in (3, 5):
        torch.manual_seed(0)
        sizes = (HIDDEN, MESSAGE, N_RADIAL, N_VECTORS)
        layers = [VectorLayer(*sizes, first=k == 0, last=k == 2, n_tensors=4, n_dim=n_dim).double() for k in range(3)]
        square = SymmetricSquare(n_dim).double()
        h, positions = points(6, n_dim)
        q, _ = torch.linalg.qr(torch.randn(n_dim, n_dim, dtype=torch.float64))
        features = []
        for at in (positions, positions @ q.T):
            plain = pairs_of(at)
            quadrupoles = square(plain.directions) - square.trace
            pairs = replace(plain, quadrupoles=quadrupoles)
            state = State(h)
            for layer in layers:
                state, _ = layer(state, [pairs])
            features.append(state.h)
        torch.testing.assert_close(features[0], features[1], rtol=1e-12, atol=1e-12)


def test_a_loss_of_the_gradient_has_autograds_weight_gradients() -> None:
    """Training on the written-out derivative is double backward, without being it."""
    layers, n = stack(bound=0.9), 7
    h = torch.randn(n, HIDDEN, dtype=torch.float64)
    (pairs,) = random_blocks((30,), n, 3)

    def forces_loss(by_hand: bool) -> Tensor:
        state, tapes = State(h), []
        for layer in layers:
            state, tape = layer(state, [pairs])
            tapes.append(tape)
        weights = torch.linspace(-1, 1, state.h.numel(), dtype=torch.float64).view_as(state.h)
        if not by_hand:
            (gradient,) = torch.autograd.grad((state.h * weights).sum(), pairs.directions, create_graph=True)
            return gradient.square().sum()
        by, by_pairs = State(weights), [PairGradients()]
        for layer, tape in zip(reversed(layers), reversed(tapes), strict=True):
            by = layer.vjp(tape, by, by_pairs)  # type: ignore[operator]
        assert by_pairs[0].by_directions is not None
        return by_pairs[0].by_directions.square().sum()

    by_hand, by_autograd = (
        torch.autograd.grad(forces_loss(kind), list(layers.parameters()), allow_unused=True) for kind in (True, False)
    )
    for one, other in zip(by_hand, by_autograd, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))
