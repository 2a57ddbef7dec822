"""The elements that a model knows: what is looked up of them, and the refusal of all others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from egnn_md.chemistry.elements import MAX_ATOMIC_NUMBER, UnsupportedElement, symbols

UNKNOWN = -1


def check_elements(elements: Sequence[int]) -> None:
    """Raise ValueError unless `elements` are distinct, ascending atomic numbers."""
    if list(elements) != sorted(set(elements)) or not all(type(z) is int for z in elements):
        raise ValueError(f"elements must be distinct, ascending atomic numbers, not {elements}")
    if not elements or not 1 <= elements[0] <= elements[-1] <= MAX_ATOMIC_NUMBER:
        raise ValueError(f"elements must lie between 1 and {MAX_ATOMIC_NUMBER}, not {elements}")


class Species(nn.Module):
    """Atomic numbers -> positions in `elements`, (n_atoms,) int64 each.

    The last tensor is remembered, so that step after step of the same atoms costs nothing and no device is waited for.
    """

    def __init__(self, elements: Sequence[int], whose: str = "this model") -> None:
        super().__init__()
        check_elements(elements)
        self.elements, self.whose = tuple(elements), whose
        table = torch.full((256,), UNKNOWN, dtype=torch.int64)
        table[list(elements)] = torch.arange(len(elements))
        self.register_buffer("table", table, persistent=False)
        self.table: Tensor
        self._last: tuple[Tensor, int, Tensor] | None = None

    def forward(self, atomic_numbers: Tensor) -> Tensor:
        """Raises UnsupportedElement, naming the elements that are not known."""
        last = self._last
        if last is not None and last[0] is atomic_numbers and last[1] == version_of(atomic_numbers):
            return last[2]
        self.check(atomic_numbers)
        species = self.table.index_select(0, atomic_numbers)
        self._last = (atomic_numbers, version_of(atomic_numbers), species)
        return species

    def check(self, atomic_numbers: Tensor) -> None:
        """Raise UnsupportedElement, naming the elements, if one of `atomic_numbers` (any shape) is not known."""
        unknown = sorted(set(torch.unique(atomic_numbers).tolist()) - set(self.elements))
        if unknown:
            raise UnsupportedElement(
                f"{self.whose} knows {symbols(self.elements)}; the structure has {symbols(unknown)}. "
                "Use a model trained with these elements, or train one: egnn-md train"
            )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_last": None}


def version_of(tensor: Tensor) -> int:
    """Another number after each change in place."""
    return 0 if tensor.is_inference() else tensor._version
