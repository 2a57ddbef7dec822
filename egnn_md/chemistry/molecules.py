"""Which molecule a structure is: its formula and who is bound to whom, whatever the order of its atoms."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.elements import BOUND, COVALENT_RADII, symbol

ROUNDS = 6


def formula(atomic_numbers: NDArray[np.int64]) -> str:
    """Hill's formula of atoms (n_atoms,): carbon, hydrogen, the rest by the alphabet; C2H6O."""
    counts = Counter(symbol(z) for z in atomic_numbers.tolist())
    first = [name for name in ("C", "H") if name in counts] if "C" in counts else []
    order = first + sorted(counts.keys() - set(first))
    return "".join(f"{name}{counts[name] if counts[name] > 1 else ''}" for name in order)


def bonds(atomic_numbers: NDArray[np.int64], positions: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Which atoms are bound to each other, (n_atoms, n_atoms): those nearer than `BOUND` sums of covalent radii.

    atomic_numbers (n_atoms,), positions (n_atoms, 3) Å.
    """
    radii = np.array(COVALENT_RADII)[atomic_numbers]
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    bound: NDArray[np.bool_] = distances < BOUND * (radii[:, None] + radii)
    np.fill_diagonal(bound, False)
    return bound


def bond_pattern(atomic_numbers: NDArray[np.int64], positions: NDArray[np.floating[Any]]) -> str:
    """'C2H6O:1f2a3b4c': Hill's formula, and a hash of the bonds by Weisfeiler and Lehman's refinement.

    atomic_numbers (n_atoms,), positions (n_atoms, 3) Å. Isomers differ, mirror images and conformers do not.
    """
    labels = environments(atomic_numbers, positions)
    return f"{formula(atomic_numbers)}:{_digest(','.join(sorted(labels)))[:8]}"


def surroundings(atomic_numbers: NDArray[np.int64], positions: NDArray[np.floating[Any]]) -> list[str]:
    """What each atom is and what it is bound to, its own element first: 'C(CHHO)' for the carbon of ethanol's CH2.

    atomic_numbers (n_atoms,), positions (n_atoms, 3) Å.
    """
    names, bound = [symbol(z) for z in atomic_numbers.tolist()], bonds(atomic_numbers, positions)
    return [
        f"{name}({''.join(sorted(names[j] for j in np.flatnonzero(row)))})"
        for name, row in zip(names, bound, strict=True)
    ]


def environments(atomic_numbers: NDArray[np.int64], positions: NDArray[np.floating[Any]]) -> list[str]:
    """A label for each atom, the same for atoms that bonds do not tell apart: the three hydrogens of a methyl group."""
    bound = bonds(atomic_numbers, positions)
    labels = [str(z) for z in atomic_numbers.tolist()]
    for _ in range(ROUNDS):
        around = [sorted(labels[j] for j in np.flatnonzero(row)) for row in bound]
        labels = [_digest(",".join([own, *others])) for own, others in zip(labels, around, strict=True)]
    return labels


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
