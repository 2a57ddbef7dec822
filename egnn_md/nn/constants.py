"""Constants that a module keeps exact in float64, whatever precision it computes in."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn


class WithConstants(nn.Module):
    """A module with constants: buffers that no checkpoint holds, rounded from float64 to the module's precision.

    They are made of the exact values again whenever precision or device change, so that neither the default dtype of
    the program around nor a detour over another precision leaves a trace. Tables are rounded to float32 first, as
    weights are: a network is the same function in either precision.
    """

    def __init__(self) -> None:
        super().__init__()
        self._exact: dict[str, Tensor] = {}

    def constant(self, name: str, values: Any, *, rounded: bool = True) -> None:
        """Register `values` (numbers, or a float64 tensor) as the buffer `name`; `rounded` to float32."""
        exact = torch.as_tensor(values, dtype=torch.float64)
        exact = exact.float().double() if rounded else exact
        self._exact[name] = exact.to("cpu") if not exact.is_meta else exact
        self.register_buffer(name, exact.to(torch.get_default_dtype()), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, exact in self._exact.items():
            buffer = getattr(self, name)
            if not buffer.is_meta and not exact.is_meta:
                setattr(self, name, exact.to(buffer))
        return self
