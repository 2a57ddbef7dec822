"""Second derivatives of the energy from its forces: what vibrations and searches for saddle points start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

STEP: Final = 0.001
"""Å; see `finite_difference_hessian`."""
ATOMS_AT_ONCE: Final = 4096
"""Displaced copies are evaluated in batches of about this many atoms."""


def finite_difference_hessian(
    forces_of: Callable[[FloatArray], FloatArray], positions: FloatArray, step: float = STEP
) -> FloatArray:
    """∂²E/∂x_a∂x_b, (3 n_atoms, 3 n_atoms) eV/Å², symmetric; coordinates in the order x, y, z of atom 0, x of atom 1, …

    forces_of: positions of several copies (n_copies, n_atoms, 3) in Å -> their forces, same shape, eV/Å, in float64.
    positions: (n_atoms, 3). step: Å, of the five-point stencil

        H_ab = -[8 F_b(x_a + s) - 8 F_b(x_a - s) - F_b(x_a + 2s) + F_b(x_a - 2s)] / 12 s + O(s⁴),

    12 n_atoms force calls in batches. The two ways of taking each mixed derivative are averaged.
    """
    if not 1e-5 <= step <= 0.1:
        raise ValueError(f"step must lie between 1e-5 and 0.1 Å, not {step}: below, round-off is all that is left")
    n = positions.size
    shifts = np.array([1.0, -1.0, 2.0, -2.0]) * step
    weights = np.array([8.0, -8.0, -1.0, 1.0]) / (12.0 * step)
    hessian = np.empty((n, n))
    at_once = max(1, ATOMS_AT_ONCE // (len(shifts) * len(positions)))
    for first in range(0, n, at_once):
        coordinates = np.arange(first, min(first + at_once, n))
        copies = np.tile(positions.reshape(-1), (len(coordinates), len(shifts), 1))
        copies[np.arange(len(coordinates))[:, None], np.arange(len(shifts)), coordinates[:, None]] += shifts
        forces = forces_of(copies.reshape(-1, *positions.shape))
        hessian[coordinates] = -np.einsum("csb,s->cb", forces.reshape(copies.shape), weights)
    return 0.5 * (hessian + hessian.T)
