"""Structures moved to a potential's minima before another model looks at them: what `egnn-md predict --relax` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from egnn_md.chemistry.elements import symbol
from egnn_md.chemistry.molecules import bonds
from egnn_md.chemistry.structures import Structure
from egnn_md.dynamics.batched_relax import LARGEST, Relaxed, relax_batched
from egnn_md.models.potential import Potential

COLUMNS: Final = ("relax_steps", "relax_energy_eV")
"""Of a table: steps taken, and the energy since the start."""
MOST_BONDS: Final = 3
"""That a flag names."""


@dataclass(frozen=True)
class AtMinimum:
    """A structure where its relaxation ended."""

    structure: Structure
    row: dict[str, float | int]
    """By `COLUMNS`."""
    flag: str
    """What is wrong with it as a minimum of this molecule; empty if nothing is."""


class RelaxFirst:
    """Relaxes isolated molecules in batches, until no force exceeds `fmax` eV/Å or `steps` are done."""

    def __init__(self, potential: Potential, fmax: float, steps: int) -> None:
        self.potential, self.fmax, self.steps = potential, fmax, steps

    def problem(self, structure: Structure) -> ValueError | None:
        """Why a structure cannot be relaxed; None if it can."""
        if len(structure.atomic_numbers) > LARGEST:
            return ValueError(f"it has more than {LARGEST} atoms: relax it on its own, with egnn-md relax")
        found = structure.problem(self.potential.config.elements)
        return None if found is None else type(found)(f"{found} (the potential that it should be relaxed with)")

    def __call__(self, structures: Sequence[Structure]) -> Iterator[AtMinimum | ValueError]:
        """Each one's minimum, in order, or why there is none."""
        from ase import Atoms

        atoms = [Atoms(structure.atomic_numbers, structure.positions) for structure in structures]
        ends = dict(relax_batched(self.potential, atoms, self.fmax, self.steps))
        for k, structure in enumerate(structures):
            yield self._answer(structure, ends[k])

    def _answer(self, start: Structure, end: Relaxed) -> AtMinimum | ValueError:
        if not np.isfinite(end.fmax):
            return ValueError("the potential gave forces that are not finite while it was relaxed")
        relaxed = replace(start, positions=end.positions)
        problems = [] if end.converged else [f"not converged after {end.steps} steps"]
        if moved := moved_bonds(start, relaxed):
            problems.append(f"relaxation changed bonds: {moved}")
        row = {"relax_steps": end.steps, "relax_energy_eV": end.energy - end.energy_start}
        return AtMinimum(relaxed, row, "; ".join(problems))


def moved_bonds(start: Structure, end: Structure) -> str:
    """Which bonds one has and the other has not, in words; empty if none."""
    before, after = (bonds(s.atomic_numbers, s.positions) for s in (start, end))
    names = [f"{symbol(int(z))}{k}" for k, z in enumerate(start.atomic_numbers)]
    words = []
    for word, changed in (("broken", before & ~after), ("formed", after & ~before)):
        pairs = np.argwhere(np.triu(changed)).tolist()
        named = " ".join(f"{names[i]}-{names[j]}" for i, j in pairs[:MOST_BONDS])
        words += [f"{named}{' …' * (len(pairs) > MOST_BONDS)} {word}"] if pairs else []
    return " and ".join(words)
