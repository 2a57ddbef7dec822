"""Symmetric matrices of rank 2, packed: n (n + 1) / 2 numbers whose scalar products are those of the matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from egnn_md.nn.constants import WithConstants


class SymmetricSquare(WithConstants):
    """a -> a ⊗ a of each channel: (..., n_dim, k) -> (..., n_dim (n_dim + 1) / 2, k), off-diagonals times √2."""

    def __init__(self, n_dim: int) -> None:
        super().__init__()
        rows, columns = torch.triu_indices(n_dim, n_dim)
        self.n_dim = n_dim
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        diagonal = (rows == columns).double().unsqueeze(-1)
        self.constant("scale", diagonal + (1.0 - diagonal) * math.sqrt(2.0), rounded=False)  # else what turns would not
        self.constant("trace", diagonal / n_dim, rounded=False)
        self.rows: Tensor
        self.columns: Tensor
        self.scale: Tensor
        self.trace: Tensor
        """(n_components, 1): of a unit vector's square, what is left out to make it traceless."""

    def forward(self, a: Tensor) -> Tensor:
        return a.index_select(-2, self.rows) * a.index_select(-2, self.columns) * self.scale

    def vjp(self, by: Tensor, a: Tensor) -> Tensor:
        """∂E by a from ∂E by its square."""
        scaled = by * self.scale
        by_a = torch.zeros_like(a.expand(*by.shape[:-2], *a.shape[-2:]))
        by_a = by_a.index_add(-2, self.rows, scaled * a.index_select(-2, self.columns))
        return by_a.index_add(-2, self.columns, scaled * a.index_select(-2, self.rows))
