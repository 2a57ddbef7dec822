"""Laws that every potential obeys, whatever it has learned: a suite for models of ours and of yours.

Each law is a number: how far the potential is from it on random structures of its own elements, relative to the size
of its forces or energies. What is asked for is a `ForceField`: a `Predictor` is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.elements import COVALENT_RADII
from egnn_md.chemistry.units import COULOMB
from egnn_md.predict import ChargeError, Geometry

FloatArray = NDArray[np.float64]
TOLERANCES: Final = {"float64": 1e-7, "float32": 2e-3}
"""Largest deviation, by the precision of the potential."""
STEP: Final = 1e-3
"""Å, of finite differences."""
FAR: Final = 1e6
"""Å: where of charged molecules nothing but their charges is left."""
TRIES: Final = 50
"""Random structures whose charge the model may fail to tell before one more failure is an error."""
WATER: Final = Geometry(np.array([[0.0, 0.0, 0.119], [0.0, 0.763, -0.477], [0.0, -0.763, -0.477]]), np.array([8, 1, 1]))
"""Å."""


class ForceField(Protocol):
    """What the suite needs; `egnn_md.predict.Predictor` has it."""

    cutoff: float
    """Å: beyond it nothing acts."""
    elements: tuple[int, ...]
    """Atomic numbers it knows."""

    def __call__(
        self,
        positions: FloatArray,
        atomic_numbers: NDArray[np.int64],
        cell: FloatArray,
        pbc: NDArray[np.bool_],
        charge: float | None = None,
        *,
        stress: bool,
    ) -> Any:
        """A result with `energy` (eV), `forces` (n_atoms, 3) eV/Å and `stress` (3, 3) eV/Å³ or None; `charge` (e) if
        it has charges.
        """

    def many(self, structures: Sequence[Geometry], *, stress: bool) -> Sequence[Any]:
        """The same for several structures in one call."""


@dataclass(frozen=True)
class LawResult:
    """How well a potential obeys one law."""

    law: str
    deviation: float
    """Of forces and stress relative to their largest component; of energies, eV, to the largest force above 1 eV/Å."""
    tolerance: float

    @property
    def holds(self) -> bool:
        """False for NaN too."""
        return self.deviation <= self.tolerance


def check_laws(model: ForceField, *, precision: str = "float64", seed: int = 0) -> list[LawResult]:
    """Put a potential through all laws, on a random molecule and a random crystal of its elements (others, if the model
    cannot tell their charge).

    precision: "float64" or "float32", of the potential. Raises ValueError for another.
    """
    if precision not in TOLERANCES:
        raise ValueError(f"precision is 'float64' or 'float32', not {precision!r}")
    for attempt in range(TRIES):
        with suppress(ChargeError):
            return _checked(model, TOLERANCES[precision], np.random.default_rng(seed + attempt))
    return _checked(model, TOLERANCES[precision], np.random.default_rng(seed + TRIES))


def _checked(model: ForceField, tolerance: float, rng: np.random.Generator) -> list[LawResult]:
    systems = {"molecule": _molecule(model.elements, rng), "crystal": _crystal(model.elements, rng)}
    results = []
    for law, function in LAWS.items():
        for name, structure in systems.items():
            deviation = function(model, structure, rng)
            if deviation is not None:
                results.append(LawResult(f"{law} ({name})", deviation, tolerance))
    return results


def _molecule(elements: Sequence[int], rng: np.random.Generator, n_atoms: int = 8) -> Geometry:
    """Atoms at about bond lengths from each other, one after another."""
    numbers = rng.choice(np.array(elements, np.int64), n_atoms)
    radii = np.array(COVALENT_RADII)[numbers]
    positions = np.zeros((1, 3))
    while len(positions) < n_atoms:
        k, near = len(positions), rng.integers(len(positions))
        direction = rng.normal(size=3)
        length = (radii[k] + radii[near]) * rng.uniform(1.0, 1.2)
        place = positions[near] + direction / np.linalg.norm(direction) * length
        if (np.linalg.norm(positions - place, axis=1) > 0.95 * (radii[:k] + radii[k])).all():
            positions = np.concatenate([positions, place[None]])
    return Geometry(positions, numbers)


def _crystal(elements: Sequence[int], rng: np.random.Generator) -> Geometry:
    """A molecule in a triclinic cell, smaller than twice a usual cutoff."""
    molecule = _molecule(elements, rng, 6)
    size = float(np.ptp(molecule.positions, axis=0).max()) + 3.5
    cell = size * np.eye(3) + rng.uniform(-0.5, 0.5, (3, 3))
    return Geometry(molecule.positions, molecule.atomic_numbers, cell, np.ones(3, np.bool_))


def _ask(model: ForceField, structure: Geometry, *, stress: bool = False) -> Any:
    return model(*structure, stress=stress)


def _relative(found: FloatArray, expected: FloatArray) -> float:
    return float(np.abs(np.asarray(found) - expected).max() / max(float(np.abs(expected).max()), 1e-12))


def _orthogonal(rng: np.random.Generator) -> FloatArray:
    """A rotation, or one with a reflection."""
    q: FloatArray = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return q


def _equivariance(model: ForceField, structure: Geometry, rng: np.random.Generator) -> float:
    """Turned, reflected and moved: forces turn along, the energy stays."""
    q = _orthogonal(rng)
    before = _ask(model, structure)
    moved = structure._replace(positions=structure.positions @ q.T + 1.7, cell=structure.cell @ q.T)
    after = _ask(model, moved)
    energy = abs(float(after.energy - before.energy)) / max(1.0, float(np.abs(before.forces).max()))
    return max(energy, _relative(after.forces, before.forces @ q.T))


def _permutation(model: ForceField, structure: Geometry, rng: np.random.Generator) -> float:
    order = rng.permutation(len(structure.atomic_numbers))
    shuffled = structure._replace(positions=structure.positions[order], atomic_numbers=structure.atomic_numbers[order])
    return _relative(_ask(model, shuffled).forces, _ask(model, structure).forces[order])


def _gradient(model: ForceField, structure: Geometry, rng: np.random.Generator) -> float:
    """Forces against a five-point stencil of the energy along random directions."""
    forces, worst = _ask(model, structure).forces, 0.0
    for _ in range(4):
        direction = rng.normal(size=structure.positions.shape)
        direction /= np.linalg.norm(direction)

        def energy(size: float, direction: FloatArray = direction) -> float:
            moved = structure._replace(positions=structure.positions + size * direction)
            return float(_ask(model, moved).energy)

        slope = _slope(energy)
        worst = max(worst, abs(slope + float((forces * direction).sum())))
    return worst / max(float(np.abs(forces).max()), 1e-12)


def _slope(energy: Callable[[float], float], step: float = STEP) -> float:
    near, far = (energy(k * step) - energy(-k * step) for k in (1, 2))
    return (8.0 * near - far) / (12.0 * step)


def _strain(model: ForceField, structure: Geometry, rng: np.random.Generator) -> float | None:
    """Stress against the energy of strained cells."""
    if not structure.pbc.all():
        return None
    stress, volume = _ask(model, structure, stress=True).stress, abs(float(np.linalg.det(structure.cell)))
    strain = rng.normal(size=(3, 3))
    strain = 0.5 * (strain + strain.T)

    def energy(size: float) -> float:
        deformed = np.eye(3) + size * strain
        moved = structure._replace(positions=structure.positions @ deformed, cell=structure.cell @ deformed)
        return float(_ask(model, moved).energy)

    return abs(_slope(energy, 1e-4) / volume - float((stress * strain).sum())) / max(float(np.abs(stress).max()), 1e-12)


def _batches(model: ForceField, structure: Geometry, rng: np.random.Generator) -> float:
    """Several in one call as one by one."""
    shape = (2, *structure.positions.shape)
    moved = [structure._replace(positions=structure.positions + 0.05 * shift) for shift in rng.normal(size=shape)]
    alone = [_ask(model, one) for one in (structure, *moved)]
    together = model.many([structure, *moved], stress=False)
    return max(_relative(one.forces, other.forces) for one, other in zip(together, alone, strict=True))


def _wrapping(model: ForceField, structure: Geometry, rng: np.random.Generator) -> float | None:
    """Atoms moved by whole cell vectors."""
    if not structure.pbc.any():
        return None
    shifts = rng.integers(-2, 3, structure.positions.shape) @ structure.cell
    return _relative(
        _ask(model, structure._replace(positions=structure.positions + shifts)).forces, _ask(model, structure).forces
    )


def _distance(model: ForceField, structure: Geometry, rng: np.random.Generator) -> float | None:
    """Two molecules far apart: the sum of the energies, and what two charges do at that distance. Of a model that
    counts electrons it is a law where surroundings show the charge: of water.
    """
    if structure.pbc.any():
        return None
    alone = _ask(model, structure)
    if getattr(alone, "charge", None) != getattr(alone, "shown_charge", None):
        if not {1, 8} <= set(model.elements):
            return None
        structure = WATER
        alone = _ask(model, structure)
    charge = getattr(alone, "charge", None)
    distance = 3.0 * (2.0 * model.cutoff + float(np.ptp(structure.positions, axis=0).max()))
    distance, coulomb = (distance, 0.0) if charge is None else (FAR, COULOMB * charge**2 / FAR)
    both = Geometry(
        np.concatenate([structure.positions, structure.positions @ _orthogonal(rng).T + [distance, 0.0, 0.0]]),
        np.concatenate([structure.atomic_numbers] * 2),
    )
    apart = abs(float(_ask(model, both).energy) - 2.0 * float(alone.energy) - coulomb)
    return apart / max(1.0, float(np.abs(alone.forces).max()))


def _cutoff(model: ForceField, structure: Geometry, rng: np.random.Generator) -> float | None:
    """An atom crosses the cutoff: no step in its force, extrapolated from either side."""
    if structure.pbc.any():
        return None
    numbers = structure.atomic_numbers[:2]
    scale = float(np.abs(_ask(model, structure).forces).max())

    def force(distance: float) -> FloatArray:
        pair = Geometry(np.array([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]]), numbers)
        forces: FloatArray = _ask(model, pair).forces
        return forces

    inside, outside = (1.5 * force(model.cutoff + h) - 0.5 * force(model.cutoff + 3.0 * h) for h in (-1e-4, 1e-4))
    return float(np.abs(outside - inside).max()) / max(scale, 1e-12)


def _momentum(model: ForceField, structure: Geometry, rng: np.random.Generator) -> float:
    """Forces add up to zero, and so do torques where nothing is periodic."""
    forces = _ask(model, structure).forces
    sums = [forces.sum(0)]
    if not structure.pbc.any():
        sums.append(np.cross(structure.positions - structure.positions.mean(0), forces).sum(0))
    return float(np.abs(np.concatenate(sums)).max() / max(float(np.abs(forces).max()), 1e-12))


LAWS: Final[dict[str, Callable[[ForceField, Geometry, np.random.Generator], float | None]]] = {
    "forces and energy turn with the structure": _equivariance,
    "atoms have no order": _permutation,
    "forces are minus the gradient": _gradient,
    "stress is the derivative by strain": _strain,
    "a batch is its structures": _batches,
    "wrapped atoms are the same atoms": _wrapping,
    "what is far apart adds up": _distance,
    "no step at the cutoff": _cutoff,
    "momenta are conserved": _momentum,
}
"""Name -> deviation of a model on a structure; None where the law says nothing about it."""


def report(results: Sequence[LawResult]) -> Iterator[list[str]]:
    """Rows of a table: law, deviation, tolerance, whether it holds."""
    for result in results:
        yield [result.law, f"{result.deviation:.1e}", f"{result.tolerance:.0e}", "yes" if result.holds else "NO"]
