"""Molecular dynamics of many structures as one batch: a force call on one molecule is mostly overhead.

Velocity Verlet for NVE and BAOAB (Leimkuhler, Matthews 2013) for Langevin dynamics. Structures may be of any sizes,
isolated or periodic (the cell stays as it is); none feels another. Lengths in Å, energies in eV, masses in amu; time
steps are given in fs, velocities are in Å per `FS_PER_TIME_UNIT` fs, ase's unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from egnn_md.chemistry.structures import said_charge
from egnn_md.chemistry.units import BOLTZMANN, FS_PER_TIME_UNIT
from egnn_md.dynamics.batched_neighbors import BatchedNeighbors
from egnn_md.graph import Graph
from egnn_md.models.potential import Potential
from egnn_md.neighbors.lists import DEFAULT_SKIN
from egnn_md.nn.ops import segment_sum

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True)
class Evaluation:
    """What the potential says of all structures at some positions."""

    energy: Tensor
    """(n_structures,) eV."""
    forces: Tensor
    """(n_atoms, 3) eV/Å, float64."""
    extrapolation: Tensor
    """(n_structures,): that of the atom least like the training data; NaN where the model has no statistics."""


@dataclass(frozen=True)
class State(Evaluation):
    """All structures at one time."""

    positions: Tensor
    """(n_atoms, 3), float64."""
    velocities: Tensor
    """(n_atoms, 3), float64."""


class Batch:
    """Structures side by side with the potential that moves them, on its device and in its precision.

    Positions and velocities are float64 whatever the precision of the network. Raises UnsupportedElement.
    """

    def __init__(self, model: Potential, structures: Sequence[Atoms], skin: float = DEFAULT_SKIN) -> None:
        device = model.device
        self.model = model
        self.neighbors = BatchedNeighbors(structures, model.config.cutoff, skin, device)
        self.n_structures = len(structures)
        self.n_atoms = torch.tensor([len(atoms) for atoms in structures], device=device)
        self.batch = torch.repeat_interleave(torch.arange(self.n_structures, device=device), self.n_atoms)
        self.atomic_numbers = _tensor(np.concatenate([atoms.numbers for atoms in structures]), device)
        self.positions = _tensor(np.concatenate([atoms.positions for atoms in structures]), device)
        self.masses = _tensor(np.concatenate([atoms.get_masses() for atoms in structures]), device).unsqueeze(-1)
        self.cell = _tensor(np.stack([atoms.cell.array for atoms in structures]), device)
        self.pbc = _tensor(np.stack([atoms.pbc for atoms in structures]), device)
        charges = [said_charge(atoms) for atoms in structures]
        self.charge = _tensor(np.array([np.nan if charge is None else charge for charge in charges]), device)
        model.check_elements(self.atomic_numbers)

    def graph(self, positions: Tensor) -> Graph:
        """positions (n_atoms, 3) -> their graph, whose pairs may reach beyond the model's cutoff."""
        pairs, shifts = self.neighbors(positions)
        return Graph(positions, self.atomic_numbers, pairs, shifts, self.cell, self.pbc, self.batch, self.charge)

    def evaluate(self, positions: Tensor) -> Evaluation:
        """positions (n_atoms, 3) -> energies, forces and the extrapolation signal.

        A structure with positions that are NaN or infinite gets NaN; the others do not notice.
        """
        prediction = self.model(self.graph(positions))
        lost = positions - positions  # zero, or NaN: pairs out of reach would give atoms on their own, and a number
        signal = prediction.extrapolation.double()
        worst = signal.new_full((self.n_structures,), -math.inf).scatter_reduce(0, self.batch, signal, "amax")
        energy = prediction.energy.detach() + segment_sum(lost.sum(1), self.batch, self.n_structures)
        return Evaluation(energy, prediction.forces.detach().double() + lost, worst)

    def start(self, temperature: Tensor, generator: torch.Generator) -> State:
        """The given positions with Maxwell's velocities and no drift; `temperature` (n_structures,) in K."""
        velocities = self.thermal_width(temperature) * self.noise(generator)
        found = self.evaluate(self.positions)
        return self.without_drift(State(**vars(found), positions=self.positions, velocities=velocities))

    def thermal_width(self, temperature: Tensor) -> Tensor:
        """Standard deviation of each atom's velocity, (n_atoms, 1)."""
        return (BOLTZMANN * temperature.to(self.masses)[self.batch].unsqueeze(-1) / self.masses).sqrt()

    def noise(self, generator: torch.Generator) -> Tensor:
        """(n_atoms, 3) standard normal numbers, drawn on the CPU: the same on every device."""
        return torch.randn(self.positions.shape, dtype=torch.float64, generator=generator).to(self.positions)

    def without_drift(self, state: State) -> State:
        """The state with every structure's centre of mass at rest."""
        momentum = segment_sum(self.masses * state.velocities, self.batch, self.n_structures)
        mass = segment_sum(self.masses, self.batch, self.n_structures)
        return replace(state, velocities=state.velocities - (momentum / mass)[self.batch])

    def kinetic_energy(self, state: State) -> Tensor:
        """(n_structures,) eV."""
        return segment_sum(0.5 * (self.masses * state.velocities.square()).sum(-1), self.batch, self.n_structures)

    def temperature(self, state: State, fixed: int = 0) -> Tensor:
        """(n_structures,) K, with `fixed` degrees of freedom of each structure at rest."""
        return 2.0 * self.kinetic_energy(state) / ((3 * self.n_atoms - fixed).clamp(min=1) * BOLTZMANN)


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    wide = {"f": np.float64, "i": np.int64, "b": np.bool_}[array.dtype.kind]
    return torch.from_numpy(array.astype(wide, copy=False)).to(device)


@dataclass(frozen=True)
class Thermostat:
    """Langevin dynamics; `None` in its place is NVE."""

    temperature: Tensor
    """(n_structures,) K."""
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
        found = batch.evaluate(positions)
        state = State(**vars(found), positions=positions, velocities=velocities + kick * found.forces)
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
