"""Batches for flow maps from single labelled frames: momenta, masses and sub-steps are drawn.

Forces depend on neither momenta nor masses, so one frame teaches as many starts as are drawn from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from egnn_md.chemistry.units import BOLTZMANN, FS_PER_TIME_UNIT
from egnn_md.data.flow import DEUTERIUM, standard_masses
from egnn_md.data.frames import Frames
from egnn_md.models.flow import FlowMap, pairs_of
from egnn_md.training.flow_segments import FlowBatch

DRAWS: Final = 64
"""Starts drawn from one frame, before the first comes again."""
REACH: Final = 1.0
"""Å beyond the cutoff at the start, from which two atoms do not come within it during a sub-step."""
SHORTEST: Final = 0.2
"""fs."""


@dataclass(frozen=True)
class Drawn:
    """Of which distributions starts are drawn."""

    coldest: float
    hottest: float
    """K; each start has Maxwell's momenta at a temperature of its own, drawn evenly between the two."""
    deuterium: float
    """Fraction of the hydrogens that are deuterium in every second start."""


class DrawnBatches(Dataset[FlowBatch]):
    """`Batches` of starts of labelled frames; a sample is a frame and the number of a draw, and depends on these two
    and `seed` alone. `end` is the start: nothing is known of it.
    """

    def __init__(self, frames: Frames, model: FlowMap, drawn: Drawn, draws: int = DRAWS, seed: int = 0) -> None:
        assert frames.forces is not None
        self.frames, self.model, self.drawn, self.draws, self.seed = frames, model, drawn, draws, seed
        self.masses = standard_masses(frames.atomic_numbers)
        self.forces = frames.forces

    def __len__(self) -> int:
        return len(self.frames) * self.draws

    def __getitem__(self, indices: list[int]) -> FlowBatch:
        frames, dtype, longest = self.frames, self.model.dtype, self.model.config.longest_substep
        chosen = np.asarray(indices, np.int64) // self.draws
        n_atoms, rows = frames.n_atoms[chosen], frames.atoms_of(chosen)
        numbers, masses = frames.atomic_numbers[rows], self.masses[rows]
        momenta, lengths, starts = np.empty((len(rows), 3)), np.empty(len(rows)), np.cumsum(n_atoms) - n_atoms
        positions = frames.positions[rows].astype(np.float64)
        for k, index in enumerate(indices):
            part, rng = slice(starts[k], starts[k] + n_atoms[k]), np.random.default_rng([self.seed, index])
            kT = BOLTZMANN * rng.uniform(self.drawn.coldest, self.drawn.hottest)
            if index % 2:
                masses[part][(numbers[part] == 1) & (rng.random(n_atoms[k]) < self.drawn.deuterium)] = DEUTERIUM
            momenta[part] = np.sqrt(kT * masses[part])[:, None] * rng.standard_normal((n_atoms[k], 3))
            lengths[part] = rng.uniform(min(SHORTEST, 0.5 * longest), longest)
            positions[part] -= positions[part].mean(0)
        pairs = pairs_of(n_atoms)
        x, forces = torch.from_numpy(positions), torch.from_numpy(self.forces[rows])
        near = (x[pairs[0]] - x[pairs[1]]).square().sum(1).sqrt() < self.model.config.cutoff + REACH
        start = x.to(dtype), torch.from_numpy(momenta).to(dtype), forces.to(dtype)
        return FlowBatch(
            species=self.model.species(torch.from_numpy(numbers)),
            masses=torch.from_numpy(masses).to(dtype)[:, None],
            pairs=pairs[:, near],
            substep=torch.from_numpy(lengths).to(dtype)[:, None],
            molecule=torch.from_numpy(np.repeat(np.arange(len(chosen)), n_atoms)),
            energy=torch.from_numpy(frames.energy[chosen]).to(dtype),
            start=start,
            end=start,
            share=self.shares(indices),
        )

    def shares(self, indices: list[int]) -> Tensor:
        """(2,): 1/atoms, 1/molecules."""
        n_atoms = int(self.frames.n_atoms[np.asarray(indices) // self.draws].sum())
        return torch.tensor([1.0 / n_atoms, 1.0 / len(indices)], dtype=torch.float64)


def both_sides(batch: FlowBatch, time: float) -> tuple[Tensor, ...]:
    """Arguments of `FlowMap.forward` for the starts moved `time` fs along the true flow with sub-steps as much shorter,
    and after them the starts moved back with longer ones.
    """
    positions, momenta, forces = batch.start
    t, n = time / FS_PER_TIME_UNIT, len(positions)
    shift, push = t * momenta / batch.masses, t * forces
    return (
        torch.cat([positions + shift, positions - shift]),
        torch.cat([momenta + push, momenta - push]),
        batch.species.repeat(2),
        batch.masses.repeat(2, 1),
        torch.cat([batch.pairs, batch.pairs + n], 1),
        torch.cat([batch.substep - time, batch.substep + time]),
    )
