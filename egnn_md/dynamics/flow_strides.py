"""Strides of a flow map for one molecule, and the thermostat around them: numpy arrays in, numpy arrays out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from egnn_md.chemistry.units import BOLTZMANN, FS_PER_TIME_UNIT
from egnn_md.dynamics.settings import SettingsError
from egnn_md.models.flow import FlowMap, Kick, advance, pairs_of
from egnn_md.nn.compilation import compile_for

FloatArray = NDArray[np.float64]

SHORTEST_STRIDE: Final = 0.1
"""fs; below it a force call is the better choice."""
MOST_ATOMS: Final = 200
"""All pairs of atoms are looked at; larger molecules would need a neighbour list."""


class Strider:
    """A flow map, ready for one molecule and one stride: all that does not depend on positions is done once, here.

    numbers (n_atoms,); masses (n_atoms,) in amu; stride in fs. `compile`: a minute or so at the first stride, then
    faster. Raises UnsupportedElement, and SettingsError for what cannot be moved or a stride that makes no sense.
    """

    def __init__(
        self, model: FlowMap, numbers: NDArray[np.int64], masses: FloatArray, stride: float, *, compile: bool = False
    ) -> None:
        if not SHORTEST_STRIDE <= stride < math.inf:
            raise SettingsError(f"the stride must be at least {SHORTEST_STRIDE} fs, not {stride}")
        if not 2 <= len(numbers) <= MOST_ATOMS:
            raise SettingsError(f"a flow map moves molecules of 2 to {MOST_ATOMS} atoms, not {len(numbers)}")
        atomic_numbers = torch.as_tensor(numbers, dtype=torch.int64)
        model.check_elements(atomic_numbers)
        self.n_substeps = model.n_substeps(stride)
        substep, mass = stride / self.n_substeps, torch.as_tensor(masses, dtype=torch.float64)[:, None]
        self._s = torch.tensor(substep / FS_PER_TIME_UNIT, dtype=torch.float64)
        self._flight = 0.5 * self._s / mass
        with torch.no_grad():
            species = model.species(atomic_numbers)
            self._kinds = model.condition_on(species, mass, torch.full_like(mass, substep))
        self._reference = sum(model.config.reference_energies[k] for k in species.tolist())
        pairs = pairs_of(np.array([len(numbers)]))

        def kick(positions: Tensor, features: Tensor) -> Kick:
            return model.kick(positions, features, pairs)

        self._kick: Callable[..., Kick] = kick
        if compile:
            self._kick = compile_for(kick, (torch.rand(len(numbers), 3, dtype=torch.float64), self._kinds[0]))
        self._known: dict[bytes, Kick] = {}

    @torch.no_grad()
    def __call__(self, positions: FloatArray, momenta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Positions (Å) and momenta (ase's units), (n_atoms, 3) each, a stride later."""
        first = self._first_kick(positions)
        x, p = torch.from_numpy(positions), torch.from_numpy(momenta)
        x, p, last = advance(self._kick, x, p, first, self._kinds, self._flight, self._s, self.n_substeps)
        moved: FloatArray = x.numpy()
        self._known = {positions.tobytes(): first, moved.tobytes(): last}
        return moved, p.numpy()

    @torch.no_grad()
    def energy(self, positions: FloatArray) -> float:
        """The model's potential energy E, eV; free at both ends of the last stride."""
        return float(self._reference) + float(self._first_kick(positions)[1].sum())

    def _first_kick(self, positions: FloatArray) -> Kick:
        """K_a's at these positions. The last ones stay known: strides go on from their end, or back to their start."""
        key = positions.tobytes()
        if key not in self._known:
            self._known = {key: self._kick(torch.from_numpy(positions), self._kinds[0])}
        return self._known[key]


class Thermostat:
    """Langevin friction and noise on momenta: masses (n_atoms,) amu, temperature in K, friction in 1/ps."""

    def __init__(
        self, masses: FloatArray, temperature: float, friction: float, time_fs: float, rng: np.random.Generator
    ) -> None:
        self._decay = math.exp(-1e-3 * friction * time_fs)
        self._width: FloatArray = np.sqrt(BOLTZMANN * temperature * masses * (1.0 - self._decay**2))[:, None]
        self._rng = rng

    def __call__(self, momenta: FloatArray) -> FloatArray:
        """Momenta (n_atoms, 3) after the friction and noise of `time_fs`."""
        after: FloatArray = self._decay * momenta + self._width * self._rng.standard_normal(momenta.shape)
        return after
