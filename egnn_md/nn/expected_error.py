"""What the extrapolation signal means in eV/Å."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FloatArray = NDArray[np.float64]
EDGES: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.3, 2.0, 4.0)
"""Between these signals atoms are taken together."""
LARGEST: Final = 10.0
"""eV/Å: what an atom's error counts at most: beyond, all is wrong alike, and one atom must not speak for the rest."""
FEWEST: Final = 30
"""Atoms that a mean is worth something of; fewer join those below them."""


class ExpectedError(nn.Module):
    """Extrapolation signal -> mean absolute error of a force component that atoms with such a signal had, on structures
    that training did not see: never less for a larger signal. NaN until `fit`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.full((2, len(EDGES) + 1), torch.nan))
        self.table: Tensor
        """Signals, and errors in eV/Å."""

    def forward(self, extrapolation: float) -> float:
        """eV/Å. Below the first signal of the table and above the last, the errors there."""
        signals, errors = self.table.double().cpu().numpy()
        return float(np.interp(extrapolation, signals, errors)) if np.isfinite(errors).all() else math.nan

    def fit(self, extrapolation: FloatArray, errors: FloatArray) -> None:
        """Signals (n,) and errors (n,) eV/Å of atoms held out; with fewer than `FEWEST` there is no table."""
        known = np.isfinite(extrapolation) & np.isfinite(errors)
        extrapolation, errors = extrapolation[known], errors[known].clip(max=LARGEST)
        if len(errors) < FEWEST:
            self.table.fill_(torch.nan)
            return
        place = np.digitize(extrapolation, EDGES)
        rows: list[list[float]] = []  # signal, error, number of atoms
        for k in range(len(EDGES) + 1):
            chosen = place == k
            if not chosen.any():
                continue
            row = [float(np.median(extrapolation[chosen])), float(errors[chosen].mean()), float(chosen.sum())]
            while rows and (row[2] < FEWEST or rows[-1][2] < FEWEST or row[1] < rows[-1][1]):
                signal, error, n = rows.pop()
                total = n + row[2]
                row = [(signal * n + row[0] * row[2]) / total, (error * n + row[1] * row[2]) / total, total]
            rows.append(row)
        rows += [rows[-1]] * (len(EDGES) + 1 - len(rows))
        self.table.copy_(torch.tensor(rows, dtype=torch.float64)[:, :2].T)
