"""What engines are told of a structure whose atoms are on one another: a repulsion, in place of a network's nonsense.

Minimizers overstep. Where a pair is nearer than any that the network has seen, its energy may be anything, 1e64 eV down
included, and an error would end the minimization; a large finite energy and forces that push apart send it back.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.elements import COVALENT_RADII
from egnn_md.neighbors.lists import neighbor_list

FloatArray = NDArray[np.float64]
CROWDED: Final = 0.75
"""Sums of covalent radii: what is nearer explains an absurd energy; bonds are at 1."""
REACH: Final = 1.0
"""Sums of covalent radii, where the repulsion of a pair ends."""
PLATEAU: Final = 1000.0
"""eV by which a crowded structure lies above its atoms."""
STRENGTH: Final = 500.0
"""eV of a pair of atoms at one place: E = STRENGTH (1 - d/d0)², d0 at `REACH`."""


class Repulsion(NamedTuple):
    """Of a crowded structure."""

    energies: FloatArray
    """(n_atoms,) eV beyond the reference energies."""
    forces: FloatArray
    """(n_atoms, 3) eV/Å."""
    stress: FloatArray | None
    """(3, 3) eV/Å³; None where it is not periodic in three directions."""


def repulsion_of(
    positions: FloatArray, atomic_numbers: NDArray[np.int64], cell: FloatArray, pbc: NDArray[np.bool_]
) -> Repulsion | None:
    """Of a structure with a pair nearer than `CROWDED`; None if it has none. Positions (n_atoms, 3), cell (3, 3): Å."""
    radii = np.array(COVALENT_RADII)[atomic_numbers]
    (i, j), shift = neighbor_list(positions, cell, pbc, 2 * REACH * float(radii.max()))
    vectors = positions[j] - positions[i] + (0.0 if shift is None else shift @ cell)
    distances, sums = np.linalg.norm(vectors, axis=1), radii[i] + radii[j]
    if not (distances < CROWDED * sums).any():
        return None
    depth = np.clip(1.0 - distances / (REACH * sums), 0.0, None)
    n_atoms = len(radii)
    energies = np.full(n_atoms, PLATEAU / n_atoms)
    for end in (i, j):
        np.add.at(energies, end, 0.5 * STRENGTH * depth**2)
    slope = -2.0 * STRENGTH * depth / (REACH * sums * np.maximum(distances, 1e-12))
    gradient = slope[:, None] * vectors
    forces = np.zeros((n_atoms, 3))
    np.add.at(forces, i, gradient)
    np.add.at(forces, j, -gradient)
    stress = gradient.T @ vectors / abs(np.linalg.det(cell)) if np.all(pbc) else None
    return Repulsion(energies, forces, stress)
