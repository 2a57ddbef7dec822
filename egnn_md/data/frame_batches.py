"""Labelled structures in batches: what a potential is trained and measured on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from egnn_md.data.frames import EdgeTable, Frames, ragged_rows
from egnn_md.graph import Graph


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
    """The structures of `frames`, indexed by a list of numbers instead of one (`Batches` of `training/sampling.py`)."""

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
