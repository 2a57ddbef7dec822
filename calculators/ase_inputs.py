"""What a potential's answer depends on in an `ase.Atoms`: a snapshot, what has changed since, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms

from egnn_md.chemistry.structures import NEUTRAL


class AtomsInputs:
    """All that the energy depends on. Making it refuses what a neutral closed-shell model cannot describe.

    Arrays are kept as bytes: copying and comparing those is several times cheaper than calls of numpy are between
    two calls of a network.

    Raises ValueError for no atoms, a charge (atoms.info["charge"] or initial charges that do not add up to zero) and
    an open shell (atoms.info["spin"], the multiplicity, other than 1, or any initial magnetic moment).
    """

    def __init__(self, atoms: Atoms) -> None:
        arrays = atoms.arrays
        self.positions = arrays["positions"].tobytes()
        self.numbers = arrays["numbers"].tobytes()
        self.cell = atoms.cell.array.tobytes()
        self.pbc = atoms.pbc.tobytes()
        self.charges = _copy(arrays.get("initial_charges"))
        self.magmoms = _copy(arrays.get("initial_magmoms"))
        self._refuse(atoms.info)

    def _refuse(self, info: dict[str, Any]) -> None:
        if len(self.numbers) == 0:
            raise ValueError("the structure has no atoms")
        if not _is_neutral(info):
            raise ValueError(f"atoms.info['charge'] is {info['charge']}: this model describes neutral structures only")
        if not _is_singlet(info):
            raise ValueError(
                f"atoms.info['spin'] (the multiplicity 2S+1) is {info['spin']}: this model describes closed shells "
                "(multiplicity 1) only"
            )
        if self.charges is not None and not abs(self.charges.sum()) <= NEUTRAL:
            raise ValueError(
                f"the initial charges add up to {self.charges.sum():g} e: this model describes neutral structures "
                "only; if they mean nothing, remove them: atoms.set_initial_charges(None)"
            )
        if self.magmoms is not None and self.magmoms.any():
            raise ValueError(
                "the structure has initial magnetic moments: this model describes closed shells only; if they mean "
                "nothing, remove them: atoms.set_initial_magnetic_moments(None)"
            )

    def changes(self, atoms: Atoms) -> list[str]:
        """What differs in `atoms`, exactly: names from ASE's all_changes, and "charge" and "spin" of atoms.info."""
        arrays, info = atoms.arrays, atoms.info
        same = {
            "positions": _same(self.positions, arrays["positions"]),
            "numbers": _same(self.numbers, arrays["numbers"]),
            "cell": _same(self.cell, atoms.cell.array),
            "pbc": _same(self.pbc, atoms.pbc),
            "initial_charges": _same_or_zero(self.charges, arrays.get("initial_charges")),
            "initial_magmoms": _same_or_zero(self.magmoms, arrays.get("initial_magmoms")),
            "charge": _is_neutral(info),  # what is kept here is neutral and a singlet
            "spin": _is_singlet(info),
        }
        return [name for name, equal in same.items() if not equal]


def _copy(values: Any) -> Any:
    return None if values is None else np.array(values)


def _same(kept: bytes, values: Any) -> bool:
    """Equal bytes, or equal numbers (0.0 and -0.0 are); NaN equals nothing."""
    if kept == values.tobytes():
        return True
    return len(kept) == values.nbytes and bool((np.frombuffer(kept, values.dtype) == values.ravel()).all())


def _same_or_zero(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b or not np.any(a if b is None else b)
    return bool(np.array_equal(a, b))


def _is_neutral(info: dict[str, Any]) -> bool:
    return "charge" not in info or _is_number(info["charge"], 0.0)


def _is_singlet(info: dict[str, Any]) -> bool:
    return "spin" not in info or _is_number(info["spin"], 1.0)


def _is_number(value: Any, expected: float) -> bool:
    """Whether a value from atoms.info is this number, whatever its type; None says nothing."""
    if value is None:
        return True
    try:
        return float(value) == expected
    except (TypeError, ValueError):
        return False
