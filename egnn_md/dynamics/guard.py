"""Notices when a simulation has blown up, before its numbers reach anybody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from egnn_md.chemistry.units import BOLTZMANN

if TYPE_CHECKING:
    from ase import Atoms

HOTTEST_FACTOR: Final = 20.0
HOTTEST_K: Final = 10_000.0
"""K; no molecule survives either limit, and fluctuations of a few atoms do not reach them."""
LARGEST_ATOM_ENERGY: Final = 30.0
"""eV of kinetic energy of one atom, and of potential energy per atom gained or lost since the start: bonds hold 5."""


class BlowUp(RuntimeError):
    """The simulation left physics; the message says how."""


class Guard:
    """Checks each step against limits that only a broken simulation passes."""

    def __init__(self, temperature: float, degrees_of_freedom: int, reference_energy: float) -> None:
        """Temperature in K: the one asked for; the potential energy of the first structure in eV."""
        self.hottest = max(HOTTEST_K, HOTTEST_FACTOR * temperature)
        self.largest = max(LARGEST_ATOM_ENERGY, 100.0 * BOLTZMANN * temperature)
        self.degrees_of_freedom = degrees_of_freedom
        self.reference_energy = reference_energy

    def check(self, atoms: Atoms) -> None:
        """Raise BlowUp if the last step gave NaN, an exploding temperature or energy, or one atom gone wild."""
        energy = float(atoms.get_potential_energy())
        momenta = atoms.get_momenta()
        kinetic = 0.5 * (momenta**2).sum(1) / atoms.get_masses()
        if not (np.isfinite(energy) and np.isfinite(kinetic).all() and np.isfinite(atoms.positions).all()):
            raise BlowUp("energy, positions or velocities became NaN or infinite")
        hot = temperature(float(kinetic.sum()), self.degrees_of_freedom)
        if hot > self.hottest:
            raise BlowUp(f"the temperature rose to {hot:.0f} K")
        if kinetic.max() > self.largest:
            atom = int(kinetic.argmax())
            raise BlowUp(f"atom {atom} ({atoms.symbols[atom]}) gained {kinetic[atom]:.0f} eV of kinetic energy")
        change = (energy - self.reference_energy) / len(atoms)
        if abs(change) > self.largest:
            raise BlowUp(f"the potential energy changed by {change:.0f} eV per atom")


def temperature(kinetic_energy: float, degrees_of_freedom: int) -> float:
    """T = 2 E_kin / (n k_B) in K, from eV; 0 where nothing can move."""
    return 2.0 * kinetic_energy / (degrees_of_freedom * BOLTZMANN) if degrees_of_freedom else 0.0


def refusals() -> tuple[type[Exception], ...]:
    """Errors by which calculators refuse a structure: atoms on one another, NaN, unknown elements, a charge."""
    from ase.calculators.calculator import CalculatorError

    return ValueError, ArithmeticError, CalculatorError
