"""Relaxation of many structures as one batch: quasi-Newton, each with its own Hessian, trust radius and end.

BFGS updates of the inverse Hessian, which begins as that of springs along bonds, across angles and over torsions: a
third of the steps that a multiple of the unit matrix needs. What has arrived leaves the batch and others take its
place. Lengths in Å, energies in eV.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from egnn_md.chemistry.elements import BOUND, COVALENT_RADII
from egnn_md.dynamics.batched import Batch
from egnn_md.models.potential import Potential

if TYPE_CHECKING:
    from ase import Atoms

LARGEST: Final = 150
"""Atoms: the dense Hessian of more costs more than it saves, and one call on them is no overhead; see `relax.py`."""
PAIRS_AT_ONCE: Final = 16_000
"""Of a batch, padded to its largest structure."""
SPRINGS: Final = (40.0, 5.0, 0.5)
"""eV/Å², between atoms one, two and three bonds apart."""
FLOOR: Final = 2.5
"""eV/Å², added for all that no spring holds."""
FIRST_TRUST, LONGEST_MOVE, SHORTEST_MOVE = 0.15, 0.3, 0.002
"""Å, of one atom in one step."""
STEEP: Final = 70.0
"""eV/Å²: along the forces, where the Hessian leads uphill."""
REFILL: Final = 0.125
"""Of the batch: so many that have arrived make room for others."""


@dataclass(frozen=True)
class Relaxed:
    """Where a structure came to."""

    positions: NDArray[np.float64]
    """(n_atoms, 3) Å."""
    converged: bool
    steps: int
    energy_start: float
    """eV."""
    energy: float
    """eV."""
    fmax: float
    """Largest force on an atom at the end, eV/Å; NaN if the potential gave no finite forces."""
    extrapolation: float
    """The model's signal at the end; NaN where it has none."""


