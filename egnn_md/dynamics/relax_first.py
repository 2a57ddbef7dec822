"""Structures moved to a potential's minima before another model looks at them: what `egnn-md predict --relax` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from egnn_md.chemistry.structures import Structure
from egnn_md.dynamics.batched_relax import LARGEST, Relaxed, relax_batched
from egnn_md.dynamics.bond_changes import bond_changes
from egnn_md.models.potential import Potential

if TYPE_CHECKING:
    from ase import Atoms

COLUMNS: Final = ("relax_steps", "relax_energy_eV")
"""Of a table: steps taken, and the energy since the start."""


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

    def __init__(self, potential: Potential, fmax: float, steps: int, at_once: int | None = None) -> None:
        """`at_once`: see `relax_batched`."""
        self.potential, self.fmax, self.steps, self.at_once = potential, fmax, steps, at_once

    def problem(self, structure: Structure) -> ValueError | None:
        """Why a structure cannot be relaxed; None if it can."""
        if len(structure.atomic_numbers) > LARGEST:
            return ValueError(f"it has more than {LARGEST} atoms: relax it on its own, with egnn-md relax")
        found = structure.problem(self.potential.config.elements)
        return None if found is None else type(found)(f"{found} (the potential that it should be relaxed with)")

    def __call__(self, structures: Sequence[Structure]) -> Iterator[AtMinimum | ValueError]:
        """Each one's minimum, in order, or why there is none."""
        from ase import Atoms

        starts = [Atoms(structure.atomic_numbers, structure.positions) for structure in structures]
        ends = dict(relax_batched(self.potential, starts, self.fmax, self.steps, self.at_once))
        for k, structure in enumerate(structures):
            yield self._answer(structure, starts[k], ends[k])

    def _answer(self, structure: Structure, start: Atoms, end: Relaxed) -> AtMinimum | ValueError:
        if not np.isfinite(end.fmax):
            return ValueError("the potential gave forces that are not finite while it was relaxed")
        problems = [] if end.converged else [f"not converged after {end.steps} steps"]
        relaxed = start.copy()
        relaxed.positions = end.positions
        if changes := bond_changes(start, relaxed):
            problems.append(f"relaxation changed bonds: {changes}")
        row = {"relax_steps": end.steps, "relax_energy_eV": end.energy - end.energy_start}
        return AtMinimum(replace(structure, positions=end.positions), row, "; ".join(problems))
