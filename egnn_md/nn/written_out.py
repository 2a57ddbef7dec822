"""The vector network's energy and its gradient with every derivative written out: what a force call runs.

The same function as `VectorEGCL` layers under autograd, at half the operations: for a small molecule a call is mostly
the fixed cost of each operation, and autograd doubles their number. A large structure goes through in blocks of edges
that fit a core's cache, whose messages are made again on the way back instead of being kept: memory per atom is that
of the neighbour list and a few numbers per atom and layer.

Weights are packed once (`pack`), so that the maps that share an input are one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from egnn_md.nn.pairs import PairFunctions, Pairs
from egnn_md.nn.vector_egcl import NEIGHBOR_SCALE, NORM_FLOOR, VectorEGCL

BLOCK_EDGES = 4096
"""Edges whose messages are made at once: 1 MB in float32 with 64 features."""

_silu_backward = torch.ops.aten.silu_backward.default


class _Map(NamedTuple):
    """A linear map, for rows of inputs and for rows of gradients: x @ on, g @ back."""

    on: Tensor
    back: Tensor

    @staticmethod
    def of(*weights: Tensor) -> _Map:
        """From weights as torch.nn.Linear keeps them, their outputs side by side."""
        back = torch.cat(weights) if len(weights) > 1 else weights[0].detach()
        return _Map(back.T.contiguous(), back)


@dataclass(frozen=True)
class _Layer:
    """Weights of one `VectorEGCL`; letters as in its equations. M, K: numbers of messages and of vector channels."""

    n_messages: int
    n_vectors: int
    ends: _Map
    """W_s and W_t, hidden_dim -> 2 M."""
    ends_bias: Tensor
    radial: _Map
    """W_d, n_radial -> M."""
    geometry: _Map | None
    """W_g, 3 K -> M; None in the first layer, which has no vectors to read."""
    gate: _Map
    """W_1 and W_2, M -> 2 K; K in the first layer, where there is no v_j to send on."""
    read: _Map
    """A and B, K -> 2 K."""
    node_in: _Map
    node_in_bias: Tensor
    node_out: _Map
    """Second map of φ_h and W_v, hidden_dim -> hidden_dim + K; without W_v in the last layer."""
    node_out_bias: Tensor
    last: bool

    @staticmethod
    def of(layer: VectorEGCL) -> _Layer:
        out = [layer.node_out] if layer.last else [layer.node_out, layer.vector_scale]
        source = layer.source
        return _Layer(
            n_messages=source.out_features,
            n_vectors=layer.n_vectors,
            ends=_Map.of(source.weight, layer.target.weight),
            ends_bias=torch.cat([source.bias, torch.zeros_like(source.bias)]),
            radial=_Map.of(layer.radial.weight),
            geometry=None if layer.first else _Map.of(layer.geometry.weight),
            gate=_Map.of(layer.gate.weight),
            read=_Map.of(0.5 * layer.read_left.weight, layer.read_right.weight),
            node_in=_Map.of(layer.node_in.weight),
            node_in_bias=layer.node_in.bias.detach(),
            node_out=_Map.of(*(part.weight for part in out)),
            node_out_bias=torch.cat([part.bias for part in out]),
            last=layer.last,
        )


@dataclass(frozen=True)
class _Block:
    """Some of the edges, with gradients by what the network reads of them, which add up in place."""

    pairs: Pairs
    centre: Tensor
    both: Tensor
    """(2 n,): i and j of each edge in turn."""
    centre_end: Tensor
    """2 i and, next, 2 j + 1: rows of `_Nodes.ends`."""
    neighbor_end: Tensor
    envelope: Tensor
    """f(d) NEIGHBOR_SCALE, (n, 1)."""
    by_direction: Tensor
    """(n, 3, 1)."""
    by_radial: Tensor
    by_envelope: Tensor
    """By `envelope`."""

    @staticmethod
    def of(pairs: Pairs) -> _Block:
        centre, neighbor = pairs.index
        return _Block(
            pairs=pairs,
            centre=centre,
            both=pairs.index.T.reshape(-1),
            centre_end=2 * centre,
            neighbor_end=2 * neighbor + 1,
            envelope=pairs.envelope * NEIGHBOR_SCALE,
            by_direction=torch.zeros_like(pairs.directions),
            by_radial=torch.zeros_like(pairs.radial),
            by_envelope=torch.zeros_like(pairs.envelope),
        )

    def gradient(self) -> Tensor:
        """∂E/∂r_ij, (n, 3)."""
        return self.pairs.gradient((self.by_direction, None, self.by_radial, self.by_envelope.mul_(NEIGHBOR_SCALE)))


class _Carried(NamedTuple):
    """The vectors of an edge's two atoms, and the weight with which the neighbour's is sent on."""

    across: Tensor
    """W_2 m, (n, 1, K)."""
    v_centre: Tensor
    """(n, 3, K)."""
    v_neighbor: Tensor


@dataclass(frozen=True)
class _Messages:
    """What the way back needs of a block's messages."""

    hidden: Tensor
    activated: Tensor
    along: Tensor
    """W_1 m, (n, 1, K)."""
    carried: _Carried | None
    """None in the first layer."""


