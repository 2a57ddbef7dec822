"""The random graphs: their laws, sides that share no graph, the file and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from egnn_md.data.frames import DataError
from egnn_md.paper import random_graphs
from egnn_md.paper.random_graphs import RandomGraphs, generate, read, write

COUNTS = {"train": 60, "valid": 20, "test": 20}


def graphs_of(side: RandomGraphs) -> list[nx.Graph]:
    return [nx.from_numpy_array(matrix) for matrix in side.adjacency()]


def test_community_small_is_two_dense_halves() -> None:
    side = generate("community", {"train": 200}, 0)["train"]
    assert set(side.n_nodes) <= set(range(12, 21))
    inside, possible = 0, 0
    for graph in graphs_of(side):
        assert nx.is_connected(graph)
        one, other = nx.community.kernighan_lin_bisection(graph, seed=0)
        if not {len(one), len(other)} <= set(range(6, 11)):
            continue  # bisection halves; the communities may be of unlike size
        for half in (one, other):
            inside += graph.subgraph(half).number_of_edges()
            possible += len(half) * (len(half) - 1) // 2
    assert inside / possible == pytest.approx(0.7, abs=0.08)
    assert side.n_edges.sum() / (side.n_nodes * (side.n_nodes - 1) / 2).sum() == pytest.approx(0.34, abs=0.03)


def test_erdos_renyi_has_all_sizes_and_a_quarter_of_the_edges() -> None:
    side = generate("erdos-renyi", {"train": 300}, 0)["train"]
    assert np.bincount(side.n_nodes).tolist() == [0] * 7 + [30] * 10
    large = side.n_nodes > 12
    pairs = (side.n_nodes * (side.n_nodes - 1) / 2)[large].sum()
    assert side.n_edges[large].sum() / pairs == pytest.approx(0.25, abs=0.015)


@pytest.mark.parametrize("family", ["community", "erdos-renyi"])
def test_no_side_has_a_graph_of_another(family: Any) -> None:
    sides = generate(family, COUNTS, 3)
    train, valid, test = (graphs_of(sides[side]) for side in COUNTS)
    for later, earlier in ((valid, train), (test, train + valid)):
        assert not any(nx.faster_could_be_isomorphic(a, b) and nx.is_isomorphic(a, b) for a in later for b in earlier)
    assert [sides[side].repeats for side in COUNTS] == [0, 0, 0]


def test_what_cannot_be_avoided_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of three nodes come in four classes: all are taken by training, so that every test graph repeats one."""
    monkeypatch.setattr(random_graphs, "ERDOS_RENYI_SIZES", (3, 3))
    sides = generate("erdos-renyi", {"train": 400, "test": 7}, 0)
    assert (sides["train"].repeats, sides["test"].repeats) == (0, 7)


def test_classes_are_isomorphism_classes() -> None:
    """The same graph with its nodes in another order is known; one with the same degrees is not."""
    seen = random_graphs._Classes()
    seen.add(nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(5)))
    again = nx.relabel_nodes(
        nx.disjoint_union(nx.cycle_graph(5), nx.cycle_graph(3)), {k: (3 * k) % 8 for k in range(8)}
    )
    renamed = nx.Graph()
    renamed.add_nodes_from(range(8))
    renamed.add_edges_from(again.edges)
    assert renamed in seen
    assert nx.cycle_graph(8) not in seen


def test_files_give_back_what_went_in(tmp_path: Path) -> None:
    sides, again = generate("erdos-renyi", COUNTS, 1), generate("erdos-renyi", COUNTS, 1)
    write(tmp_path / "g.npz", sides)
    for name, side in sides.items():
        found = read(tmp_path / "g.npz", name)
        assert found.family == "erdos-renyi"
        for array in ("n_nodes", "n_edges", "edges"):
            assert np.array_equal(getattr(found, array), getattr(side, array))
            assert np.array_equal(getattr(again[name], array), getattr(side, array))
    assert not np.array_equal(generate("erdos-renyi", COUNTS, 2)["train"].edges, sides["train"].edges)
    assert len(sides["train"].select(7)) == len(list(sides["train"].select(7).adjacency())) == 7


BROKEN = {
    "no graphs": ({"test_n_nodes": np.array([], int), "test_n_edges": np.array([], int)}, "n_nodes must be"),
    "an edge to nowhere": ({"test_edges": np.array([[0, 9]])}, "0 <= i < j"),
    "a loop": ({"test_edges": np.array([[1, 1]])}, "0 <= i < j"),
    "edges missing": ({"test_n_edges": np.array([2])}, "n_edges counts"),
    "no whole numbers": ({"test_n_nodes": np.array([3.5])}, "whole numbers"),
    "no edges": ({"test_edges": None}, "no test_edges"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused(case: str, tmp_path: Path) -> None:
    good = {"test_n_nodes": np.array([3]), "test_n_edges": np.array([1]), "test_edges": np.array([[0, 2]])}
    good |= {"family": np.array("x"), "test_repeats": np.array(0)}
    np.savez(tmp_path / "good.npz", **good)
    assert len(read(tmp_path / "good.npz", "test")) == 1
    change, message = BROKEN[case]
    arrays = {name: value for name, value in (good | change).items() if value is not None}
    np.savez(tmp_path / "g.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "g.npz", "test")


def test_other_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="community, erdos-renyi"):
        generate("tree", COUNTS, 0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "nowhere.npz", "test")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match="not a readable npz"):
        read(tmp_path / "cut.npz", "test")
