"""Devices and precisions by name: what is known, and one refusal of all else."""

from __future__ import annotations

from typing import Final

import torch

DTYPES: Final = {"float64": torch.float64, "float32": torch.float32}
"""Precisions that networks come in, by name."""


class OptionError(ValueError):
    """A device or a precision that cannot be had; the message says what can."""


def parse_device(device: str | torch.device) -> torch.device:
    """cpu, cuda or cuda:1. Raises OptionError for others, and for a GPU that torch does not see."""
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(f"unknown device {device!r}: use 'cpu' or 'cuda'") from error
    if parsed.type not in ("cpu", "cuda"):
        raise OptionError(f"unknown device {str(device)!r}: use 'cpu' or 'cuda'")
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device {str(device)!r} asked for, but torch sees no CUDA device here: use device 'cpu'")
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"device {str(device)!r} asked for, but torch sees {torch.cuda.device_count()} of them here")
    return parsed


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """float64 or float32, or torch's own. Raises OptionError for others."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise OptionError(f"unknown dtype {str(dtype)!r}: use 'float64' or 'float32'")
    return DTYPES[name]
