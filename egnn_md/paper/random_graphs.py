"""The random graphs of EGNN's autoencoder (arXiv 2102.09844, section 5.2): generators, file, reader.

Community Small: two communities of 6-10 nodes, edges inside with probability 0.7 and between them 0.01; connected
components without an edge between them get one. Erdős-Rényi: 7-16 nodes, edges with probability 0.25.

Sides are kept apart: a graph that is isomorphic to one of an earlier side (train, valid, test) is drawn again, up to
`MAX_DRAWS` times. Small graphs are few, so that those of later sides are rarer ones than the law alone would give.

The file: npz with `family` and, for each of the sides train, valid and test, `{side}_n_nodes` and `{side}_n_edges`
(S,), `{side}_edges` (E, 2), nodes i < j of the edges of all graphs one after another, and `{side}_repeats`, the number
of graphs isomorphic to one of an earlier side.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from egnn_md.data.reading import DataError, read_npz
from egnn_md.storage import write_npz

Family = Literal["community", "erdos-renyi"]
SIDES: Final = ("train", "valid", "test")
COMMUNITY_SIZES: Final = (6, 10)
INTRA_PROBABILITY: Final = 0.7
INTER_PROBABILITY: Final = 0.01
ERDOS_RENYI_SIZES: Final = (7, 16)
ERDOS_RENYI_PROBABILITY: Final = 0.25
MAX_DRAWS: Final = 200
MAX_NODES: Final = 1000
"""Of a graph in a file: the autoencoder looks at all pairs."""


@dataclass(frozen=True)
class RandomGraphs:
    """Undirected graphs without loops, one after another."""

    family: str
    n_nodes: NDArray[np.int64]
    """(n_graphs,)."""
    n_edges: NDArray[np.int64]
    """(n_graphs,)."""
    edges: NDArray[np.int64]
    """(Σ n_edges, 2): nodes i < j, numbered from 0 in each graph."""
    repeats: int
    """How many graphs are isomorphic to one of an earlier side."""
    sources: tuple[str, ...] = field(default=())
    """"name sha256" of the file."""

    def __len__(self) -> int:
        return len(self.n_nodes)

    def adjacency(self) -> Iterator[NDArray[np.float32]]:
        """The matrix (n, n) of each graph, 0 and 1."""
        ends = np.cumsum(self.n_edges)
        for n, first, last in zip(self.n_nodes, ends - self.n_edges, ends, strict=True):
            i, j = self.edges[first:last].T
            matrix = np.zeros((n, n), np.float32)
            matrix[i, j] = matrix[j, i] = 1.0
            yield matrix

    def select(self, n_graphs: int) -> RandomGraphs:
        """The first so many."""
        n_edges = self.n_edges[:n_graphs]
        edges = self.edges[: n_edges.sum()]
        return RandomGraphs(self.family, self.n_nodes[:n_graphs], n_edges, edges, self.repeats, self.sources)


def generate(
    family: Family,
    counts: Mapping[str, int],
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, RandomGraphs]:
    """Graphs of each side in `counts`, in the order given; the same for the same arguments. Raises DataError."""
    if family not in get_args(Family):
        raise DataError(f"the family is one of {', '.join(get_args(Family))}, not {family!r}")
    known = _Classes()
    sides, done, total = {}, 0, sum(counts.values())
    for k, (side, count) in enumerate(counts.items()):
        rng = np.random.default_rng([seed, k])
        graphs, repeats = [], 0
        for number in range(count):
            for _ in range(MAX_DRAWS):
                graph = _draw(family, number, rng)
                repeated = graph in known
                if not repeated:
                    break
            graphs.append(graph)
            repeats += repeated
            progress(done := done + 1, total)
        for graph in graphs:  # a side may repeat itself, as random graphs do
            known.add(graph)
        sides[side] = _collect(family, graphs, repeats)
    return sides


def _draw(family: Family, number: int, rng: np.random.Generator) -> Any:
    import networkx as nx

    if family == "erdos-renyi":  # as many of each size
        smallest, largest = ERDOS_RENYI_SIZES
        size = smallest + number % (largest - smallest + 1)
        return nx.gnp_random_graph(size, ERDOS_RENYI_PROBABILITY, seed=rng)
    sizes = rng.integers(COMMUNITY_SIZES[0], COMMUNITY_SIZES[1] + 1, 2)
    graph = nx.disjoint_union_all([nx.gnp_random_graph(int(n), INTRA_PROBABILITY, seed=rng) for n in sizes])
    parts = [sorted(part) for part in nx.connected_components(graph)]
    for k, one in enumerate(parts):
        for other in parts[k + 1 :]:
            between = np.argwhere(rng.random((len(one), len(other))) < INTER_PROBABILITY)
            graph.add_edges_from([(one[i], other[j]) for i, j in between] or [(one[0], other[0])])
    return graph


class _Classes:
    """Isomorphism classes seen so far, looked up by an invariant first: closed walks of each node, by length."""

    def __init__(self) -> None:
        self._classes: defaultdict[bytes, list[Any]] = defaultdict(list)

    def __contains__(self, graph: Any) -> bool:
        import networkx as nx

        return any(nx.is_isomorphic(graph, other) for other in self._classes.get(self._key(graph), ()))

    def add(self, graph: Any) -> None:
        if graph not in self:
            self._classes[self._key(graph)].append(graph)

    @staticmethod
    def _key(graph: Any) -> bytes:
        i, j = _edges(graph).T
        a = np.zeros((len(graph), len(graph)))  # exact: a graph of 20 nodes has fewer than 2^53 such walks
        a[i, j] = a[j, i] = 1.0
        square = a @ a
        cube, fourth = square @ a, square @ square
        closed = [square.diagonal(), cube.diagonal(), fourth.diagonal(), (fourth * a).sum(1), (fourth * square).sum(1)]
        walks = np.stack(closed)
        return walks[:, np.lexsort(walks)].tobytes()


def _edges(graph: Any) -> NDArray[np.int64]:
    return np.sort(np.array(graph.edges, np.int64).reshape(-1, 2), axis=1)


def _collect(family: str, graphs: list[Any], repeats: int) -> RandomGraphs:
    parts = [_edges(graph) for graph in graphs]
    return RandomGraphs(
        family,
        np.array([len(graph) for graph in graphs], np.int64),
        np.array([len(part) for part in parts], np.int64),
        np.concatenate([*parts, np.empty((0, 2), np.int64)]),
        repeats,
    )


def write(path: Path, sides: Mapping[str, RandomGraphs]) -> None:
    """Write a file as described above, whole or not at all."""
    arrays: dict[str, Any] = {}
    for side, graphs in sides.items():
        arrays["family"] = graphs.family
        for name in ("n_nodes", "n_edges", "edges", "repeats"):
            arrays[f"{side}_{name}"] = np.asarray(getattr(graphs, name), np.int32)
    write_npz(path, arrays)


def read(path: Path, side: str) -> RandomGraphs:
    """One side of a file. Raises DataError if the file or the side is not there or makes no sense."""
    if not path.is_file():
        raise DataError(f"no such file: {path}")
    names = ("family", *(f"{side}_{name}" for name in ("n_nodes", "n_edges", "edges", "repeats")))
    found = read_npz(path, (), names)
    if missing := [name for name in names if name not in found]:
        raise DataError(f"{path} has no {side} graphs (no {missing[0]}); `egnn-md data community` makes some")
    arrays = [found[name] for name in names]
    if not all(np.issubdtype(array.dtype, np.integer) for array in arrays[1:]):
        raise DataError(f"{path}: {side} has values that are not whole numbers")
    n_nodes, n_edges, edges, repeats = (array.astype(np.int64) for array in arrays[1:])
    _check(path, side, n_nodes, n_edges, edges)
    with path.open("rb") as file:
        source = f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}"
    return RandomGraphs(str(arrays[0]), n_nodes, n_edges, edges, int(repeats), (source,))


def _check(path: Path, side: str, n_nodes: Any, n_edges: Any, edges: Any) -> None:
    if n_nodes.ndim != 1 or len(n_nodes) == 0 or n_nodes.min() < 2 or n_nodes.max() > MAX_NODES:
        raise DataError(f"{path}: {side}_n_nodes must be (graphs,), from 2 to {MAX_NODES} nodes each")
    if n_edges.shape != n_nodes.shape or n_edges.min() < 0 or edges.shape != (n_edges.sum(), 2):
        raise DataError(f"{path}: {side}_edges must be (edges, 2) for the edges that {side}_n_edges counts")
    i, j = edges.T
    if not ((i >= 0) & (i < j) & (j < np.repeat(n_nodes, n_edges))).all():
        raise DataError(f"{path}: {side}_edges must be nodes 0 <= i < j of their graph")
