"""Graph autoencoders: a graph -> a point for each node -> which pairs of nodes are joined.

Satorras, Hoogeboom, Welling (arXiv 2102.09844, section 5.2). Nodes have no features of their own, so that nodes in
symmetric places would get the same embedding; noise from a normal distribution tells them apart. In the EGNN it is the
first positions, which the layers move: the embedding is equivariant, and the decoder reads its distances alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from egnn_md.models.bounds import check_sizes
from egnn_md.nn.egnn import EGNN, one_over_others
from egnn_md.nn.ops import gather, segment_sum
from egnn_md.shown import Shown

DECODER_UNIT: Final = 10.0
"""w and b are learned in this unit, so that one learning rate suits all: they have farther to go than other weights."""
Encoder = Literal["egnn", "gnn", "noise-gnn", "radial-field"]
"""The paper's network and its baselines: without positions, that with noise as its features, without features."""


class GraphInput(NamedTuple):
    """Graphs side by side, with all their pairs of nodes as edges of the network."""

    pairs: Tensor
    """(2, n_pairs) int64: every ordered pair of nodes of each graph."""
    adjacency: Tensor
    """(n_pairs,): 1 where the graph has an edge, else 0."""
    batch: Tensor
    """(n_nodes,) int64: graph of each node."""
    noise: Tensor
    """(n_nodes, embedding_dim), from a normal distribution of width 1."""

    def to(self, device: torch.device | str) -> GraphInput:
        """The same graphs on another device."""
        return GraphInput(*(part.to(device) for part in self))


@dataclass(frozen=True)
class GraphAutoencoderConfig:
    """Settings of `GraphAutoencoder`; defaults are the paper's."""

    encoder: Encoder = "egnn"
    embedding_dim: int = 8
    """K, the dimension of the nodes' space."""
    hidden_dim: int = 64
    n_layers: int = 4
    soft_edges: bool = False
    """Infer which pairs matter, eq. 8; not for "radial-field"."""

    def __post_init__(self) -> None:
        if self.encoder not in get_args(Encoder):
            raise ValueError(f"encoder must be one of {get_args(Encoder)}, not {self.encoder!r}")
        check_sizes(self)
        if self.soft_edges and self.encoder == "radial-field":
            raise ValueError("soft_edges weigh messages, which a radial field does not have")


class GraphAutoencoder(Shown, nn.Module):
    """Edges with probability σ(w |z_i - z_j|² + b), z the embedding.

    A GNN's embedding has no symmetry to keep: as in the authors' code, its decoder has a w for each dimension, of
    either sign, σ(Σ_k w_k (z_ik - z_jk)² + b).
    """

    units: Final = {"length": "of the noise"}

    def __init__(self, config: GraphAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        if config.encoder == "radial-field":
            self.encoder: nn.Module = RadialField(config.hidden_dim, config.n_layers)
        else:
            moves = config.encoder == "egnn"
            sizes = (config.hidden_dim, None if moves else config.embedding_dim, config.n_layers)
            self.encoder = EGNN(1, *sizes, edge_dim=1, update_coordinates=moves, soft_edges=config.soft_edges)
        signs = -torch.ones(config.embedding_dim if config.encoder in ("gnn", "noise-gnn") else 1)
        signs[1::2] = 1.0  # by turns, where there are several
        self.weight = nn.Parameter(0.1 / DECODER_UNIT * signs)  # w
        self.bias = nn.Parameter(torch.full((1,), 1.0 / DECODER_UNIT))  # b

    def encode(self, graphs: GraphInput) -> Tensor:
        """The embedding z, (n_nodes, embedding_dim)."""
        noise, known = graphs.noise, graphs.adjacency.unsqueeze(-1).to(graphs.noise.dtype)
        if self.config.encoder == "radial-field":
            return cast(Tensor, self.encoder(noise, graphs.pairs, known, graphs.batch))
        features = noise[:, :1] if self.config.encoder == "noise-gnn" else noise.new_ones(noise.shape[0], 1)
        moves = self.config.encoder == "egnn"
        positions = noise if moves else noise.new_zeros(noise.shape[0], 1)
        state = self.encoder(features, positions, graphs.pairs, edge_attributes=known, batch=graphs.batch)
        return cast(Tensor, state.positions if moves else state.features)

    def decode(self, embedding: Tensor, pairs: Tensor) -> Tensor:
        """w |z_i - z_j|² + b, (n_pairs,): σ of it is the probability of an edge."""
        difference = gather(embedding, pairs[0]) - gather(embedding, pairs[1])
        return DECODER_UNIT * ((self.weight * difference.square()).sum(-1) + self.bias)

    def forward(self, graphs: GraphInput) -> Tensor:
        """Logits of the edges of all pairs, (n_pairs,)."""
        return self.decode(self.encode(graphs), graphs.pairs)


class RadialField(nn.Module):
    """x_i' = x_i + C Σ_j (x_i - x_j) φ(|x_i - x_j|², a_ij), C = 1/(n - 1): forces along pairs, no features.

    Köhler, Klein, Noé, arXiv 1910.00753, as the paper takes it.
    """

    def __init__(self, hidden_dim: int, n_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(2, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, 1, bias=False))
            for _ in range(n_layers)
        )
        for layer in self.layers:  # as φ_x of an EGCL
            nn.init.xavier_uniform_(cast(nn.Linear, cast(nn.Sequential, layer)[-1]).weight, gain=1e-3)

    def forward(self, positions: Tensor, pairs: Tensor, attributes: Tensor, batch: Tensor) -> Tensor:
        """(n_nodes, n_dim), (2, n_pairs), (n_pairs, 1), (n_nodes,) -> (n_nodes, n_dim)."""
        scale = one_over_others(batch, positions.dtype)
        for layer in self.layers:
            difference = gather(positions, pairs[0]) - gather(positions, pairs[1])
            push = layer(torch.cat([difference.square().sum(-1, keepdim=True), attributes], -1))
            positions = positions + scale * segment_sum(difference * push, pairs[0], positions.shape[0])
        return positions