@dataclass(frozen=True)
class _Nodes:
    """What the way back needs of a layer's atoms."""

    normed: Tensor
    inverse_norm: Tensor
    ends: Tensor
    """W_s h_i and W_t h_i in turn, (2 n_atoms, M)."""
    vectors_in: Tensor | None
    """v, (n_atoms, 3, K)."""
    vectors: Tensor
    """v', (n_atoms, 3, K)."""
    left: Tensor
    """A v' / 2 and, next, B v', (n_atoms, 3, K)."""
    right: Tensor
    hidden: Tensor
    scale: Tensor
    """W_v φ_h, (n_atoms, 1, K)."""
    messages: list[_Messages]
    """Of the only block; empty if they are to be made again."""


class WrittenOut:
    """Energies and their gradient for the weights of the moment of its making.

    Parameters
    ----------
    pairs: what makes `Pairs` of edge vectors. embedding: (n_elements, hidden_dim). layers: `VectorEGCL`s.
    readout: linear map, SiLU, linear map to one number.
    """

    @torch.no_grad()
    def __init__(
        self, pairs: PairFunctions, embedding: Tensor, layers: Sequence[VectorEGCL], readout: Sequence[nn.Module]
    ) -> None:
        self.pairs = pairs
        self.embedding = embedding.detach()
        self.layers = [_Layer.of(layer) for layer in layers]
        first, _, second = readout
        assert isinstance(first, nn.Linear)
        assert isinstance(second, nn.Linear)
        self.readout_in, self.readout_in_bias = _Map.of(first.weight), first.bias.detach()
        self.readout_out, self.readout_out_bias = _Map.of(second.weight), second.bias.detach()

    @torch.no_grad()
    def __call__(self, vectors: Tensor, species: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """r_ij (n_edges, 3) in Å, species (n_atoms,), edge_index (2, n_edges) -> energy of each atom (n_atoms,) eV in
        float64, ∂E/∂r_ij (n_edges, 3) eV/Å, final features (n_atoms, hidden_dim).
        """
        inside = (vectors.square().sum(-1) < self.pairs.cutoff**2).nonzero().squeeze(-1)  # a skin's edges are not
        parts = vectors.index_select(0, inside).unsafe_split(BLOCK_EDGES)
        indices = edge_index.index_select(1, inside).unsafe_split(BLOCK_EDGES, 1)
        blocks = [_Block.of(self.pairs(part, species, index)) for part, index in zip(parts, indices, strict=True)]
        h, v, passed = self.embedding.index_select(0, species), None, []
        for layer in self.layers:
            h, v, nodes = _forward(layer, h, v, blocks)
            passed.append(nodes)
        hidden = torch.addmm(self.readout_in_bias, h, self.readout_in.on)
        energies = torch.addmm(self.readout_out_bias, silu(hidden), self.readout_out.on).squeeze(-1).double()
        for block in blocks:
            energies.index_add_(0, block.centre, block.pairs.repulsion.squeeze(-1).double(), alpha=0.5)
        by_h = _silu_backward(self.readout_out.back.expand_as(hidden), hidden) @ self.readout_in.back
        by_v: Tensor | None = None
        for layer, nodes in zip(reversed(self.layers), reversed(passed), strict=True):
            by_h, by_v = _backward(layer, by_h, by_v, nodes, blocks)
        gradient = torch.zeros_like(vectors).index_copy_(0, inside, torch.cat([block.gradient() for block in blocks]))
        return energies, gradient, h


def _forward(w: _Layer, h: Tensor, v: Tensor | None, blocks: list[_Block]) -> tuple[Tensor, Tensor, _Nodes]:
    """h (n_atoms, hidden_dim) and v (n_atoms, 3, K) after the layer. v of the last layer means nothing."""
    n_atoms, hidden_dim = h.shape
    inverse_norm = torch.rsqrt(h.square().mean(-1, keepdim=True).add_(NORM_FLOOR))
    normed = h * inverse_norm
    ends = torch.addmm(w.ends_bias, normed, w.ends.on).view(2 * n_atoms, w.n_messages)
    aggregated = h.new_zeros(n_atoms, w.n_messages)
    vectors = h.new_zeros(n_atoms, blocks[0].pairs.directions.shape[1], w.n_vectors) if v is None else v.clone()
    kept = []
    for block in blocks:
        message, messages = _messages(w, ends, v, block)
        aggregated.index_add_(0, block.centre, message)
        sent = block.pairs.directions * messages.along
        if messages.carried is not None:
            sent.addcmul_(messages.carried.v_neighbor, messages.carried.across)
        vectors.index_add_(0, block.centre, sent)
        if len(blocks) == 1:
            kept.append(messages)
    left, right = (vectors @ w.read.on).chunk(2, -1)
    hidden = torch.addmm(w.node_in_bias, torch.cat([normed, aggregated, (left * right).sum(1)], -1), w.node_in.on)
    out = torch.addmm(w.node_out_bias, silu(hidden), w.node_out.on)
    scale = out[:, hidden_dim:].unsqueeze(1)
    nodes = _Nodes(normed, inverse_norm, ends, v, vectors, left, right, hidden, scale, kept)
    return h + out[:, :hidden_dim], vectors if w.last else torch.addcmul(vectors, vectors, scale), nodes


def _messages(w: _Layer, ends: Tensor, v: Tensor | None, block: _Block) -> tuple[Tensor, _Messages]:
    """m_ij (n, M) and how it came about."""
    hidden = ends.index_select(0, block.centre_end).add_(ends.index_select(0, block.neighbor_end))
    hidden.addmm_(block.pairs.radial, w.radial.on)
    if v is None or w.geometry is None:
        activated = silu(hidden)
        message = activated * block.envelope
        return message, _Messages(hidden, activated, (message @ w.gate.on).unsqueeze(1), None)
    n_edges = len(hidden)
    vectors = v.index_select(0, block.both).view(n_edges, 2, *v.shape[1:])
    v_centre, v_neighbor = vectors.unbind(1)
    along_directions = (vectors * block.pairs.directions.unsqueeze(1)).sum(2).view(n_edges, 2 * w.n_vectors)
    hidden.addmm_(torch.cat([along_directions, (v_centre * v_neighbor).sum(1)], -1), w.geometry.on)
    activated = silu(hidden)
    message = activated * block.envelope
    along, across = (message @ w.gate.on).unsqueeze(1).chunk(2, -1)
    return message, _Messages(hidden, activated, along, _Carried(across, v_centre, v_neighbor))


def _backward(
    w: _Layer, by_h: Tensor, by_v: Tensor | None, nodes: _Nodes, blocks: list[_Block]
) -> tuple[Tensor, Tensor]:
    """∂E/∂h and ∂E/∂v before the layer from those after it; what goes to the edges is added there.

    Before the first layer nothing depends on positions, and what comes back means nothing.
    """
    if by_v is None:
        by_out, by_vectors = by_h, torch.zeros_like(nodes.vectors)
    else:
        by_out = torch.cat([by_h, (by_v * nodes.vectors).sum(1)], -1)
        by_vectors = torch.addcmul(by_v, by_v, nodes.scale)
    by_parts = _silu_backward(by_out @ w.node_out.back, nodes.hidden) @ w.node_in.back
    by_normed, by_aggregated, by_lengths = by_parts.split_with_sizes([by_h.shape[1], w.n_messages, w.n_vectors], -1)
    by_read = torch.cat([nodes.right, nodes.left], -1) * torch.cat([by_lengths, by_lengths], -1).unsqueeze(1)
    by_vectors.view(-1, w.n_vectors).addmm_(by_read.view(-1, 2 * w.n_vectors), w.read.back)
    by_v_in, by_ends = by_vectors, by_aggregated
    if w.geometry is not None:
        by_v_in, by_ends = by_vectors.clone(), torch.zeros_like(nodes.ends)
    for k, block in enumerate(blocks):
        messages = nodes.messages[k] if nodes.messages else _messages(w, nodes.ends, nodes.vectors_in, block)[1]
        _edges_backward(w, block, messages, by_aggregated, by_vectors, by_ends, by_v_in)
    if w.geometry is not None:
        by_normed = torch.addmm(by_normed, by_ends.view(len(by_h), -1), w.ends.back)
        along = (by_normed * nodes.normed).mean(-1, keepdim=True)
        across = by_normed.addcmul_(nodes.normed, along, value=-1.0)
        by_h = torch.addcmul(by_h, across, nodes.inverse_norm)
    return by_h, by_v_in


def _edges_backward(
    w: _Layer,
    block: _Block,
    messages: _Messages,
    by_aggregated: Tensor,
    by_vectors: Tensor,
    by_ends: Tensor,
    by_v_in: Tensor,
) -> None:
    """Through one block of edges; adds to by_ends, by_v_in and the block's own gradients."""
    by_sent = by_vectors.index_select(0, block.centre)
    by_gates = (by_sent * block.pairs.directions).sum(1)
    carried = messages.carried
    if carried is not None:
        by_gates = torch.cat([by_gates, (by_sent * carried.v_neighbor).sum(1)], -1)
    by_message = torch.addmm(by_aggregated.index_select(0, block.centre), by_gates, w.gate.back)
    block.by_envelope.add_((by_message * messages.activated).sum(-1, keepdim=True))
    by_hidden = _silu_backward(by_message.mul_(block.envelope), messages.hidden)
    block.by_radial.addmm_(by_hidden, w.radial.back)
    by_direction = by_sent * messages.along
    if carried is not None and w.geometry is not None:
        by_ends.index_add_(0, block.centre_end, by_hidden)
        by_ends.index_add_(0, block.neighbor_end, by_hidden)
        by_invariants = (by_hidden @ w.geometry.back).view(len(by_hidden), 3, 1, w.n_vectors)
        by_along, by_inner = by_invariants[:, :2], by_invariants[:, 2]
        by_both = by_along * block.pairs.directions.unsqueeze(1)
        by_centre, by_neighbor = by_both.unbind(1)
        by_centre.addcmul_(carried.v_neighbor, by_inner)
        by_neighbor.addcmul_(carried.v_centre, by_inner).addcmul_(by_sent, carried.across)
        by_v_in.index_add_(0, block.both, by_both.view(2 * len(by_sent), *by_sent.shape[1:]))
        by_direction.addcmul_(carried.v_centre, by_along[:, 0]).addcmul_(carried.v_neighbor, by_along[:, 1])
    block.by_direction.add_(by_direction.sum(-1, keepdim=True))
