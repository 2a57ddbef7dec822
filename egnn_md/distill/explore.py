"""Frames that the student's own dynamics visits, and which of them are worth a label."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from egnn_md.dynamics.batched import Batch, State, Thermostat, run
from egnn_md.dynamics.bonds import BondWatch
from egnn_md.dynamics.many import blown_up
from egnn_md.models.potential import Potential

if TYPE_CHECKING:
    from ase import Atoms

FRICTION: Final = 10.0
"""1/ps."""
HARDEST: Final = 0.2
"""Of the candidates, by the extrapolation signal: those from which frames are chosen. Never a threshold."""
RANDOM_SHARE: Final = 0.3
"""Of the chosen frames: drawn at random, to measure the error with."""
BLOCKS: Final = 4
"""Parts of a copy's time that a training keeps on one side of its split."""
ALIKE: Final = 0.02
"""Å, root mean square over all distances: nearer frames of a molecule are one."""


@dataclass(frozen=True)
class Exploration:
    """What became of the copies."""

    frames: list[Atoms]
    """Candidates; info has molecule, tag (temperature), group, signal."""
    ended: dict[str, int]
    """Why copies ended before their time."""
    picoseconds: float
    """Of each copy that did not end."""


def affordable(batch: Batch, picoseconds: float, timestep: float, seconds: float | None) -> float:
    """How many of the `picoseconds` of the batch's dynamics fit into `seconds`, by the time of a force call now.

    timestep in fs; None: there is no limit.
    """
    if seconds is None:
        return picoseconds
    batch.evaluate(batch.positions)  # the first call is slower
    began = time.perf_counter()
    batch.evaluate(batch.positions)
    return min(picoseconds, 1e-3 * timestep * max(0.0, seconds) / (time.perf_counter() - began))


def explore(
    model: Potential,
    starts: list[Atoms],
    temperatures: tuple[float, ...],
    *,
    copies: int,
    picoseconds: float,
    timestep: float,
    name: str,
    seed: int,
    n_frames: int = 40,
    seconds: float | None = None,
) -> Exploration:
    """Langevin dynamics of `copies` of the starts in turn, at the temperatures in turn, as one batch.

    A copy ends when it blows up, or when a bond breaks or forms (isolated molecules): its last sound frame and the
    broken one are candidates too. With `seconds`, no more of it than fits.
    """
    order = np.random.default_rng([seed, 1]).permutation(len(starts))
    heat = np.array([temperatures[k % len(temperatures)] for k in range(copies)])
    structures = [starts[order[k // len(temperatures) % len(starts)]].copy() for k in range(copies)]
    batch = Batch(model, structures)
    generator = torch.Generator().manual_seed(seed)
    thermostat = Thermostat(torch.tensor(heat, device=model.device), FRICTION, generator)
    steps = max(n_frames, round(1e3 * affordable(batch, picoseconds, timestep, seconds) / timestep))
    watcher = _Watcher(batch, structures, heat, name, steps)
    run(
        batch,
        batch.start(thermostat.temperature, generator),
        steps,
        timestep,
        thermostat=thermostat,
        every=max(1, steps // n_frames),
        observe=watcher,
    )
    return Exploration(watcher.frames, watcher.ended, 1e-3 * timestep * steps)


class _Watcher:
    """Collects frames of the copies that are whole."""

    def __init__(self, batch: Batch, structures: list[Atoms], heat: NDArray[np.float64], name: str, steps: int) -> None:
        self.batch, self.structures, self.heat, self.name, self.steps = batch, structures, heat, name, steps
        self.alive = np.ones(len(structures), bool)
        self.frames: list[Atoms] = []
        self.ended: dict[str, int] = {}
        isolated = not batch.pbc.any() and int(batch.n_atoms.max()) <= 200
        self.bonds = BondWatch(batch.positions, batch.atomic_numbers, batch.n_atoms) if isolated else None
        self.ends = batch.n_atoms.cumsum(0).tolist()

    def __call__(self, step: int, state: State) -> None:
        temperature, kinetic = self.batch.temperature(state).cpu(), self.batch.kinetic_energy(state).cpu()
        if self.bonds is not None:
            self.bonds.look(float(step), state.positions)
        for k in np.flatnonzero(self.alive).tolist():
            reason = ""
            if blown_up(float(state.energy[k]), float(kinetic[k]), float(temperature[k]), self.heat[k]):
                reason = "blew up"
            elif self.bonds is not None and k in self.bonds.first:
                reason = "a bond broke or formed"
            if reason:
                self.alive[k] = False
                self.ended[reason] = self.ended.get(reason, 0) + 1
            if reason != "blew up":
                self.frames.append(self._frame(k, step, state))

    def _frame(self, k: int, step: int, state: State) -> Atoms:
        atoms = self.structures[k].copy()
        atoms.positions = state.positions[self.ends[k] - len(atoms) : self.ends[k]].cpu().numpy()
        block = min(BLOCKS - 1, BLOCKS * (step - 1) // self.steps)
        atoms.info |= {
            "tag": f"{self.heat[k]:g} K",
            "group": f"{atoms.info['molecule']} {self.name} {k} {block}",
            "signal": float(state.extrapolation[k]),
        }
        return atoms


def choose(candidates: list[Atoms], count: int, seed: int) -> list[Atoms]:
    """At most `count` frames: some at random, as info["draw"] says, the others from the hardest; none alike."""
    rng = np.random.default_rng([seed, 2])
    order = rng.permutation(len(candidates)).tolist()
    taken = _Taken()
    n_random = min(len(candidates), max(5, round(RANDOM_SHARE * count)))
    chosen = [(k, "random") for k in _take(candidates, order, n_random, taken)]
    signal = np.nan_to_num([atoms.info["signal"] for atoms in candidates], nan=0.0, posinf=1e9)
    drawn = {k for k, _ in chosen}
    ranked = [k for k in np.argsort(-signal, kind="stable").tolist() if k not in drawn]
    cut = max(count - n_random, round(HARDEST * len(candidates)))
    hardest, others = ranked[:cut], ranked[cut:]
    rng.shuffle(hardest)
    chosen += [(k, "hard") for k in _take(candidates, hardest + others, count - len(chosen), taken)]
    frames = []
    for k, draw in sorted(chosen):
        atoms = candidates[k].copy()
        atoms.info["draw"] = draw
        frames.append(atoms)
    return frames


class _Taken:
    """The distances within frames that have been taken, by molecule."""

    def __init__(self) -> None:
        self.known: dict[bytes, list[NDArray[np.float64]]] = {}

    def is_new(self, atoms: Any) -> bool:
        """Whether it is unlike all before; it counts from now on."""
        if len(atoms) > 200:
            return True
        distances = atoms.get_all_distances(mic=bool(atoms.pbc.any()))[np.triu_indices(len(atoms), 1)]
        others = self.known.setdefault(atoms.numbers.tobytes(), [])
        if any(float(np.sqrt(np.mean((distances - other) ** 2))) < ALIKE for other in others):
            return False
        others.append(distances)
        return True


def _take(candidates: list[Atoms], order: list[int], count: int, taken: _Taken) -> list[int]:
    found: list[int] = []
    for k in order:
        if len(found) == count:
            break
        if taken.is_new(candidates[k]):
            found.append(k)
    return found
