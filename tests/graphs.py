"""Structures for tests: molecules and a small crystal as `Graph`s."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from egnn_md.graph import Graph
from egnn_md.neighbors import neighbor_list


def make_graph(
    numbers: object, positions: object, cutoff: float, cell: object = None, dtype: torch.dtype = torch.float64
) -> Graph:
    """One structure with all pairs within `cutoff` Å; periodic in three directions if a cell is given."""
    x = np.asarray(positions, float)
    box, pbc = (np.zeros((3, 3)), np.zeros(3, bool)) if cell is None else (np.asarray(cell, float), np.ones(3, bool))
    index, shift = neighbor_list(x, box, pbc, cutoff)
    return Graph(
        positions=torch.tensor(x, dtype=dtype),
        atomic_numbers=torch.tensor(np.asarray(numbers), dtype=torch.int64),
        pairs=torch.tensor(index),
        shifts=None if shift is None else torch.tensor(shift).to(dtype),
        cell=torch.tensor(box, dtype=dtype)[None],
        pbc=torch.tensor(pbc)[None],
        batch=torch.zeros(len(x), dtype=torch.int64),
    )


def with_tensors(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same tuple, list or dataclass of `function` of its tensors; what is none of these stays."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: with_tensors(getattr(value, field.name), function) for field in fields(value)}
        return type(value)(**parts)
    if isinstance(value, (tuple, list)):
        members = [with_tensors(part, function) for part in value]
        return type(value)(*members) if hasattr(value, "_fields") else type(value)(members)
    return value


def molecule(name: str, seed: int = 0, spread: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """(atomic numbers, positions in Å) of a molecule that ase.build knows, displaced at random."""
    import ase.build

    atoms = ase.build.molecule(name)
    return atoms.numbers, atoms.positions + np.random.default_rng(seed).normal(0, spread, atoms.positions.shape)


def crystal() -> tuple[list[int], np.ndarray, np.ndarray]:
    """(atomic numbers, positions, cell in Å): five atoms in a triclinic cell, shorter than a cutoff of 4 Å."""
    cell = np.array([[3.4, 0.0, 0.0], [0.6, 3.7, 0.0], [-0.5, 0.8, 4.3]])
    fractions = [[0.02, 0.05, 0.01], [0.31, 0.11, 0.28], [0.52, 0.55, 0.47], [0.8, 0.6, 0.68], [0.1, 0.62, 0.83]]
    return [6, 1, 8, 1, 7], np.array(fractions) @ cell, cell
