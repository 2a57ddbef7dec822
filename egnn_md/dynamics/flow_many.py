"""Strides of many molecules as one batch: one molecule's stride is mostly overhead.

Each molecule has its own noise, its own Metropolis test and its own count of strides kept; none feels another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from egnn_md.chemistry.units import BOLTZMANN, FS_PER_TIME_UNIT
from egnn_md.dynamics.flow_strides import SHORTEST_STRIDE
from egnn_md.dynamics.settings import SettingsError
from egnn_md.models.flow import FlowMap, Kick, advance, pairs_of
from egnn_md.nn.ops import segment_sum

if TYPE_CHECKING:
    from ase import Atoms

MARGIN: Final = 1.5
"""Å beyond the cutoff, within which pairs are looked at until the next stride."""


class ManyStrides:
    """Moves isolated molecules of any sizes side by side; options as of `FlowDynamics`, `seed` in place of `rng`.

    Molecules without momenta get Maxwell's. Raises SettingsError, UnsupportedElement, UnknownMolecule.
    """

    def __init__(
        self,
        structures: Sequence[Atoms],
        model: str | FlowMap = "organics-flow",
        stride: float = 10.0,
        *,
        temperature_K: float | None = None,
        friction: float = 5.0,
        seed: int = 0,
        energy_filter: bool | None = None,
    ) -> None:
        from egnn_md.dynamics.ase_flow import check_options, load_flow

        if not stride >= SHORTEST_STRIDE:
            raise SettingsError(f"the stride must be at least {SHORTEST_STRIDE} fs, not {stride}")
        self.model, self.structures, self.temperature = load_flow(model), list(structures), temperature_K
        for atoms in structures:
            check_options(atoms, temperature_K, friction)
            self.model.check_molecule(atoms.numbers, atoms.positions)
        sizes = np.array([len(atoms) for atoms in structures])
        self.n_molecules, self.n_atoms = len(sizes), torch.from_numpy(sizes)
        self.molecule = torch.repeat_interleave(torch.arange(self.n_molecules), self.n_atoms)
        self._all_pairs = pairs_of(sizes)
        numbers = torch.from_numpy(np.concatenate([atoms.numbers for atoms in structures]).astype(np.int64))
        self.masses = _flat([atoms.get_masses()[:, None] for atoms in structures])
        self.positions = _flat([atoms.positions for atoms in structures])
        self.generator = torch.Generator().manual_seed(seed)
        self.energy_filter = temperature_K is not None if energy_filter is None else energy_filter
        if self.energy_filter and temperature_K is None:
            raise SettingsError("energy_filter needs a thermostat: give temperature_K")
        self.momenta = self._momenta()
        self.n_substeps = self.model.n_substeps(stride)
        substep, species = stride / self.n_substeps, self.model.species(numbers)
        self._s = torch.tensor(substep / FS_PER_TIME_UNIT, dtype=torch.float64)
        self._flight = 0.5 * self._s / self.masses
        with torch.no_grad():
            length = torch.full_like(self.masses, substep)
            self._kinds = self.model.condition_on(species, self.masses.to(self.model.dtype), length)
        references = torch.tensor(self.model.config.reference_energies, dtype=torch.float64)[species]
        self.reference = segment_sum(references, self.molecule, self.n_molecules)
        self._decay = math.exp(-0.5e-3 * friction * stride)
        self.accepted = torch.zeros(self.n_molecules, dtype=torch.int64)
        self.n_steps = 0
        self._find_pairs()
        self._first = self._kick(self.positions, self._kinds[0])

    @property
    def energy(self) -> Tensor:
        """The flow map's own potential energy, (n_molecules,) eV."""
        return self.reference + self._sum(self._first[1])

    @property
    def kinetic_energy(self) -> Tensor:
        """(n_molecules,) eV."""
        return self._kinetic(self.momenta)

    @torch.no_grad()
    def run(self, n_steps: int) -> None:
        """So many strides, each between two halves of the thermostat."""
        for _ in range(n_steps):
            self._step()

    def frames(self) -> list[Atoms]:
        """The molecules as they are now, with momenta."""
        made, ends = [], self.n_atoms.cumsum(0).tolist()
        for atoms, end in zip(self.structures, ends, strict=True):
            copy, rows = atoms.copy(), slice(end - len(atoms), end)
            copy.positions = self.positions[rows].numpy()
            copy.set_momenta(self.momenta[rows].numpy())
            made.append(copy)
        return made

    def _step(self) -> None:
        momenta = self._thermostat(self.momenta)
        self._find_pairs()
        x, p, last = advance(
            self._kick, self.positions, momenta, self._first, self._kinds, self._flight, self._s, self.n_substeps
        )
        kept = torch.ones(self.n_molecules, dtype=torch.bool)
        if self.energy_filter:
            assert self.temperature is not None
            change = self._sum(last[1] - self._first[1]) + self._kinetic(p) - self._kinetic(momenta)
            draw = torch.rand(self.n_molecules, dtype=torch.float64, generator=self.generator)
            kept = draw < (-change / (BOLTZMANN * self.temperature)).exp()  # never for NaN
        atoms = kept[self.molecule]
        rows = atoms.unsqueeze(-1)
        self.positions = torch.where(rows, x, self.positions)
        self._first = (torch.where(rows, last[0], self._first[0]), torch.where(atoms, last[1], self._first[1]))
        self.momenta = self._thermostat(torch.where(rows, p, -momenta))
        self.accepted += kept
        self.n_steps += 1

    def _find_pairs(self) -> None:
        """Pairs near enough to matter during the next stride."""
        first, second = self._all_pairs
        vectors = self.positions[first] - self.positions[second]
        near = vectors.square().sum(1) < (self.model.config.cutoff + MARGIN) ** 2
        self._pairs = self._all_pairs[:, near]

    @torch.no_grad()
    def _kick(self, positions: Tensor, features: Tensor) -> Kick:
        return self.model.kick(positions, features, self._pairs)

    def _thermostat(self, momenta: Tensor) -> Tensor:
        if self.temperature is None:
            return momenta
        return self._decay * momenta + math.sqrt(1.0 - self._decay**2) * self._maxwell(self.temperature)

    def _maxwell(self, temperature: float) -> Tensor:
        noise = torch.randn(self.masses.shape[0], 3, dtype=torch.float64, generator=self.generator)
        return (BOLTZMANN * temperature * self.masses).sqrt() * noise

    def _momenta(self) -> Tensor:
        given = _flat([atoms.get_momenta() for atoms in self.structures])
        moving = torch.tensor([bool(atoms.get_momenta().any()) for atoms in self.structures])[self.molecule]
        return torch.where(moving.unsqueeze(-1), given, self._maxwell(self.temperature or 300.0))

    def _kinetic(self, momenta: Tensor) -> Tensor:
        return self._sum((0.5 * momenta.square() / self.masses).sum(-1))

    def _sum(self, by_atom: Tensor) -> Tensor:
        return segment_sum(by_atom, self.molecule, self.n_molecules)


def _flat(arrays: list[Any]) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays).astype(np.float64))
