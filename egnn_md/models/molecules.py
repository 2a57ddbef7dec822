"""Which molecule a structure is: its formula and who is bound to whom, whatever the order of its atoms."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egnn_md.elements import BOUND, COVALENT_RADII
from egnn_md.models.structures import Structure

ROUNDS = 6


def bond_pattern(atomic_numbers: NDArray[np.int64], positions: NDArray[np.floating[Any]]) -> str:
    """'C2H6O:1f2a3b4c': Hill's formula, and a hash of the bonds by Weisfeiler and Lehman's refinement.

    atomic_numbers (n_atoms,), positions (n_atoms, 3) Å. Isomers differ, mirror images and conformers do not.
    """
    labels = environments(atomic_numbers, positions)
    formula = Structure(atomic_numbers, positions.astype(np.float64)).formula()
    return f"{formula}:{_digest(','.join(sorted(labels)))[:8]}"


def environments(atomic_numbers: NDArray[np.int64], positions: NDArray[np.floating[Any]]) -> list[str]:
    """A label for each atom, the same for atoms that bonds do not tell apart: the three hydrogens of a methyl group."""
    radii = np.array(COVALENT_RADII)[atomic_numbers]
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    bound = distances < BOUND * (radii[:, None] + radii)
    np.fill_diagonal(bound, False)
    labels = [str(z) for z in atomic_numbers.tolist()]
    for _ in range(ROUNDS):
        around = [sorted(labels[j] for j in np.flatnonzero(row)) for row in bound]
        labels = [_digest(",".join([own, *others])) for own, others in zip(labels, around, strict=True)]
    return labels


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
