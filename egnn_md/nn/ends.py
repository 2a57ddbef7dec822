"""Pairs of atoms and their two ends, and what moves between atoms and ends.

Every pair of atoms within reach stands once, and sends two messages: one to each of its ends. What both have in common,
all that depends on the distance, is made once; of what is another at each end there are two arrays (n_pairs, ...).
"""

from __future__ import annotations

from torch import Tensor

from egnn_md.nn.ops import add_rows, add_rows_, gather

AtEnds = tuple[Tensor, Tensor]
"""Values at end 0 and at end 1 of each pair, (n_pairs, ...) each."""
KEPT_PAIRS = {"cpu": 8192}
"""Up to so many pairs all messages are kept for the way back, by device: 4 MB a layer in float32 with 64 features."""
BLOCK_PAIRS = {"cpu": 2048}
"""Beyond that, pairs whose messages are made at once: 1 MB, what a core's cache holds."""
LARGEST_BLOCK = 2**20
"""Both elsewhere: a launch for each operation costs more than memory does."""


class Ends:
    """pairs (2, n_pairs) int64: row 0 the atom at end 0, row 1 the atom at end 1."""

    def __init__(self, pairs: Tensor, n_atoms: int) -> None:
        self.first, self.second = pairs.unbind()
        self.n_atoms = n_atoms

    def of(self, values: Tensor) -> AtEnds:
        """(n_atoms, ...) -> values of the atoms at either end."""
        return gather(values, self.first), gather(values, self.second)

    def sum(self, values: AtEnds, onto: Tensor | None = None) -> Tensor:
        """onto (n_atoms, ...), None for zero, plus the sum over each atom's ends."""
        first = add_rows(onto, self.first, values[0], self.n_atoms)
        return add_rows_(first, self.second, values[1])


def block_size(n_pairs: int, device_type: str) -> int:
    """Pairs of a block on this kind of device ("cpu", "cuda"); `n_pairs` where one block holds them all."""
    if n_pairs <= KEPT_PAIRS.get(device_type, LARGEST_BLOCK):
        return n_pairs
    return BLOCK_PAIRS.get(device_type, LARGEST_BLOCK)
