"""Labelled structures in batches: what a potential is trained and measured on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from egnn_md.data.frames import Frames, ragged_rows
from egnn_md.graph import Graph
from egnn_md.neighbors import neighbor_list


@dataclass(frozen=True)
class PairTable:
    """The neighbour lists of all frames of a `Frames`, made once before training."""

    n_pairs: NDArray[np.int64]
    """(n_frames,)."""
    index: NDArray[np.int32]
    """(2, total), counted within each frame."""
    shift: NDArray[np.int32] | None
    """(total, 3) cell vectors, None if no frame is periodic."""

    @staticmethod
    def build(frames: Frames, cutoff: float) -> PairTable:
        """Neighbour lists of every frame; pairs within `cutoff` Å."""
        index, shifts, starts = [], [], frames.starts
        for k in range(len(frames)):
            positions = frames.positions[starts[k] : starts[k + 1]].astype(np.float64)
            pairs, shift = neighbor_list(positions, frames.cell[k], frames.pbc[k], cutoff)
            index.append(pairs.astype(np.int32))
            shifts.append(np.zeros((pairs.shape[1], 3), np.int32) if shift is None else shift.astype(np.int32))
        n_pairs = np.array([pairs.shape[1] for pairs in index], np.int64)
        periodic = bool(frames.pbc.any())
        return PairTable(n_pairs, np.concatenate(index, axis=1), np.concatenate(shifts) if periodic else None)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.n_pairs)]).astype(np.int64)


class Charges(NamedTuple):
    """Labels in float64; NaN where one is missing."""

    total: Tensor
    """(n_graphs,) e."""
    of_atoms: Tensor
    """(n_atoms,) e."""
    dipole: Tensor
    """(n_graphs, 3) e·Å about the origin."""


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
    charges: Charges | None = None
    """What potentials with charges learn from."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return replace(
            self,
            graph=self.graph.to(device),
            energy=self.energy.to(device),
            forces=self.forces.to(device),
            stress=None if self.stress is None else self.stress.to(device),
            share=self.share.to(device),
            charges=None if self.charges is None else Charges(*(label.to(device) for label in self.charges)),
        )


class FrameBatches(Dataset[Batch]):
    """The structures of `frames`, indexed by a list of numbers instead of one (`Batches` of `training/sampling.py`)."""

    def __init__(self, frames: Frames, pairs: PairTable, dtype: torch.dtype) -> None:
        self.frames, self.pairs, self.dtype = frames, pairs, dtype

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, indices: list[int]) -> Batch:
        chosen = np.asarray(indices, np.int64)
        frames, pairs = self.frames, self.pairs
        rows = frames.atoms_of(chosen)
        pair_rows = ragged_rows(pairs.starts[chosen], pairs.n_pairs[chosen])
        n_atoms = frames.n_atoms[chosen]
        offsets = np.repeat(np.cumsum(n_atoms) - n_atoms, pairs.n_pairs[chosen])
        total = _double(frames.charge, chosen, 0.0)
        forces = np.full((len(rows), 3), np.nan) if frames.forces is None else frames.forces[rows]
        graph = Graph(
            positions=torch.from_numpy(frames.positions[rows]).double(),
            atomic_numbers=torch.from_numpy(frames.atomic_numbers[rows]),
            pairs=torch.from_numpy(pairs.index[:, pair_rows] + offsets),
            shifts=None if pairs.shift is None else torch.from_numpy(pairs.shift[pair_rows]).double(),
            cell=torch.from_numpy(frames.cell[chosen]),
            pbc=torch.from_numpy(frames.pbc[chosen].copy()),
            batch=torch.from_numpy(np.repeat(np.arange(len(chosen)), n_atoms)),
            charge=total,
        )
        return Batch(
            graph=graph,
            energy=torch.from_numpy(frames.energy[chosen]),
            forces=torch.from_numpy(forces).to(self.dtype),
            stress=None if frames.stress is None else torch.from_numpy(frames.stress[chosen]).to(self.dtype),
            share=self.shares(indices),
            charges=Charges(
                total,
                _double(frames.charges, rows, np.nan),
                _double(frames.dipole, chosen, np.nan, 3),
            ),
        )

    def shares(self, indices: list[int]) -> Tensor:
        """(2,): 1/structures, 1/atoms."""
        n_atoms = int(self.frames.n_atoms[np.asarray(indices)].sum())
        return torch.tensor([1.0 / len(indices), 1.0 / n_atoms], dtype=torch.float64)


def _double(values: NDArray[np.floating[Any]] | None, rows: NDArray[np.int64], missing: float, *width: int) -> Tensor:
    """These rows in float64, (n_rows, *width); `missing` where the source has none."""
    chosen = np.full((len(rows), *width), missing) if values is None else values[rows]
    return torch.from_numpy(np.asarray(chosen, np.float64))
