"""Geometry optimisation of an ase structure with any ase calculator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from egnn_md.dynamics.guard import refusals
from egnn_md.dynamics.settings import SettingsError
from egnn_md.dynamics.starting_structures import StructureError
from egnn_md.shown import html_table

if TYPE_CHECKING:
    from ase import Atoms

Optimizer = Literal["auto", "bfgs", "lbfgs", "fire"]
OPTIMIZERS: Final[tuple[str, ...]] = get_args(Optimizer)
BFGS_ATOMS: Final = 150
"""Up to this many atoms "auto" takes bfgs, which diagonalises a 3n x 3n matrix each step; lbfgs above."""
BROKEN: Final = 10.0
"""Of the extrapolation signal (1 is what training data stays below, 2 is warned of): no minimum of chemistry has it."""


@dataclass(frozen=True)
class Relaxation:
    """How a relaxation went."""

    converged: bool
    steps: int
    energy_start: float
    """eV."""
    energy: float
    """eV."""
    fmax: float
    """Largest force on an atom at the end, eV/Å."""
    extrapolation: float | None
    """The calculator's signal at the end."""

    def _repr_html_(self) -> str:
        """In a notebook: the end, and how it was reached."""
        rows = [("converged", "yes" if self.converged else "no"), ("steps", str(self.steps))]
        rows += [("energy", f"{self.energy:.5f} eV, {self.energy - self.energy_start:+.5f} eV since the start")]
        rows += [("largest force on an atom", f"{self.fmax:.4f} eV/Å")]
        rows += [] if self.extrapolation is None else [("extrapolation", f"{self.extrapolation:.2f}")]
        return html_table(rows)


def relax(
    atoms: Atoms,
    fmax: float = 0.01,
    steps: int = 1000,
    optimizer: Optimizer = "auto",
    relax_cell: bool = False,
    progress: Callable[[int, float, float], None] | None = None,
) -> Relaxation:
    """Move `atoms` (in place) to a minimum: until no force exceeds `fmax` eV/Å, or for `steps` steps.

    `relax_cell` lets the cell change too, its strain derivative per atom counted among the forces; the structure must
    be periodic in three directions. `progress` is called with the step, the energy and the largest force. Raises
    SettingsError for bad options, StructureError if the calculator refuses the structure, or if the end is none that
    chemistry has.
    """
    if not 0 < fmax < np.inf or steps < 0:
        raise SettingsError(f"fmax must be above 0 eV/Å and steps not negative, not {fmax} and {steps}")
    if optimizer not in OPTIMIZERS:
        raise SettingsError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {optimizer!r}")
    if relax_cell and not atoms.pbc.all():
        raise SettingsError("the cell can be relaxed only if the structure is periodic in three directions")
    try:
        start = float(atoms.get_potential_energy())
        target = _with_cell(atoms) if relax_cell else atoms
        converged, done = _optimize(target, fmax, steps, optimizer, progress)
    except refusals() as error:
        raise StructureError(str(error)) from error
    extrapolation = atoms.calc.results.get("extrapolation")
    if extrapolation is not None and (reason := no_chemistry(float(extrapolation))):
        raise StructureError(reason)
    return Relaxation(
        converged=converged,
        steps=done,
        energy_start=start,
        energy=float(atoms.get_potential_energy()),
        fmax=_largest(target),
        extrapolation=None if extrapolation is None or np.isnan(extrapolation) else float(extrapolation),
    )


def no_chemistry(extrapolation: float) -> str:
    """Why a relaxation that ends with this signal is no result; empty if it can be one."""
    if not extrapolation > BROKEN:
        return ""
    return (
        f"the relaxation came to a structure that no chemistry has (extrapolation {extrapolation:.0f}; 1 is like the "
        "training data): bonds are broken, atoms alone or crowded. The start is too far from any minimum: are its "
        "units Å, its hydrogens there, its atoms apart?"
    )


def _with_cell(atoms: Atoms) -> Any:
    from ase.filters import FrechetCellFilter

    return FrechetCellFilter(atoms)


def _largest(target: Any) -> float:
    return float(np.linalg.norm(target.get_forces(), axis=1).max())


def _optimize(
    target: Any, fmax: float, steps: int, optimizer: Optimizer, progress: Callable[[int, float, float], None] | None
) -> tuple[bool, int]:
    from ase.optimize import BFGS, FIRE, LBFGS

    name = optimizer if optimizer != "auto" else "bfgs" if len(target) <= BFGS_ATOMS else "lbfgs"
    method = {"bfgs": BFGS, "lbfgs": LBFGS, "fire": FIRE}[name](target, logfile=None)
    for _ in method.irun(fmax=fmax, steps=steps):
        if progress is not None:
            progress(method.nsteps, float(target.get_potential_energy()), _largest(target))
    return _largest(target) <= fmax, int(method.nsteps)
