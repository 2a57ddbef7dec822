"""Batches of starts and of the states later, for the training of flow maps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from egnn_md.chemistry.units import FS_PER_TIME_UNIT
from egnn_md.data.flow import Segments
from egnn_md.data.frames import DataError, ragged_rows
from egnn_md.models.flow import FlowMap, pairs_of

MOST_VALIDATION_SAMPLES = 2048
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, eq=False)
class FlowBatch:
    """Starts, and the states `substep` later. Momenta in amu Å / FS_PER_TIME_UNIT fs."""

    species: Tensor
    """(n_atoms,)."""
    masses: Tensor
    """(n_atoms, 1) amu."""
    pairs: Tensor
    """(2, n_pairs)."""
    substep: Tensor
    """(n_atoms, 1) fs, the same for all atoms of a molecule."""
    molecule: Tensor
    """(n_atoms,)."""
    energy: Tensor
    """(n_molecules,) eV at the start, without reference energies."""
    start: tuple[Tensor, Tensor, Tensor]
    """Positions, momenta and forces, (n_atoms, 3) each."""
    end: tuple[Tensor, Tensor, Tensor]
    share: Tensor
    """(2,): 1/atoms and 1/molecules of the whole step, times the number of processes."""

    def to(self, device: torch.device | str) -> FlowBatch:
        """The same batch on another device."""
        single = ("species", "masses", "pairs", "substep", "molecule", "energy", "share")
        start, end = (tuple(value.to(device) for value in state) for state in (self.start, self.end))
        moved: Any = {name: getattr(self, name).to(device) for name in single}
        return replace(self, start=cast(Any, start), end=cast(Any, end), **moved)


class FlowBatches(Dataset[FlowBatch]):
    """`Batches` whose samples are all (segment, earlier snapshot, later snapshot) within the longest sub-step.

    `between`: sub-steps end between snapshots too (method "forces", which has no use for the end).
    """

    def __init__(self, segments: Segments, model: FlowMap, between: bool = False) -> None:
        self.segments, self.model, self.between = segments, model, between
        first, last = np.triu_indices(segments.n_snapshots, 1)
        near = (last - first) * segments.spacing <= model.config.longest_substep + 1e-9
        if not near.any():
            raise DataError("snapshots are further apart than longest_substep")
        self.first, self.last = first[near], last[near]
        self.starts = np.cumsum(segments.n_atoms) - segments.n_atoms
        references = segments.composition(model.config.elements) @ np.array(model.config.reference_energies)
        self.energy = segments.energy - references[:, None]

    def __len__(self) -> int:
        return len(self.segments) * len(self.first)

    def __getitem__(self, indices: list[int]) -> FlowBatch:
        chosen, segments = np.asarray(indices, np.int64), self.segments
        segment, snapshots = np.divmod(chosen, len(self.first))
        n_atoms = segments.n_atoms[segment]
        rows = ragged_rows(self.starts[segment], n_atoms)
        first, last = (np.repeat(side[snapshots], n_atoms) for side in (self.first, self.last))
        length = self.last[snapshots] - self.first[snapshots] - ((chosen * _GOLDEN) % 1.0 if self.between else 0.0)
        dtype, masses = self.model.dtype, torch.from_numpy(segments.masses[rows])[:, None]

        def state(at: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
            arrays = (segments.positions, segments.velocities, segments.forces)
            x, v, f = (torch.from_numpy(array[rows, at]).to(dtype) for array in arrays)
            return x, v * (masses * FS_PER_TIME_UNIT).to(dtype), f

        return FlowBatch(
            species=self.model.species(torch.from_numpy(segments.atomic_numbers[rows])),
            masses=masses.to(dtype),
            pairs=pairs_of(n_atoms),
            substep=torch.from_numpy(np.repeat(length * segments.spacing, n_atoms)).to(dtype)[:, None],
            molecule=torch.from_numpy(np.repeat(np.arange(len(chosen)), n_atoms)),
            energy=torch.from_numpy(self.energy[segment, self.first[snapshots]]).to(dtype),
            start=state(first),
            end=state(last),
            share=self.shares(indices),
        )

    def shares(self, indices: list[int]) -> Tensor:
        """(2,): 1/atoms, 1/molecules."""
        n_atoms = int(self.segments.n_atoms[np.asarray(indices) // len(self.first)].sum())
        return torch.tensor([1.0 / n_atoms, 1.0 / len(indices)], dtype=torch.float64)


class SampleOf(Dataset[FlowBatch]):
    """As many samples as a validation can afford, spread evenly over all."""

    def __init__(self, batches: FlowBatches) -> None:
        self.batches = batches
        self.chosen = np.linspace(0, len(batches) - 1, min(len(batches), MOST_VALIDATION_SAMPLES)).astype(np.int64)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, indices: list[int]) -> FlowBatch:
        return self.batches[self.chosen[np.asarray(indices)].tolist()]

    def shares(self, indices: list[int]) -> Tensor:
        return self.batches.shares(self.chosen[np.asarray(indices)].tolist())
