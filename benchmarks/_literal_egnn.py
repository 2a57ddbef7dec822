"""The velocity EGNN of arXiv 2102.09844, eqs. 3, 5, 6 and 7, as they are written: every edge gets the concatenation of
its inputs. Written to compare with; the weights come from our own model.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from egnn_md.models.propagator import VelocityEGNN, all_pairs
from egnn_md.nn.egcl import EGCL


class LiteralEGNN(nn.Module):
    """Positions, velocities, couplings -> positions, as `VelocityEGNN`."""

    def __init__(self, hidden_dim: int, n_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(1, hidden_dim)
        self.layers = nn.ModuleList(LiteralLayer(hidden_dim) for _ in range(n_layers))

    @staticmethod
    def like(model: VelocityEGNN) -> LiteralEGNN:
        """With the weights of `model`."""
        literal = LiteralEGNN(model.config.hidden_dim, model.config.n_layers)
        literal.embedding.load_state_dict(model.network.embedding.state_dict())
        for mine, theirs in zip(literal.layers, model.network.layers, strict=True):
            cast(LiteralLayer, mine).take(cast(EGCL, theirs))
        return literal

    def forward(self, positions: Tensor, velocities: Tensor, couplings: Tensor) -> Tensor:
        n_systems, n, n_dim = positions.shape
        row, column = all_pairs(n_systems, n)
        x, v = positions.reshape(-1, n_dim), velocities.reshape(-1, n_dim)
        squared = ((x[row] - x[column]) ** 2).sum(1, keepdim=True)
        attributes = torch.cat([couplings.reshape(-1, 1)[row * n + column % n], squared], 1)
        h = self.embedding((v**2).sum(1, keepdim=True).sqrt())
        for layer in self.layers:
            h, x = layer(h, x, v, row, column, attributes)
        return x.reshape(positions.shape)


class LiteralLayer(nn.Module):
    """One layer, with velocities (eq. 7) or without (eq. 4)."""

    def __init__(self, hidden_dim: int, edge_dim: int = 2, velocities: bool = True) -> None:
        super().__init__()
        width, inputs = hidden_dim, 2 * hidden_dim + 1 + edge_dim
        self.edge = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.node = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
        self.coordinate = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1, bias=False))
        self.velocity = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)) if velocities else None

    def take(self, layer: EGCL) -> None:
        """Take the weights of one of our layers, its split linear map put together again."""
        first, second = cast(nn.Linear, self.edge[0]), cast(nn.Linear, self.edge[2])
        parts = layer.edge_model
        with torch.no_grad():
            first.weight.copy_(torch.cat([parts.source.weight, parts.target.weight, parts.pair.weight], 1))
            first.bias.copy_(parts.source.bias)
        second.load_state_dict(parts.output.state_dict())
        for mine, theirs in (
            (self.node, layer.node_model),  # the last layer of ours may have none: nobody reads what it would give
            (self.coordinate, layer.coordinate_model),
            (self.velocity, layer.velocity_model),
        ):
            if mine is not None and theirs is not None:
                mine.load_state_dict(cast(nn.Sequential, theirs).state_dict())

    def forward(
        self, h: Tensor, x: Tensor, v: Tensor | None, row: Tensor, column: Tensor, attributes: Tensor
    ) -> tuple[Tensor, Tensor]:
        difference = x[row] - x[column]
        radial = (difference**2).sum(1, keepdim=True)
        message = self.edge(torch.cat([h[row], h[column], radial, attributes], 1))
        shift = segment_mean(difference * self.coordinate(message), row, len(x))
        moved = x + shift if self.velocity is None else x + self.velocity(h) * v + shift
        total = torch.zeros_like(h).scatter_add_(0, row[:, None].expand_as(message), message)
        return h + self.node(torch.cat([h, total], 1)), moved


def segment_mean(values: Tensor, index: Tensor, n: int) -> Tensor:
    """Mean of the rows with the same index."""
    expanded = index[:, None].expand_as(values)
    zeros = values.new_zeros(n, values.shape[1])
    counts = zeros.scatter_add(0, expanded, torch.ones_like(values))
    return zeros.scatter_add(0, expanded, values) / counts.clamp(min=1)
