"""Kinetic energy by kind of motion and by element, as temperatures: what a rollout that loses equipartition shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.elements import symbol
from egnn_md.chemistry.units import BOLTZMANN

FloatArray = NDArray[np.float64]


def by_motion(masses: FloatArray, positions: FloatArray, momenta: FloatArray) -> dict[str, float]:
    """Temperatures (K) of a molecule's translation, rotation and internal motion, NaN for kinds that it does not have.

    masses (n_atoms,) amu; positions and momenta (n_atoms, 3), Å and ase's units. Two degrees of freedom rotate in a
    linear molecule, three in others.
    """
    total = 0.5 * float((momenta**2 / masses[:, None]).sum())
    drift = momenta.sum(0) / masses.sum()
    translation = 0.5 * float(masses.sum() * (drift**2).sum())
    centred = positions - masses @ positions / masses.sum()
    angular = np.cross(centred, momenta - masses[:, None] * drift).sum(0)
    inertia = np.einsum("i,ij,ik->jk", masses, centred, centred)
    moments, axes = np.linalg.eigh(np.trace(inertia) * np.eye(3) - inertia)
    turning = moments > 1e-6 * max(float(moments.max()), 1e-12)
    rotation = 0.5 * float(((axes.T @ angular)[turning] ** 2 / moments[turning]).sum())
    n_rotations = int(turning.sum())
    kinds = {
        "translation": (translation, 3),
        "rotation": (rotation, n_rotations),
        "internal": (total - translation - rotation, 3 * len(masses) - 3 - n_rotations),
    }
    return {name: 2.0 * energy / (n * BOLTZMANN) if n else float("nan") for name, (energy, n) in kinds.items()}


def by_element(numbers: NDArray[np.int64], masses: FloatArray, momenta: FloatArray) -> dict[str, float]:
    """Temperature (K) of each element's atoms, by symbol; nothing held fixed."""
    of_atom = (momenta**2).sum(1) / (3.0 * BOLTZMANN * masses)
    return {symbol(int(z)): float(of_atom[numbers == z].mean()) for z in np.unique(numbers)}
