"""EGCL and EGNN: equivariance, the paper's equations, batches, finite derivatives."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from egnn_md.nn.egcl import EGCL, EdgeInput, NodeState
from egnn_md.nn.egnn import EGNN

N_NODES, IN_DIM, HIDDEN, EDGE_DIM = 6, 3, 8, 2
OPTIONS: list[dict[str, bool]] = [
    {},
    {"update_coordinates": False},
    {"soft_edges": True},
    {"residual": False},
    {"velocities": True},
    {"velocities": True, "soft_edges": True},
    {"velocities": True, "velocity_recursion": True, "residual": False},
]


def name(options: dict[str, bool]) -> str:
    return "-".join(f"{key}={value}" for key, value in options.items()) or "plain"


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights of order 1/sqrt(fan in) everywhere: φ_x starts near zero, where its equations could not be tested."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * max(p.shape[-1], 4) ** -0.5
    return module.double()


def all_pairs(n: int) -> Tensor:
    pairs = [(i, j) for i, j in product(range(n), repeat=2) if i != j]
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T


def inputs(n_dim: int, n_nodes: int = N_NODES, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    edges = all_pairs(n_nodes)
    return {
        "features": normal(n_nodes, IN_DIM),
        "positions": normal(n_nodes, n_dim),
        "edge_index": edges,
        "edge_attributes": normal(edges.shape[1], EDGE_DIM),
        "edge_weight": torch.rand(edges.shape[1], 1, generator=generator, dtype=torch.float64),
        "velocities": normal(n_nodes, n_dim),
    }


def network(options: dict[str, Any], coordinate_scale: str = "others", n_layers: int = 3) -> EGNN:
    net = EGNN(IN_DIM, HIDDEN, 4, n_layers, edge_dim=EDGE_DIM, coordinate_scale=coordinate_scale, **options)  # type: ignore[arg-type]
    return randomize(net)  # type: ignore[return-value]


def orthogonal(n_dim: int, seed: int, determinant: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n_dim, n_dim, generator=generator, dtype=torch.float64))
    q[:, 0] *= torch.sign(torch.linalg.det(q)) * determinant
    return q


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


def run(net: EGNN, given: dict[str, Tensor], with_velocities: bool) -> NodeState:
    call = dict(given) if with_velocities else {key: value for key, value in given.items() if key != "velocities"}
    result: NodeState = net(**call)
    return result


@pytest.mark.parametrize("n_dim", [2, 3, 5, 10])
@pytest.mark.parametrize("options", OPTIONS, ids=name)
@pytest.mark.parametrize("determinant", [1.0, -1.0], ids=["rotation", "reflection"])
def test_features_are_invariant_and_positions_move_along(
    n_dim: int, options: dict[str, bool], determinant: float
) -> None:
    for coordinate_scale in ("others", "mean", "sum"):
        net, given = network(options, coordinate_scale), inputs(n_dim)
        moves = options.get("velocities", False)
        q = orthogonal(n_dim, seed=3, determinant=determinant)
        shift = torch.linspace(-1.0, 2.0, n_dim, dtype=torch.float64)
        turned = given | {"positions": given["positions"] @ q.T + shift, "velocities": given["velocities"] @ q.T}
        before, after = run(net, given, moves), run(net, turned, moves)
        assert relative_error(after.features, before.features) < 1e-12
        assert relative_error(after.positions, before.positions @ q.T + shift) < 1e-12
        if options.get("update_coordinates", True):
            assert (before.positions - given["positions"]).abs().max() > 0.05  # or the law says nothing
        if moves:
            assert before.velocities is not None
            assert after.velocities is not None
            assert relative_error(after.velocities, before.velocities @ q.T) < 1e-12


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_permuted_nodes_give_permuted_results(options: dict[str, bool]) -> None:
    net, given = network(options), inputs(3)
    moves = options.get("velocities", False)
    order = torch.randperm(N_NODES, generator=torch.Generator().manual_seed(5))
    place = torch.argsort(order)
    per_node = {key: given[key][order] for key in ("features", "positions", "velocities")}
    edge_order = torch.randperm(given["edge_index"].shape[1], generator=torch.Generator().manual_seed(6))
    per_edge = {key: given[key][edge_order] for key in ("edge_attributes", "edge_weight")}
    shuffled = per_node | per_edge | {"edge_index": place[given["edge_index"][:, edge_order]]}
    before, after = run(net, given, moves), run(net, shuffled, moves)
    assert relative_error(after.features, before.features[order]) < 1e-12
    assert relative_error(after.positions, before.positions[order]) < 1e-12


def two_layers(net: torch.nn.Sequential, x: Tensor) -> Tensor:
    first, last = net[0], net[2]
    hidden = first.weight @ x + first.bias
    hidden = hidden / (1 + torch.exp(-hidden))  # SiLU
    out = last.weight @ hidden
    return out if last.bias is None else out + last.bias


def literal_phi_e(layer: EGCL, h_i: Tensor, h_j: Tensor, squared: Tensor, a_ij: Tensor) -> Tensor:
    """Eq. 3 on the concatenation, as the paper writes it."""
    model = layer.edge_model
    weight = torch.cat([model.source.weight, model.target.weight, model.pair.weight], dim=1)
    hidden = weight @ torch.cat([h_i, h_j, squared.reshape(1), a_ij]) + model.source.bias
    hidden = hidden / (1 + torch.exp(-hidden))
    out = model.output.weight @ hidden + model.output.bias
    return out / (1 + torch.exp(-out))


def literal_layer(layer: EGCL, h: Tensor, x: Tensor, v: Tensor | None, v_init: Tensor | None, a: Tensor) -> list[Any]:
    """Eqs. 3 to 8, node by node; a (n, n, edge_dim), C = 1/(n - 1)."""
    n = len(h)
    new_h, new_x, new_v = [], [], []
    for i in range(n):
        m_i, moved = torch.zeros_like(h[i]), torch.zeros_like(x[i])
        for j in range(n):
            if j == i:
                continue
            m_ij = literal_phi_e(layer, h[i], h[j], ((x[i] - x[j]) ** 2).sum(), a[i, j])
            if layer.soft_edge is not None:  # eq. 8
                m_ij = m_ij / (1 + torch.exp(-(layer.soft_edge.weight @ m_ij + layer.soft_edge.bias)))
            m_i = m_i + m_ij  # eq. 5
            if layer.coordinate_model is not None:
                moved = moved + (x[i] - x[j]) * two_layers(layer.coordinate_model, m_ij)
        moved = moved / (n - 1)
        if layer.velocity_model is not None and v is not None and v_init is not None:  # eq. 7
            carried = v[i] if layer.velocity_recursion else v_init[i]
            moved = two_layers(layer.velocity_model, h[i]) * carried + moved
            new_v.append(moved)
        new_x.append(x[i] + moved)  # eq. 4
        update = two_layers(layer.node_model, torch.cat([h[i], m_i]))  # eq. 6
        new_h.append(h[i] + update if layer.residual else update)
    return [torch.stack(new_h), torch.stack(new_x), torch.stack(new_v) if new_v else v]


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_stack_follows_the_equations_of_the_paper(options: dict[str, bool]) -> None:
    net, given = network(options), inputs(3)
    given.pop("edge_weight")  # not in the paper
    moves = options.get("velocities", False)
    a = torch.zeros(N_NODES, N_NODES, EDGE_DIM, dtype=torch.float64)
    a[given["edge_index"][0], given["edge_index"][1]] = given["edge_attributes"]
    v_init = given["velocities"] if moves else None
    h, x, v = given["features"] @ net.embedding.weight.T + net.embedding.bias, given["positions"], v_init
    for layer in net.layers:
        h, x, v = literal_layer(layer, h, x, v, v_init, a)  # type: ignore[arg-type]
    found = run(net, given, moves)
    assert relative_error(found.features, h @ net.output.weight.T + net.output.bias) < 1e-12
    assert relative_error(found.positions, x) < 1e-12
    if v is not None:
        assert found.velocities is not None
        assert relative_error(found.velocities, v) < 1e-12


def test_recursion_differs_from_the_input_velocity_only_from_the_second_layer_on() -> None:
    given = inputs(3)
    for n_layers, same in [(1, True), (2, False)]:
        options = [{"velocities": True, "velocity_recursion": recursion} for recursion in (False, True)]
        plain, recursive = (run(network(choice, n_layers=n_layers), given, True).positions for choice in options)
        assert torch.equal(plain, recursive) == same


def test_inputs_are_left_as_they_were() -> None:
    given = inputs(3)
    copies = {key: value.clone() for key, value in given.items()}
    result = run(network({"velocities": True, "soft_edges": True}), given, True)
    for key, value in given.items():
        assert torch.equal(value, copies[key]), key
    assert result.positions.data_ptr() != given["positions"].data_ptr()


@pytest.mark.parametrize("coordinate_scale", ["others", "mean", "sum"])
def test_a_batch_is_each_graph_alone(coordinate_scale: str) -> None:
    net = network({"velocities": True, "soft_edges": True}, coordinate_scale)
    parts = [inputs(3, n_nodes=n, seed=n) for n in (2, 5, 3)]
    alone = [run(net, part, True) for part in parts]
    starts = [0, 2, 7]
    joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0] if key != "edge_index"}
    joined["edge_index"] = torch.cat([part["edge_index"] + at for part, at in zip(parts, starts, strict=True)], 1)
    joined["batch"] = torch.repeat_interleave(torch.arange(3), torch.tensor([2, 5, 3]))
    together = run(net, joined, True)
    assert relative_error(together.features, torch.cat([state.features for state in alone])) < 1e-12
    assert relative_error(together.positions, torch.cat([state.positions for state in alone])) < 1e-12


def test_coordinate_constants() -> None:
    """Two points, one edge each way: C is 1/(n-1) = 1; with a third, unconnected point it is 1/2, the mean 1."""
    for coordinate_scale, third, expected in [("others", False, 1.0), ("others", True, 0.5), ("mean", True, 1.0)]:
        net, reference = network({}, coordinate_scale, 1), network({}, "sum", 1)
        given = inputs(3, n_nodes=2)
        if third:
            extra = inputs(3, n_nodes=1, seed=9)
            names = ("features", "positions", "velocities")
            given = given | {key: torch.cat([given[key], extra[key]]) for key in names}
        step = run(net, given, False).positions - given["positions"]
        full = run(reference, given, False).positions - given["positions"]
        assert relative_error(step, expected * full) < 1e-12


def test_offsets_stand_for_periodic_images() -> None:
    """An image moved by a cell vector, with that vector as offset, is the neighbour where it was."""
    net, given = network({}, n_layers=1), inputs(3)
    reference = run(net, given, False)
    shift = torch.tensor([7.0, -3.0, 2.0], dtype=torch.float64)
    positions = given["positions"].clone()
    positions[2] += shift
    centre, neighbor = given["edge_index"]
    offsets = ((neighbor == 2).double() - (centre == 2).double()).unsqueeze(-1) * shift
    moved = net(
        **{key: value for key, value in given.items() if key != "velocities"} | {"positions": positions},
        edge_offsets=offsets,
    )
    assert relative_error(moved.features, reference.features) < 1e-12


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_coincident_points_leave_values_and_derivatives_finite(options: dict[str, bool]) -> None:
    net, given = network(options), inputs(3)
    positions = given["positions"].clone()
    positions[1] = positions[0]
    positions[2] = positions[0]
    positions.requires_grad_()
    result = run(net, given | {"positions": positions}, options.get("velocities", False))
    scalar = result.features.sum() + result.positions.square().sum()
    (gradient,) = torch.autograd.grad(scalar, positions, create_graph=True)
    second = torch.autograd.grad(gradient.square().sum(), [positions, *net.parameters()], allow_unused=True)
    assert torch.isfinite(result.features).all()
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0
    assert all(torch.isfinite(g).all() for g in second if g is not None)


def test_untrained_deep_stacks_keep_points_together() -> None:
    torch.manual_seed(0)
    given = {key: value.float() if value.is_floating_point() else value for key, value in inputs(3).items()}
    net = EGNN(IN_DIM, HIDDEN, 4, 20, edge_dim=EDGE_DIM, coordinate_scale="sum")
    moved = run(net, given, False).positions - given["positions"]
    assert 0 < moved.abs().max() < 0.5


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eq\. 7"):
        EGCL(HIDDEN, velocities=True, update_coordinates=False)
    with pytest.raises(ValueError, match="'other'"):
        EGNN(1, 2, 1, 1, coordinate_scale="other")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="soft_edge"):
        EGNN(1, 2, 1, 1, soft_edge=True)
    layer = EGCL(HIDDEN, velocities=True)
    state = NodeState(torch.zeros(2, HIDDEN), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="velocities"):
        layer(state, EdgeInput(all_pairs(2), torch.ones(2, 1)))


# Beyond the paper


def complete(n: int) -> torch.Tensor:
    return (~torch.eye(n, dtype=torch.bool)).nonzero().T


def test_deep_stacks_stay_finite_with_normalised_differences_and_bounded_steps() -> None:
    features, positions, edges = torch.randn(100, 4), 3 * torch.randn(100, 3), complete(100)

    def run(**options: Any) -> Any:
        torch.manual_seed(0)
        with torch.no_grad():
            return EGNN(4, 32, 4, 16, coordinate_scale="sum", **options)(features, positions, edges)

    plain, tamed = run(), run(normalize=True, largest_step=0.2)
    assert not torch.isfinite(plain.features).all() or plain.features.abs().max() > 1e9  # the paper's form overflows
    assert tamed.features.abs().max() < 100
    assert (tamed.positions - positions).norm(dim=-1).max() <= 16 * 0.2
    moved = run(largest_step=1e-3).positions - positions
    assert moved.norm(dim=-1).max() <= 16 * 1e-3 * 1.01


def test_the_options_keep_equivariance_and_their_absence_is_the_paper() -> None:
    torch.manual_seed(1)
    options: dict[str, Any] = {"normalize": True, "largest_step": 0.3}
    network = EGNN(3, 8, 2, 3, **options).double()
    features, positions, edges = torch.randn(6, 3).double(), torch.randn(6, 3).double(), complete(6)
    rotation = torch.linalg.qr(torch.randn(3, 3).double())[0]
    plain = network(features, positions, edges)
    turned = network(features, positions @ rotation + 1.0, edges)
    torch.testing.assert_close(turned.features, plain.features)
    torch.testing.assert_close(turned.positions, plain.positions @ rotation + 1.0)
    positions.requires_grad_(True)
    twice = torch.cat([positions[:1], positions])  # two nodes on one place
    network(torch.cat([features[:1], features]), twice, complete(7)).positions.square().sum().backward()
    assert positions.grad is not None
    assert torch.isfinite(positions.grad).all()


@pytest.mark.parametrize("scale", ["others", "mean", "sum"])
@pytest.mark.parametrize("batched", [False, True])
def test_padding_changes_nothing(scale: Any, batched: bool) -> None:
    torch.manual_seed(2)
    network = EGNN(3, 8, 2, 2, coordinate_scale=scale).double()
    features, positions, edges = torch.randn(5, 3).double(), torch.randn(5, 3).double(), complete(5)
    plain = network(features, positions, edges)
    padded = network(
        torch.cat([features, torch.randn(3, 3).double()]),
        torch.cat([positions, torch.randn(3, 3).double()]),
        edges,
        mask=torch.tensor([True] * 5 + [False] * 3),
        batch=torch.zeros(8, dtype=torch.int64) if batched else None,
    )
    torch.testing.assert_close(padded.positions[:5], plain.positions)
    torch.testing.assert_close(padded.features[:5], plain.features)


def test_wrong_shapes_are_named() -> None:
    network = EGNN(3, 8, 2, 2, edge_dim=2)
    h, x, edges, a = torch.randn(4, 3), torch.randn(4, 3), complete(4), torch.randn(12, 2)
    network(h, x, edges, edge_attributes=a)
    for arguments, options, words in (
        ((h, x, edges), {}, r"edge attributes \(n_edges, 2\) are missing"),
        ((h, x, edges), {"edge_attributes": a[:, :1]}, r"edge attributes must have the shape \(12, 2\), not \(12, 1\)"),
        (
            (h, x, edges),
            {"edge_attributes": a, "edge_weight": torch.ones(12)},
            r"edge weight .* \(12, 1\), not \(12,\)",
        ),
        ((h[:, :2], x, edges), {}, r"features must have the shape \(4, 3\), .* not \(4, 2\)"),
        ((h, x[:3], edges), {}, r"features must have the shape \(3, 3\)"),
        ((h, x[0], edges), {}, r"positions must have the shape \(n_nodes, n_dim\)"),
        ((h, x, edges.T), {}, r"edge_index must be int64 of shape \(2, n_edges\)"),
        ((h, x, edges.float()), {}, "not torch.float32"),
        ((h, x, edges), {"edge_attributes": a, "mask": torch.ones(3)}, r"mask must have the shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            network(*arguments, **options)
    with pytest.raises(ValueError, match=r"must have the shape \(12, 0\)"):
        EGNN(3, 8, 2, 2)(h, x, edges, edge_attributes=a)
    with pytest.raises(ValueError, match="largest_step must be positive"):
        EGNN(3, 8, 2, 2, largest_step=0.0)
