"""Labels from a teacher: energy, forces and what else helps; what is no label is set aside with its reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from egnn_md.distill.teacher import Calculate, Teacher
from egnn_md.jobs.chunks import Answer, Emit
from egnn_md.jobs.source import as_atoms

if TYPE_CHECKING:
    from ase import Atoms

KEPT: Final = ("energy", "forces", "stress", "energies", "charges", "dipole")
"""Of the teacher's results, where it has them; stress where the structure is periodic in three directions."""
LARGEST_FORCE: Final = 50.0
"""eV/Å: atoms so pushed are a broken structure or a calculation gone wrong."""


@dataclass(frozen=True)
class LabelWorker:
    """See `egnn_md.jobs.chunks.Worker`."""

    teacher: Teacher
    max_force: float = LARGEST_FORCE
    """eV/Å: labels with a larger one are set aside."""
    columns = ("energy", "max_force", "seconds")
    read = staticmethod(as_atoms)

    def open(self) -> Callable[[list[tuple[int, Atoms]], Emit], None]:
        """Load the teacher."""
        calculate = self.teacher.open()

        def work(structures: list[tuple[int, Atoms]], emit: Emit) -> None:
            for index, atoms in structures:
                emit(index, label(atoms, calculate, self.max_force))

        return work


def label(atoms: Atoms, calculate: Calculate, max_force: float = LARGEST_FORCE) -> Answer:
    """One structure with its labels as ase's results, or why there are none."""
    from ase.calculators.singlepoint import SinglePointCalculator

    if not np.isfinite(atoms.positions).all():
        return Answer.failed("positions that are NaN or infinite")
    began, atoms = time.monotonic(), atoms.copy()
    try:
        calculator = calculate(atoms)
        results = _results(atoms, calculator)
    except Exception as error:  # whatever a teacher raises, the next structure may be sound
        return Answer.failed(f"{type(error).__name__}: {error}", seconds=round(time.monotonic() - began, 3))
    largest = float(np.linalg.norm(results["forces"], axis=1).max())
    row = {"energy": results["energy"], "max_force": largest, "seconds": round(time.monotonic() - began, 3)}
    if getattr(calculator, "converged", True) is False:
        return Answer.failed("the teacher did not converge", **row)
    if not np.isfinite([results["energy"], largest]).all():
        return Answer.failed("labels that are NaN or infinite", seconds=row["seconds"])
    if largest > max_force:
        return Answer.failed(f"a force of {largest:.0f} eV/Å is absurd (--max-force {max_force:g})", **row)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return Answer((atoms,), row)


def _results(atoms: Atoms, calculator: Any) -> dict[str, Any]:
    atoms.calc = calculator
    found: dict[str, Any] = {"energy": float(atoms.get_potential_energy()), "forces": np.array(atoms.get_forces())}
    if atoms.pbc.all() and "stress" in getattr(calculator, "implemented_properties", ()):
        found["stress"] = np.array(atoms.get_stress())
    results = getattr(calculator, "results", {})
    shapes = {"energies": (len(atoms),), "charges": (len(atoms),), "dipole": (3,)}
    for name, shape in shapes.items():
        if name in results and np.shape(results[name]) == shape and np.isfinite(results[name]).all():
            found[name] = np.array(results[name])
    return found
