"""Relaxation of many structures as one batch: quasi-Newton, each with its own Hessian, trust radius and end.

BFGS updates of the inverse Hessian, which begins as a guess from the geometry (`model_hessian.py`): far fewer steps
than a multiple of the unit matrix needs. What has arrived leaves the batch and others take its place. Lengths in Å,
energies in eV.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, takewhile
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from egnn_md.chemistry.elements import COVALENT_RADII
from egnn_md.dynamics.batched import Batch
from egnn_md.dynamics.batched_neighbors import expected_edges
from egnn_md.dynamics.model_hessian import model_hessian
from egnn_md.models.potential import Potential
from egnn_md.neighbors.lists import DEFAULT_SKIN

if TYPE_CHECKING:
    from ase import Atoms

LARGEST: Final = 150
"""Atoms: the dense Hessian of more costs more than it saves, and one call on them is no overhead; see `relax.py`."""
PAIRS_AT_ONCE: Final = 16_000
"""Of a batch, padded to its largest structure; edges, where cells are so small that these are more."""
FIRST_TRUST, LONGEST_MOVE, SHORTEST_MOVE = 0.15, 0.3, 0.002
"""Å, of one atom in one step."""
STEEP: Final = 70.0
"""eV/Å²: along the forces, where the Hessian leads uphill."""
REFILL: Final = 0.05
"""Of the batch: so many that have arrived make room for others."""
GUESSED_AGAIN: Final = 3
"""Steps after which the Hessian is a new guess."""
_RADII: Final = torch.tensor(COVALENT_RADII, dtype=torch.float64)


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
    model: Potential, structures: Sequence[Atoms], fmax: float = 0.01, steps: int = 500, at_once: int | None = None
) -> Iterator[tuple[int, Relaxed]]:
    """Each structure's place and end, in the order in which they arrive, until no force exceeds `fmax` eV/Å.

    Structures of at most `LARGEST` atoms; cells stay as they are. `at_once`: how many share a force call; None: as many
    as `PAIRS_AT_ONCE` allows. Raises UnsupportedElement.
    """
    waiting = sorted(range(len(structures)), key=lambda k: len(structures[k]))  # taken from the end
    moving = _Moving(model, at_once)
    while True:
        ended = moving.ended(fmax, steps)
        for row in ended.nonzero().squeeze(1).tolist():
            yield moving.places[row], moving.result(row, fmax)
        moving.going &= ~ended
        if int((~moving.going).sum()) >= REFILL * len(moving.going):
            moving.keep_going()
            moving.take(structures, waiting)
        if not moving.structures:
            return
        moving.step()


class _Moving:
    """The structures under way. Tensors have a row for each, padded to `largest` atoms."""

    def __init__(self, model: Potential, at_once: int | None) -> None:
        self.model, self.at_once, self.largest = model, at_once, 1
        self.structures: list[Atoms] = []
        self.places: list[int] = []
        self.going = torch.zeros(0, dtype=torch.bool)
        """Those that have not ended."""
        self.rows = self._begin([])

    def keep_going(self) -> None:
        """Leave behind those that have ended."""
        kept = self.going.nonzero().squeeze(1)
        self.structures = [self.structures[k] for k in kept.tolist()]
        self.places = [self.places[k] for k in kept.tolist()]
        self.rows = {name: values[kept] for name, values in self.rows.items()}
        self.going = self.going[kept]

    def take(self, structures: Sequence[Atoms], waiting: list[int]) -> None:
        """Take up as many from the end of `waiting` as there is room for, the largest first."""
        sizes = [len(atoms) for atoms in self.structures] + [len(structures[k]) for k in waiting[-1:]]
        self.largest = max(sizes, default=1)
        n = 3 * self.largest
        self.rows |= {name: self.rows[name][:, :n] for name in ("x", "forces")}
        self.rows["inverse"] = self.rows["inverse"][:, :n, :n]
        room = self._room(structures[k] for k in reversed(waiting))
        places = [waiting.pop() for _ in range(min(room, len(waiting)))]
        fresh = [structures[k] for k in places]
        self.structures, self.places = self.structures + fresh, self.places + places
        if not self.structures:
            return
        self.batch = Batch(self.model, self.structures)
        self.there = torch.arange(self.largest) < self.batch.n_atoms.cpu()[:, None]
        begun = self._begin(fresh)
        kept = self.rows if len(self.going) else {name: values[:0] for name, values in begun.items()}
        self.rows = {name: torch.cat([kept[name], values]) for name, values in begun.items()}
        self.going = torch.cat([self.going, torch.ones(len(fresh), dtype=torch.bool)])

    def _room(self, waiting: Iterator[Atoms]) -> int:
        """How many of those that wait, from the first, go with those under way."""
        if self.at_once is not None:
            return self.at_once - len(self.structures)
        pairs = accumulate(self._pairs(atoms) for atoms in chain(self.structures, waiting))
        fitting = sum(1 for _ in takewhile(lambda pairs: pairs <= PAIRS_AT_ONCE, pairs))
        return max(fitting, 1) - len(self.structures)

    def _pairs(self, atoms: Atoms) -> float:
        padded = float(self.largest**2)
        if not atoms.pbc.any():
            return padded
        return max(padded, expected_edges(atoms, self.model.config.cutoff + DEFAULT_SKIN))

    def _begin(self, fresh: Sequence[Atoms]) -> dict[str, Tensor]:
        """Rows at rest, whose first step goes nowhere and finds their energies and forces."""
        n_rows, n = len(fresh), 3 * self.largest
        numbers = torch.full((n_rows,), torch.nan, dtype=torch.float64)
        x = torch.zeros(n_rows, n, dtype=torch.float64)
        for row, atoms in enumerate(fresh):
            x[row, : 3 * len(atoms)] = torch.from_numpy(atoms.positions).flatten()
        return {
            "x": x,
            "forces": torch.zeros_like(x),
            "inverse": self._guess(x, fresh) if fresh else torch.zeros(0, n, n, dtype=torch.float64),
            "energy": torch.full_like(numbers, torch.inf),
            "energy_start": numbers,
            "extrapolation": numbers,
            "trust": torch.full_like(numbers, FIRST_TRUST),
            "steps": torch.full((n_rows,), -1),
        }

    def _guess(self, x: Tensor, structures: Sequence[Atoms]) -> Tensor:
        """Inverse Hessians at x."""
        places = x.reshape(len(x), self.largest, 3)
        vectors, radii = places[:, :, None] - places[:, None], torch.zeros(places.shape[:2], dtype=x.dtype)
        for row, atoms in enumerate(structures):
            n = len(atoms)
            radii[row, :n] = _RADII[torch.from_numpy(atoms.numbers)]
            if atoms.pbc.any():
                from ase.geometry import find_mic

                flat, _ = find_mic(vectors[row, :n, :n].reshape(-1, 3).numpy(), atoms.cell, atoms.pbc)
                vectors[row, :n, :n] = torch.from_numpy(flat).reshape(n, n, 3)
        inverse: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(model_hessian(vectors, radii, radii > 0)))
        return inverse

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Energy, forces as x, extrapolation."""
        found = self.batch.evaluate(x.reshape(*self.there.shape, 3)[self.there].to(self.model.device))
        forces = torch.zeros(len(x), self.largest, 3, dtype=torch.float64)
        forces[self.there] = found.forces.cpu()
        return found.energy.cpu(), forces.flatten(1), found.extrapolation.cpu()

    def step(self) -> None:
        """Move those that are going by one step, and update their Hessians and trust radii."""
        rows, going = self.rows, self.going
        move = torch.bmm(rows["inverse"], rows["forces"][..., None]).squeeze(2)
        uphill = (move * rows["forces"]).sum(1) <= 0
        move = torch.where(uphill[:, None], rows["forces"] / STEEP, move)
        longest = _longest(move)
        move *= (going * torch.clamp(rows["trust"] / longest.clamp(min=1e-12), max=1.0))[:, None]
        expected = -(move * rows["forces"]).sum(1)
        x = rows["x"] + move
        energy, forces, extrapolation = self._evaluate(x)
        _update(rows["inverse"], move, rows["forces"] - forces)
        worse = ~(energy <= rows["energy"] - 0.05 * expected.abs() + 1e-7)  # NaN is worse
        limited = longest > 0.99 * rows["trust"]
        trust = torch.where(worse, 0.5 * torch.minimum(rows["trust"], longest), rows["trust"])
        trust = torch.where(~worse & limited, 1.5 * trust, trust)
        rows["trust"] = torch.where(going, trust.clamp(SHORTEST_MOVE, LONGEST_MOVE), rows["trust"])
        rows["energy_start"] = torch.where(rows["steps"] < 0, energy, rows["energy_start"])
        rows |= {"x": x, "energy": energy, "forces": forces, "extrapolation": extrapolation}
        rows["steps"] = rows["steps"] + going
        self._guess_again()

    def _guess_again(self) -> None:
        """Where the first steps have mended bonds, what they taught of the old ones is worth less than a new guess."""
        mended = (
            (self.going & (self.rows["steps"] == GUESSED_AGAIN) & self.rows["x"].isfinite().all(1)).nonzero().squeeze(1)
        )
        if len(mended):
            self.rows["inverse"][mended] = self._guess(
                self.rows["x"][mended], [self.structures[k] for k in mended.tolist()]
            )

    def ended(self, fmax: float, steps: int) -> Tensor:
        """(n_rows,) of those that were going: arrived, at the last step, or with forces that are no numbers."""
        known = self.going & (self.rows["steps"] >= 0)
        return known & (~(_longest(self.rows["forces"]) > fmax) | (self.rows["steps"] >= steps))

    def result(self, row: int, fmax: float) -> Relaxed:
        rows, n = self.rows, len(self.structures[row])
        force = float(_longest(rows["forces"][row : row + 1])[0])
        return Relaxed(
            positions=rows["x"][row, : 3 * n].reshape(n, 3).numpy().copy(),
            converged=force <= fmax,
            steps=int(rows["steps"][row]),
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
    bent = torch.bmm(inverse, change[..., None]).squeeze(2)
    weight = share * (1.0 + (change * bent).sum(1) * share)
    with_step, with_bent = weight[:, None] * step - share[:, None] * bent, -share[:, None] * step
    inverse.baddbmm_(torch.stack([step, bent], 2), torch.stack([with_step, with_bent], 1))
