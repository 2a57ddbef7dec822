"""Bounds of the settings of every model, checked before anything is allocated: a file may say whatever it likes."""

from __future__ import annotations

import math
from typing import Any, Final

LARGEST: Final = {
    "hidden_dim": 4096,
    "message_dim": 4096,
    "node_dim": 4096,
    "embedding_dim": 4096,
    "n_vectors": 4096,
    "n_tensors": 4096,
    "n_radial": 4096,
    "n_layers": 100,
}
"""Of each size: more than any sensible model has, and little enough to be made in no time."""

OPTIONAL: Final = ("n_tensors",)
"""Sizes that may be 0."""
DERIVED: Final = ("node_dim",)
"""Sizes that may be None."""


def check_sizes(config: Any) -> None:
    """Raise ValueError unless each size of `LARGEST` that the configuration has is a whole number within its bound."""
    for name, largest in LARGEST.items():
        size, smallest = getattr(config, name, 1), 0 if name in OPTIONAL else 1
        if size is None and name in DERIVED:
            continue
        if type(size) is not int or not smallest <= size <= largest:
            raise ValueError(f"{name} must be a whole number from {smallest} to {largest}, not {size!r}")


def check_positive(config: Any, *names: str) -> None:
    """Raise ValueError unless these settings are positive, finite numbers."""
    for name in names:
        value = getattr(config, name)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number, not {value!r}")
