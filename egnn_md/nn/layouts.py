"""How edges are laid out, and what moves between atoms and edges in each layout.

An edge goes from its centre i to its neighbour j; every pair of atoms has two. A layer asks for values of atoms at the
ends of the edges, and for sums of values of edges at the atoms; each is the other's gradient.

- `EdgeList`: edges in any order, (n_edges, ...). A large structure's are cut into blocks whose messages fit a core's
  cache, or the memory.
- `Dense`: all pairs of the atoms of one molecule, (n_atoms, n_atoms, ...), an atom with itself included (its weight has
  to be zero): no gathers, no scatters, a few broadcasts. For a small molecule nearly all pairs are neighbours.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from egnn_md.nn.ops import add_rows, add_rows_, gather

KEPT_EDGES = {"cpu": 16_384}
"""Up to so many edges all messages are kept for the way back, by device: 4 MB a layer in float32 with 64 features."""
BLOCK_EDGES = {"cpu": 4096}
"""Beyond that, edges whose messages are made at once: 1 MB, what a core's cache holds."""
LARGEST_BLOCK = 2**21
"""Both elsewhere: a launch for each operation costs more than memory does."""


class Layout(Protocol):
    """What a layer asks of the edges."""

    def at_centre(self, values: Tensor) -> Tensor:
        """(n_atoms, ...) -> values of i, to be broadcast over the edges."""

    def at_neighbor(self, values: Tensor) -> Tensor:
        """(n_atoms, ...) -> values of j, to be broadcast over the edges."""

    def sum_of_ends(self, source: Tensor, target: Tensor) -> Tensor:
        """Values of i plus other values of j; nobody else's, so that it may be overwritten."""

    def to_ends(self, by_centre: Tensor, by_neighbor: Tensor, onto: Tensor) -> Tensor:
        """`to_centre` of the first and `to_neighbor` of the second."""

    def to_centre(self, values: Tensor, onto: Tensor | None) -> Tensor:
        """onto (n_atoms, ...), None for zero, plus the sum over the edges of each centre."""

    def to_neighbor(self, values: Tensor, onto: Tensor | None) -> Tensor:
        """onto (n_atoms, ...), None for zero, plus the sum over the edges of each neighbour."""


class EdgeList:
    """edge_index (2, n_edges) int64: row 0 the centre, row 1 the neighbour."""

    def __init__(self, edge_index: Tensor, n_atoms: int) -> None:
        self.centre, self.neighbor = edge_index.unbind()
        self.n_atoms = n_atoms

    def at_centre(self, values: Tensor) -> Tensor:
        return gather(values, self.centre)

    def at_neighbor(self, values: Tensor) -> Tensor:
        return gather(values, self.neighbor)

    def sum_of_ends(self, source: Tensor, target: Tensor) -> Tensor:
        return gather(source, self.centre).add_(gather(target, self.neighbor))

    def to_ends(self, by_centre: Tensor, by_neighbor: Tensor, onto: Tensor) -> Tensor:
        return add_rows_(self.to_centre(by_centre, onto), self.neighbor, by_neighbor)

    def to_centre(self, values: Tensor, onto: Tensor | None) -> Tensor:
        return add_rows(onto, self.centre, values, self.n_atoms)

    def to_neighbor(self, values: Tensor, onto: Tensor | None) -> Tensor:
        return add_rows(onto, self.neighbor, values, self.n_atoms)


class Dense:
    """All pairs: row the centre, column the neighbour."""

    def at_centre(self, values: Tensor) -> Tensor:
        return values.unsqueeze(1)

    def at_neighbor(self, values: Tensor) -> Tensor:
        return values.unsqueeze(0)

    def sum_of_ends(self, source: Tensor, target: Tensor) -> Tensor:
        return source.unsqueeze(1) + target.unsqueeze(0)

    def to_ends(self, by_centre: Tensor, by_neighbor: Tensor, onto: Tensor) -> Tensor:
        return onto + by_centre.sum(1) + by_neighbor.sum(0)

    def to_centre(self, values: Tensor, onto: Tensor | None) -> Tensor:
        return values.sum(1) if onto is None else onto + values.sum(1)

    def to_neighbor(self, values: Tensor, onto: Tensor | None) -> Tensor:
        return values.sum(0) if onto is None else onto + values.sum(0)


def block_size(n_edges: int, device_type: str) -> int:
    """Edges of a block on this kind of device ("cpu", "cuda"); `n_edges` where one block holds them all."""
    if n_edges <= KEPT_EDGES.get(device_type, LARGEST_BLOCK):
        return n_edges
    return BLOCK_EDGES.get(device_type, LARGEST_BLOCK)