@torch.no_grad()
def relax_batched(
    model: Potential, structures: Sequence[Atoms], fmax: float = 0.01, steps: int = 500
) -> Iterator[tuple[int, Relaxed]]:
    """Each structure's place and end, in the order in which they arrive, until no force exceeds `fmax` eV/Å.

    Structures of at most `LARGEST` atoms; cells stay as they are. Raises UnsupportedElement.
    """
    waiting = sorted(range(len(structures)), key=lambda k: -len(structures[k]))
    if not waiting:
        return
    largest = len(structures[waiting[0]])
    at_once = max(1, PAIRS_AT_ONCE // largest**2)
    moving = _Moving(model, largest)
    told: set[int] = set()
    while True:
        done = moving.ended(fmax, steps)
        for row in np.flatnonzero(done).tolist():
            if moving.places[row] not in told:
                told.add(moving.places[row])
                yield moving.places[row], moving.result(row, fmax)
        if done.all() and not waiting:
            return
        if done.all() or done.sum() >= at_once * REFILL:
            moving.keep(~done)
            room = at_once - len(moving.places)
            moving.add([structures[k] for k in waiting[:room]], waiting[:room])
            waiting = waiting[room:]
            done = moving.ended(fmax, steps)
        moving.step(torch.from_numpy(~done))


class _Moving:
    """The structures under way. Arrays have a row for each, padded to `largest` atoms."""

    def __init__(self, model: Potential, largest: int) -> None:
        self.model, self.largest = model, largest
        self.structures: list[Atoms] = []
        self.places: list[int] = []
        self.steps = np.zeros(0, np.int64)
        zeros = torch.zeros(0, dtype=torch.float64)
        self.rows = {
            "x": zeros.reshape(0, 3 * largest),
            "forces": zeros.reshape(0, 3 * largest),
            "inverse": zeros.reshape(0, 3 * largest, 3 * largest),
            "energy": zeros,
            "energy_start": zeros,
            "trust": zeros,
            "extrapolation": zeros,
        }

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Leave the others behind."""
        kept = np.flatnonzero(which)
        self.structures = [self.structures[k] for k in kept]
        self.places = [self.places[k] for k in kept]
        self.steps = self.steps[kept]
        self.rows = {name: values[torch.from_numpy(kept)] for name, values in self.rows.items()}
        self._prepare()

    def add(self, structures: list[Atoms], places: list[int]) -> None:
        """Take these up at their positions."""
        if not structures:
            return
        fresh = _Moving(self.model, self.largest)
        fresh.structures, fresh.places, fresh.steps = structures, places, np.zeros(len(places), np.int64)
        fresh._prepare()
        x = torch.zeros(len(places), self.largest, 3, dtype=torch.float64)
        x[fresh.there] = fresh.batch.positions.cpu()
        inverse = torch.stack([torch.from_numpy(_stiffness(atoms, self.largest)) for atoms in structures]).inverse()
        energy, forces, extrapolation = fresh._evaluate(x.flatten(1))
        trust = torch.full_like(energy, FIRST_TRUST)
        values = (x.flatten(1), forces, inverse, energy, energy, trust, extrapolation)
        for name, new in zip(self.rows, values, strict=True):
            self.rows[name] = torch.cat([self.rows[name], new])
        self.structures, self.places = self.structures + structures, self.places + places
        self.steps = np.concatenate([self.steps, fresh.steps])
        self._prepare()

    def _prepare(self) -> None:
        if self.structures:
            self.batch = Batch(self.model, self.structures)
            self.there = torch.arange(self.largest) < self.batch.n_atoms.cpu()[:, None]

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Energy, forces as x, extrapolation."""
        found = self.batch.evaluate(x.reshape(*self.there.shape, 3)[self.there].to(self.model.device))
        forces = torch.zeros(len(x), self.largest, 3, dtype=torch.float64)
        forces[self.there] = found.forces.cpu()
        return found.energy.cpu(), forces.flatten(1), found.extrapolation.cpu()

    def step(self, going: Tensor) -> None:
        """Move those that are `going` (n_rows,) by one step, and update their Hessians and trust radii."""
        rows, active = self.rows, going.double()
        move = torch.einsum("nij,nj->ni", rows["inverse"], rows["forces"])
        uphill = (move * rows["forces"]).sum(1) <= 0
        move = torch.where(uphill[:, None], rows["forces"] / STEEP, move)
        longest = _longest(move)
        move *= (active * torch.clamp(rows["trust"] / longest.clamp(min=1e-12), max=1.0))[:, None]
        expected = -(move * rows["forces"]).sum(1)
        x = rows["x"] + move
        energy, forces, extrapolation = self._evaluate(x)
        _update(rows["inverse"], move, rows["forces"] - forces)
        worse = ~(energy <= rows["energy"] - 0.05 * expected.abs() + 1e-7)  # NaN is worse
        limited = longest > 0.99 * rows["trust"]
        trust = torch.where(worse, 0.5 * torch.minimum(rows["trust"], longest), rows["trust"])
        trust = torch.where(~worse & limited, 1.5 * trust, trust)
        rows["trust"] = torch.where(going, trust.clamp(SHORTEST_MOVE, LONGEST_MOVE), rows["trust"])
        rows |= {"x": x, "energy": energy, "forces": forces, "extrapolation": extrapolation}
        self.steps += going.numpy()

    def ended(self, fmax: float, steps: int) -> NDArray[np.bool_]:
        """(n_rows,): arrived, at the last step, or with forces that are no numbers."""
        force = _longest(self.rows["forces"]).numpy()
        return ~(force > fmax) | (self.steps >= steps)

    def result(self, row: int, fmax: float) -> Relaxed:
        rows, n = self.rows, len(self.structures[row])
        force = float(_longest(rows["forces"][row : row + 1])[0])
        return Relaxed(
            positions=rows["x"][row].reshape(-1, 3)[:n].numpy().copy(),
            converged=force <= fmax,
            steps=int(self.steps[row]),
            energy_start=float(rows["energy_start"][row]),
            energy=float(rows["energy"][row]),
            fmax=force,
            extrapolation=float(rows["extrapolation"][row]),
        )


def _longest(moves: Tensor) -> Tensor:
    """(n_rows, 3 largest) -> the longest vector of an atom in each row."""
    longest: Tensor = torch.linalg.vector_norm(moves.reshape(len(moves), moves.shape[1] // 3, 3), dim=2).amax(1)
    return longest


def _update(inverse: Tensor, step: Tensor, change: Tensor) -> None:
    """BFGS in place, where the curvature along the step is positive. change: of the gradient."""
    along = (step * change).sum(1)
    good = along > 1e-8 * step.norm(dim=1) * change.norm(dim=1)
    good &= along > 0
    share = torch.where(good, 1.0 / along.clamp(min=1e-300), 0.0)
    step, change = step * good[:, None], torch.where(good[:, None], change, 0.0)
    bent = torch.einsum("nij,nj->ni", inverse, change)
    weight = share * (1.0 + (change * bent).sum(1) * share)
    both = share[:, None, None] * torch.einsum("ni,nj->nij", bent, step)
    inverse += weight[:, None, None] * torch.einsum("ni,nj->nij", step, step) - both - both.mT


def _stiffness(atoms: Atoms, largest: int) -> NDArray[np.float64]:
    """Hessian (3 largest, 3 largest), eV/Å²: `SPRINGS` by the number of bonds between two atoms, `FLOOR` for all."""
    n, x = len(atoms), atoms.positions
    vectors = x[:, None] - x if not atoms.pbc.any() else atoms.get_all_distances(mic=True, vector=True)
    distances = np.linalg.norm(vectors, axis=-1) + np.eye(n)
    radii = np.array(COVALENT_RADII)[atoms.numbers]
    bonds = (distances < BOUND * (radii[:, None] + radii)) & ~np.eye(n, dtype=bool)
    springs, reached, front = np.zeros((n, n)), np.eye(n, dtype=bool), np.eye(n, dtype=bool)
    for stiffness in SPRINGS:
        front = (front.astype(np.float64) @ bonds > 0) & ~reached
        reached |= front
        springs[front] = stiffness
    unit = vectors / distances[..., None]
    blocks = -springs[..., None, None] * unit[..., :, None] * unit[..., None, :]
    blocks[np.arange(n), np.arange(n)] = -blocks.sum(1)
    hessian = FLOOR * np.eye(3 * largest)
    hessian[: 3 * n, : 3 * n] += blocks.transpose(0, 2, 1, 3).reshape(3 * n, 3 * n)
    return hessian
