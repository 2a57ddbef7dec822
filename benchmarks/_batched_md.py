"""Molecular dynamics of many isolated molecules as one batch: a force call on one molecule is mostly overhead.

Every pair of atoms of a molecule is an edge, so there is no neighbour list to keep up. Velocity Verlet for NVE and
BAOAB (Leimkuhler, Matthews 2013) for Langevin dynamics. Lengths in Å, energies in eV, masses in amu; the time step is
given in fs, velocities are in Å per `FS_PER_TIME_UNIT` fs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from _common import Molecule
from torch import Tensor

from egnn_md.chemistry.units import BOLTZMANN, FS_PER_TIME_UNIT
from egnn_md.graph import Graph
from egnn_md.models.potential import Potential
from egnn_md.nn.ops import segment_sum


@dataclass(frozen=True)
class State:
    """All molecules at one time."""

    positions: Tensor
    """(n_atoms, 3)."""
    velocities: Tensor
    """(n_atoms, 3)."""
    energy: Tensor
    """(n_molecules,) potential energy."""
    forces: Tensor
    """(n_atoms, 3)."""


class Batch:
    """Molecules side by side with the potential that moves them; precision and device are the potential's."""

    def __init__(self, model: Potential, molecules: Sequence[Molecule]) -> None:
        from ase.data import atomic_masses

        self.model = model
        self.graph = all_pairs(molecules, model.dtype).to(model.device)
        model.check_elements(self.graph.atomic_numbers)
        self.n_molecules = len(molecules)
        self.n_atoms = torch.bincount(self.graph.batch)
        masses = atomic_masses[self.graph.atomic_numbers.cpu().numpy()]
        self.masses = torch.tensor(masses, dtype=model.dtype, device=model.device).unsqueeze(-1)

    def forces(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions (n_atoms, 3) -> energy (n_molecules,) and forces (n_atoms, 3)."""
        prediction = self.model(replace(self.graph, positions=positions))
        return prediction.energy, prediction.forces

    def start(self, temperature: Tensor, generator: torch.Generator) -> State:
        """The given positions with Maxwell's velocities; `temperature` (n_molecules,) in K."""
        energy, forces = self.forces(self.graph.positions)
        velocities = self.thermal_width(temperature) * self.noise(generator)
        return self.without_drift(State(self.graph.positions, velocities, energy, forces))

    def thermal_width(self, temperature: Tensor) -> Tensor:
        """Standard deviation of each atom's velocity, (n_atoms, 1)."""
        return (BOLTZMANN * temperature.to(self.masses)[self.graph.batch].unsqueeze(-1) / self.masses).sqrt()

    def noise(self, generator: torch.Generator) -> Tensor:
        """(n_atoms, 3) standard normal numbers, drawn on the CPU: the same on every device."""
        drawn = torch.randn(self.graph.positions.shape, dtype=torch.float64, generator=generator)
        return drawn.to(self.graph.positions)

    def without_drift(self, state: State) -> State:
        """The state with every molecule's centre of mass at rest."""
        momentum = segment_sum(self.masses * state.velocities, self.graph.batch, self.n_molecules)
        mass = segment_sum(self.masses, self.graph.batch, self.n_molecules)
        return replace(state, velocities=state.velocities - (momentum / mass)[self.graph.batch])

    def kinetic_energy(self, state: State) -> Tensor:
        """(n_molecules,) eV, float64."""
        per_atom = 0.5 * (self.masses * state.velocities.square()).sum(-1)
        return segment_sum(per_atom.double(), self.graph.batch, self.n_molecules)

    def temperature(self, state: State, fixed: int = 0) -> Tensor:
        """(n_molecules,) K, with `fixed` degrees of freedom of each molecule at rest."""
        return 2.0 * self.kinetic_energy(state) / ((3 * self.n_atoms - fixed) * BOLTZMANN)


def all_pairs(molecules: Sequence[Molecule], dtype: torch.dtype) -> Graph:
    """One graph per molecule, each with every pair of its atoms as an edge, side by side."""
    graphs = []
    for molecule in molecules:
        n = len(molecule.numbers)
        graphs.append(
            Graph(
                positions=torch.tensor(molecule.positions, dtype=dtype),
                atomic_numbers=torch.tensor(molecule.numbers),
                edge_index=torch.tensor(np.stack(np.nonzero(~np.eye(n, dtype=bool)))),
                edge_shift=None,
                cell=torch.zeros(1, 3, 3, dtype=dtype),
                pbc=torch.zeros(1, 3, dtype=torch.bool),
                batch=torch.zeros(n, dtype=torch.int64),
            )
        )
    return Graph.collate(graphs)


@dataclass(frozen=True)
class Thermostat:
    """Langevin dynamics; `None` in its place is NVE."""

    temperature: Tensor
    """(n_molecules,) K."""
    friction: float
    """1/ps."""
    generator: torch.Generator


@torch.no_grad()
def run(
    batch: Batch,
    state: State,
    n_steps: int,
    timestep: float,
    *,
    thermostat: Thermostat | None = None,
    every: int = 1,
    observe: Callable[[int, State], None] | None = None,
) -> State:
    """`n_steps` of `timestep` fs; `observe(step, state)` after every `every` steps."""
    dt = timestep / FS_PER_TIME_UNIT
    drift = _drift(batch, dt, thermostat, timestep)
    kick = 0.5 * dt / batch.masses
    for step in range(1, n_steps + 1):
        positions, velocities = drift(state.positions, state.velocities + kick * state.forces)
        energy, forces = batch.forces(positions)
        state = State(positions, velocities + kick * forces, energy, forces)
        if observe is not None and step % every == 0:
            observe(step, state)
    return state


def _drift(
    batch: Batch, dt: float, thermostat: Thermostat | None, timestep: float
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What happens between two kicks: free flight, or half of it, the exact friction and noise, the other half."""
    if thermostat is None:
        return lambda positions, velocities: (positions + dt * velocities, velocities)
    decay = math.exp(-thermostat.friction * timestep * 1e-3)
    width = math.sqrt(1.0 - decay**2) * batch.thermal_width(thermostat.temperature)

    def langevin(positions: Tensor, velocities: Tensor) -> tuple[Tensor, Tensor]:
        positions = positions + 0.5 * dt * velocities
        velocities = decay * velocities + width * batch.noise(thermostat.generator)
        return positions + 0.5 * dt * velocities, velocities

    return langevin
