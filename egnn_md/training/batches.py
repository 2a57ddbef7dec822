"""Batches of labelled samples, in an order that depends on the seed and the step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from egnn_md.data.structures import EdgeTable, Frames, ragged_rows
from egnn_md.graph import Graph


class Batches(Protocol):
    """Samples of any task, indexed by a list of numbers instead of one: a batch is a few array operations.

    A batch is a frozen dataclass with a method `to(device)` and a field `share`, (k,) float64: what the sums of its
    loss are multiplied by, `shares(indices)` unless several processes work on one step.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, indices: list[int], /) -> Any: ...

    def shares(self, indices: list[int]) -> Tensor:
        """One over what the loss of these samples is a mean of."""
        ...


@dataclass(frozen=True, eq=False)
class Batch:
    """Structures with their labels; NaN where a label is missing."""

    graph: Graph
    energy: Tensor
    """(n_graphs,) eV, float64."""
    forces: Tensor
    """(n_atoms, 3) eV/Å."""
    stress: Tensor | None
    """(n_graphs, 3, 3) eV/Å³."""
    share: Tensor
    """(2,): 1/structures and 1/atoms of the whole step, over all processes, times the number of processes."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            graph=self.graph.to(device),
            energy=self.energy.to(device),
            forces=self.forces.to(device),
            stress=None if self.stress is None else self.stress.to(device),
            share=self.share.to(device),
        )


class FrameBatches(Dataset[Batch]):
    """The structures of `frames` as `Batches`."""

    def __init__(self, frames: Frames, edges: EdgeTable, dtype: torch.dtype) -> None:
        self.frames, self.edges, self.dtype = frames, edges, dtype

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, indices: list[int]) -> Batch:
        chosen = np.asarray(indices, np.int64)
        frames, edges = self.frames, self.edges
        rows = frames.atoms_of(chosen)
        edge_rows = ragged_rows(edges.starts[chosen], edges.n_edges[chosen])
        n_atoms = frames.n_atoms[chosen]
        offsets = np.repeat(np.cumsum(n_atoms) - n_atoms, edges.n_edges[chosen])
        forces = np.full((len(rows), 3), np.nan) if frames.forces is None else frames.forces[rows]
        graph = Graph(
            positions=torch.from_numpy(frames.positions[rows]).to(self.dtype),
            atomic_numbers=torch.from_numpy(frames.atomic_numbers[rows]),
            edge_index=torch.from_numpy(edges.index[:, edge_rows] + offsets),
            edge_shift=None if edges.shift is None else torch.from_numpy(edges.shift[edge_rows]).to(self.dtype),
            cell=torch.from_numpy(frames.cell[chosen]).to(self.dtype),
            pbc=torch.from_numpy(frames.pbc[chosen].copy()),
            batch=torch.from_numpy(np.repeat(np.arange(len(chosen)), n_atoms)),
        )
        return Batch(
            graph=graph,
            energy=torch.from_numpy(frames.energy[chosen]),
            forces=torch.from_numpy(forces).to(self.dtype),
            stress=None if frames.stress is None else torch.from_numpy(frames.stress[chosen]).to(self.dtype),
            share=self.shares(indices),
        )

    def shares(self, indices: list[int]) -> Tensor:
        """(2,): 1/structures, 1/atoms."""
        n_atoms = int(self.frames.n_atoms[np.asarray(indices)].sum())
        return torch.tensor([1.0 / len(indices), 1.0 / n_atoms], dtype=torch.float64)


class StepBatch(Dataset[Any]):
    """The part of a step's batch that one of several processes works on."""

    def __init__(self, batches: Batches, rank: int, world_size: int) -> None:
        self.batches, self.rank, self.world_size = batches, rank, world_size

    def __getitem__(self, indices: list[int]) -> Any:
        mine = self.batches[indices[self.rank :: self.world_size]]
        return replace(mine, share=self.batches.shares(indices) * self.world_size)


class StepSampler(Sampler[list[int]]):
    """The samples of each step up to `max_steps`: one permutation after another, of `seed` and the pass alone.

    `first_step` is asked when iteration begins, so that a resumed run goes on where its checkpoint stood.
    """

    def __init__(
        self, n_samples: int, batch_size: int, max_steps: int, seed: int, first_step: Callable[[], int]
    ) -> None:
        self.n_samples, self.max_steps, self.seed, self.first_step = n_samples, max_steps, seed, first_step
        self.batch_size = min(batch_size, n_samples)

    def __len__(self) -> int:
        return self.max_steps

    def __iter__(self) -> Iterator[list[int]]:
        per_pass = self.n_samples // self.batch_size
        order_pass = -1
        order: NDArray[np.int64] = np.empty(0, np.int64)
        for step in range(self.first_step(), self.max_steps):
            this_pass, place = divmod(step, per_pass)
            if this_pass != order_pass:
                order, order_pass = np.random.default_rng([self.seed, this_pass]).permutation(self.n_samples), this_pass
            yield order[place * self.batch_size : (place + 1) * self.batch_size].tolist()
