"""The one warning that a structure is unlike the model's training data, whatever the engine."""

from __future__ import annotations

import warnings
from typing import Final

EXTRAPOLATION_LIMIT: Final = 2.0
"""Warn when an atom's extrapolation signal passes this: 1 is what 99.9 % of the training atoms stay below."""


class ExtrapolationWarning(UserWarning):
    """The structure is unlike the model's training data: its energies and forces may mean nothing."""


def warn_of_extrapolation(value: float, hint: str, stacklevel: int) -> None:
    """Issue an `ExtrapolationWarning` for this value; `hint` says what comes after it."""
    warnings.warn(
        f"the structure is unlike the training data (extrapolation {value:.1f}, limit {EXTRAPOLATION_LIMIT:g}): "
        f"do not trust its energy and forces; {hint}",
        ExtrapolationWarning,
        stacklevel=stacklevel + 1,
    )
