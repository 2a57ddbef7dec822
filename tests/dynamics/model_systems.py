"""Calculators whose dynamics is known in closed form."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes


class _Quick(Calculator):
    """Looks for changes by exact comparison: ase's own costs more than these energies."""

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        known = self.atoms
        same = known is not None and (known.positions == atoms.positions).all() and (known.cell == atoms.cell).all()
        return [] if same else list(all_changes)


class Wells(_Quick):
    """Every atom in a harmonic well of its own at `centres`: E = ½ k Σ |x - x0|², k in eV/Å². k = 0: an ideal gas."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces", "stress"]

    def __init__(self, centres: Any, k: float) -> None:
        super().__init__()
        self.centres, self.k, self.calls = np.array(centres, dtype=float), k, 0

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        away = self.atoms.positions - self.centres
        self.results = {
            "energy": 0.5 * self.k * float((away**2).sum()),
            "forces": -self.k * away,
            "stress": np.zeros(6),
            "extrapolation": 0.5,
        }


class Springs(_Quick):
    """A spring between every two atoms: E = ½ k Σ (d - d0)². Translation and rotation cost nothing."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def __init__(self, atoms: Atoms, k: float) -> None:
        super().__init__()
        self.k, self.lengths = k, atoms.get_all_distances()

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        vectors = self.atoms.positions[None] - self.atoms.positions[:, None]
        distances = np.linalg.norm(vectors, axis=2) + np.eye(len(vectors))
        stretch = distances - self.lengths
        np.fill_diagonal(stretch, 0.0)
        self.results = {
            "energy": 0.25 * self.k * float((stretch**2).sum()),
            "forces": self.k * ((stretch / distances)[..., None] * vectors).sum(1),
        }


class Failing(Wells):
    """Wells that do something else from the n-th call on: `fail` gets the results and may change them or raise."""

    def __init__(self, centres: Any, k: float, after: int, fail: Any) -> None:
        super().__init__(centres, k)
        self.after, self.fail = after, fail

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        if self.calls > self.after:
            self.fail(self.results)


def grid(n: int = 3, spacing: float = 3.0, symbol: str = "Ar", periodic: bool = False) -> Atoms:
    """n³ atoms on a cubic grid; Å."""
    places = spacing * np.array([(i, j, k) for i in range(n) for j in range(n) for k in range(n)], dtype=float)
    return Atoms(f"{symbol}{n**3}", places, cell=3 * [n * spacing] if periodic else None, pbc=periodic)
