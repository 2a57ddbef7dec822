"""What a potential's answer depends on in an `ase.Atoms`: a snapshot, what has changed since, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ase import Atoms

from egnn_md.chemistry.structures import CHARGE_NAMES, NEUTRAL, SPIN_NAMES, said_in


class AtomsInputs:
    """All that the energy depends on. Making it refuses what a closed-shell model cannot describe.

    Arrays are kept as bytes: copying and comparing those is several times cheaper than calls of numpy are between
    two calls of a network.

    Raises ValueError for no atoms, an open shell (2S+1 other than 1 in atoms.info, by one of `SPIN_NAMES`, or any
    initial magnetic moment) and, unless the model knows `ions`, a charge (in atoms.info, by one of `CHARGE_NAMES`, or
    initial charges that do not add up to zero).
    """

    def __init__(self, atoms: Atoms, *, ions: bool = False) -> None:
        arrays = atoms.arrays
        self.positions = arrays["positions"].tobytes()
        self.numbers = arrays["numbers"].tobytes()
        self.cell = atoms.cell.array.tobytes()
        self.pbc = atoms.pbc.tobytes()
        self.charges = _copy(arrays.get("initial_charges"))
        self.magmoms = _copy(arrays.get("initial_magmoms"))
        self.charge = _charge(atoms.info, self.charges)
        """e, as the user says it; None if nothing is said."""
        self._silence = None if ions else 0.0  # to a neutral model, saying nothing is saying 0
        self._refuse(atoms.info, ions)

    def _refuse(self, info: dict[str, Any], ions: bool) -> None:
        if len(self.numbers) == 0:
            raise ValueError("the structure has no atoms")
        if self.charge is not None and not abs(self.charge) < math.inf:
            raise ValueError(f"the charge is {self.charge}, no number: atoms.info['charge'] is a number of e")
        if self.charge and not ions:
            if not said_in(info, CHARGE_NAMES):
                raise ValueError(
                    f"the initial charges add up to {self.charge:g} e: this model describes neutral structures only; "
                    "if they mean nothing, remove them: atoms.set_initial_charges(None)"
                )
            raise ValueError(f"atoms.info['charge'] is {self.charge:g} e: this model describes neutral structures only")
        if not _is_singlet(info):
            said = " and ".join(map(str, said_in(info, SPIN_NAMES)))
            raise ValueError(
                f"the multiplicity 2S+1 is {said} (spin in atoms.info): this model describes closed shells "
                "(multiplicity 1) only"
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
            "charge": self._heard(_charge(info, self.charges)) == self._heard(self.charge),
            "spin": _is_singlet(info),  # what is kept here is one
        }
        return [name for name, equal in same.items() if not equal]

    def _heard(self, charge: float | None) -> float | None:
        return self._silence if charge is None else charge


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


def _charge(info: dict[str, Any], initial: Any) -> float | None:
    """The charge that is said, e: by info, or by initial charges that are not all zero. NaN for no number."""
    said = said_in(info, CHARGE_NAMES)
    if not said:
        if initial is None or not initial.any():
            return None
        total = float(initial.sum())
        return 0.0 if abs(total) <= NEUTRAL else total
    try:
        return next((float(charge) for charge in said if float(charge)), 0.0)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _is_singlet(info: dict[str, Any]) -> bool:
    """Whether a spin or multiplicity from atoms.info is 1, whatever its type; None says nothing."""
    try:
        return all(float(spin) == 1.0 for spin in said_in(info, SPIN_NAMES))
    except (TypeError, ValueError, OverflowError):
        return False
