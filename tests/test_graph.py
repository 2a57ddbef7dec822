"""Graph: vectors of pairs, collation, moves between precisions."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from graphs import crystal, make_graph, molecule

from egnn_md.graph import Graph


def water() -> Graph:
    return make_graph(*molecule("H2O"), 5.0)


def solid() -> Graph:
    numbers, positions, cell = crystal()
    return make_graph(numbers, positions, 4.0, cell)


def test_vectors_obey_the_convention_pair_by_pair() -> None:
    """r_ij = r_j - r_i + S @ cell, in a single graph and in a batch of different cells."""
    other = solid()
    other = replace(other, cell=other.cell * 1.1, positions=other.positions * 1.1)
    for graph in (water(), solid(), Graph.collate([water(), solid(), other])):
        vectors = graph.pair_vectors()
        assert vectors.shape == (graph.n_pairs, 3)
        for k, (i, j) in enumerate(graph.pairs.T.tolist()):
            expected = graph.positions[j] - graph.positions[i]
            if graph.shifts is not None:
                expected = expected + graph.shifts[k] @ graph.cell[graph.batch[i]]
            assert torch.allclose(vectors[k], expected, rtol=0, atol=1e-14)


def test_every_pair_has_two_edges() -> None:
    for graph in (water(), solid()):
        vectors = (1e6 * graph.edge_vectors()).round().long()
        edges = list(zip(graph.edge_index.T.tolist(), vectors, strict=True))
        forth = {(i, j, *r.tolist()) for (i, j), r in edges}
        back = {(j, i, *(-r).tolist()) for (i, j), r in edges}
        assert len(forth) == 2 * graph.n_pairs
        assert forth == back


def test_collation_keeps_each_graph_whole() -> None:
    parts = [water(), solid(), water()]
    graph = Graph.collate(parts)
    assert (graph.n_graphs, graph.n_atoms) == (3, 11)
    assert graph.n_pairs == sum(part.n_pairs for part in parts)
    assert graph.batch.tolist() == [0] * 3 + [1] * 5 + [2] * 3
    assert (graph.batch[graph.pairs[0]] == graph.batch[graph.pairs[1]]).all()
    assert torch.equal(graph.pair_vectors(), torch.cat([part.pair_vectors() for part in parts]))
    assert torch.equal(graph.pbc, torch.cat([part.pbc for part in parts]))
    nested = Graph.collate([Graph.collate(parts[:2]), parts[2]])
    for name in ("positions", "pairs", "shifts", "cell", "batch"):
        assert torch.equal(getattr(nested, name), getattr(graph, name)), name
    assert Graph.collate([water(), water()]).shifts is None
    with pytest.raises(ValueError, match="empty"):
        Graph.collate([])


def test_moving_touches_floating_fields_only() -> None:
    graph, single = solid(), solid().to("cpu", torch.float32)
    assert single.shifts is not None
    assert {single.positions.dtype, single.cell.dtype, single.shifts.dtype} == {torch.float32}
    assert {single.pairs.dtype, single.atomic_numbers.dtype, single.batch.dtype} == {torch.int64}
    assert single.pbc.dtype == torch.bool
    assert graph.positions.dtype == torch.float64
    assert water().to(dtype=torch.float32).shifts is None


def test_a_graph_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        water().positions = torch.zeros(3, 3)  # type: ignore[misc]
