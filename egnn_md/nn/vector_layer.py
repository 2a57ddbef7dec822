"""An EGCL with several vector channels, forwards and backwards: the layer of our networks.

The paper's layer carries one vector per node, its position, updated by Σ_j (x_i - x_j) φ_x(m_ij) and read back through
|x_i - x_j|². The same idea with many channels v_i (n_vectors of them), started at zero and read back through all inner
products with the edge and with each other, sees angles and dihedrals without spherical harmonics:

    m_ij = SiLU(W_s h_i + W_t h_j + W_d b(d_ij) + W_g [r̂_ij·v_i; r̂_ij·v_j; v_i·v_j]) w(d_ij)
    v_i' = v_i + Σ_j (r̂_ij ⊗ W_1 m_ij + v_j ∘ W_2 m_ij)
    h_i' = h_i + W_o n_i,   n_i = SiLU(W_n [h_i; Σ_j m_ij; ½⟨A v_i', B v_i'⟩])
    v_i'' = v_i' ∘ (1 + W_v n_i)

b is a radial basis, w the cutoff envelope over about the root of the number of neighbours; h enters normalised to unit
mean square. The second linear map of the paper's φ_e is linear, so it is applied after the sum over j, inside W_n: per
node instead of per edge.

`vjp` is the same layer read backwards, of ordinary operations: without gradients to track it is a force call at half
of autograd's operations, with them it is a training step, where energy and forces are explicit functions of the weights
and one backward pass is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from egnn_md.nn.layouts import Layout
from egnn_md.nn.ops import plus_product, silu_vjp

NEIGHBOR_SCALE = 0.25
"""1/sqrt(16): sums over about 16 neighbours start at order one."""
NORM_FLOOR = 1e-3
"""Added to the mean square of h before h is divided by its root."""


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges, or a block of them, as a layer reads them; (...) is (n_edges,) or what else the layout says."""

    layout: Layout
    directions: Tensor
    """r̂_ij, (..., n_dim, 1)."""
    radial: Tensor
    """b(d_ij), (..., n_radial)."""
    weight: Tensor
    """w(d_ij), the envelope times `NEIGHBOR_SCALE`, (..., 1)."""


@dataclass(eq=False)
class PairGradients:
    """∂E by what layers read of a block of edges; each `vjp` adds its own. None: nothing yet."""

    by_directions: Tensor | None = None
    by_radial: Tensor | None = None
    by_weight: Tensor | None = None


class Messages(NamedTuple):
    """What the way back needs of a block's messages."""

    hidden: Tensor
    """Before SiLU, (..., message_dim)."""
    activated: Tensor
    """After it."""
    along: Tensor
    """W_1 m, (..., 1, n_vectors)."""
    across: Tensor | None
    """W_2 m, the same; None in the first layer, as all below."""
    v_centre: Tensor | None
    """v_i, (..., n_dim, n_vectors)."""
    v_neighbor: Tensor | None
    invariants: Tensor | None
    """[r̂·v_i; r̂·v_j; v_i·v_j] before the bound, (..., 3 n_vectors)."""


class Tape(NamedTuple):
    """What `vjp` needs of a layer's way forward."""

    blocks: Sequence[Edges]
    messages: list[Messages]
    """Of the only block; empty if there are several: they are made again, instead of being kept."""
    normed: Tensor
    inverse_norm: Tensor
    source: Tensor
    target: Tensor
    v_in: Tensor | None
    vectors: Tensor
    """v', (n_atoms, n_dim, n_vectors)."""
    left: Tensor
    right: Tensor
    products: Tensor
    """½⟨A v', B v'⟩ before the bound."""
    node_hidden: Tensor
    scale: Tensor | None
    """W_v n, (n_atoms, 1, n_vectors); None in the last layer."""
    scaled: Tensor | None
    """v'' before the bound."""


def _linear(in_dim: int, out_dim: int, bias: bool = True, gain: float = 1.0) -> nn.Linear:
    layer = nn.Linear(in_dim, out_dim, bias=bias)
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class VectorLayer(nn.Module):
    """One layer; see the equations at the top of this module.

    Parameters
    ----------
    hidden_dim: width of h. message_dim: width of m. n_radial: size of b(d). n_vectors: vector channels.
    first: the layer that starts the vectors: it reads none. last: the layer whose vectors nobody reads.
    bound: lengths of vectors and their inner products saturate there. They feed on each other, layer after layer, and
        run away where no training molecule has been; so, since h enters normalised, all that a layer adds is bounded.
    """

    def __init__(
        self,
        hidden_dim: int,
        message_dim: int,
        n_radial: int,
        n_vectors: int,
        *,
        first: bool,
        last: bool,
        bound: float | None = None,
    ) -> None:
        super().__init__()
        self.n_vectors, self.first, self.last, self.bound = n_vectors, first, last, bound
        self.source = _linear(hidden_dim, message_dim)
        self.target = _linear(hidden_dim, message_dim, bias=False)
        self.radial = _linear(n_radial, message_dim, bias=False)
        self.node_in = _linear(hidden_dim + message_dim + n_vectors, hidden_dim)
        self.node_out = _linear(hidden_dim, hidden_dim, gain=0.5)
        self.gate = _linear(message_dim, n_vectors if first else 2 * n_vectors, bias=False)
        self.read_left = _linear(n_vectors, n_vectors, bias=False)
        self.read_right = _linear(n_vectors, n_vectors, bias=False)
        if not last:
            self.vector_scale = _linear(hidden_dim, n_vectors, gain=0.1)
        if not first:
            self.geometry = _linear(3 * n_vectors, message_dim, bias=False, gain=0.3)

    def forward(self, h: Tensor, v: Tensor | None, blocks: Sequence[Edges]) -> tuple[Tensor, Tensor | None, Tape]:
        """h (n_atoms, hidden_dim), v (n_atoms, n_dim, n_vectors), None in the first layer -> the same, updated (v is
        None after the last), and what `vjp` needs.
        """
        normed, inverse_norm = normalised(h)
        source, target = self.source(normed), self.target(normed)
        aggregated: Tensor | None = None
        vectors, kept = v, []
        for edges in blocks:
            message, messages = self._messages(source, target, v, edges)
            aggregated = edges.layout.to_centre(message, aggregated)
            sent = edges.directions * messages.along
            if messages.v_neighbor is not None and messages.across is not None:
                sent = torch.addcmul(sent, messages.v_neighbor, messages.across)
            vectors = edges.layout.to_centre(sent, vectors)
            if len(blocks) == 1:
                kept.append(messages)
        assert aggregated is not None
        assert vectors is not None
        left, right = self.read_left(vectors), self.read_right(vectors)
        products = 0.5 * (left * right).sum(-2)
        node_hidden = self.node_in(torch.cat([normed, aggregated, self._bounded(products)], -1))
        node = silu(node_hidden)
        h = h + self.node_out(node)
        scale = scaled = v_out = None
        if not self.last:
            scale = self.vector_scale(node).unsqueeze(1)
            scaled = v_out = torch.addcmul(vectors, vectors, scale)
            if self.bound is not None:
                v_out = saturated(scaled, scaled.square().sum(-2, keepdim=True), self.bound)
        inputs = (blocks, kept, normed, inverse_norm, source, target, v)
        return h, v_out, Tape(*inputs, vectors, left, right, products, node_hidden, scale, scaled)

    def _messages(self, source: Tensor, target: Tensor, v: Tensor | None, edges: Edges) -> tuple[Tensor, Messages]:
        """m_ij, and how it came about."""
        layout = edges.layout
        hidden = layout.at_centre(source) + layout.at_neighbor(target)
        hidden = plus_product(hidden, edges.radial, self.radial.weight.mT)
        v_centre = v_neighbor = invariants = across = None
        if v is not None and not self.first:
            v_centre, v_neighbor = layout.at_centre(v), layout.at_neighbor(v)
            along_edge = [(edges.directions * v_end).sum(-2) for v_end in (v_centre, v_neighbor)]
            invariants = torch.cat([*along_edge, (v_centre * v_neighbor).sum(-2)], -1)
            hidden = plus_product(hidden, self._bounded(invariants), self.geometry.weight.mT)
        activated = silu(hidden)
        message = activated * edges.weight
        along = linear(message, self.gate.weight).unsqueeze(-2)
        if invariants is not None:
            along, across = along.chunk(2, -1)
        return message, Messages(hidden, activated, along, across, v_centre, v_neighbor, invariants)

    def vjp(
        self,
        tape: Tape,
        by_h: Tensor,
        by_v: Tensor | None,
        by_pairs: Sequence[PairGradients],
        *,
        inputs: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """∂E by h and v before the layer, from ∂E by those after it (by_v None: nobody read them).

        What goes to the edges is added to `by_pairs`, one for each block. `inputs` False: nothing before this layer
        depends on positions, and what comes back means nothing.
        """
        by_node = by_h @ self.node_out.weight
        by_vectors = None
        if by_v is not None and tape.scale is not None and tape.scaled is not None:
            if self.bound is not None:
                by_v = saturated_vjp(by_v, tape.scaled, self.bound)
            by_vectors = torch.addcmul(by_v, by_v, tape.scale)
            by_node = plus_product(by_node, (by_v * tape.vectors).sum(-2), self.vector_scale.weight)
        by_parts = silu_vjp(by_node, tape.node_hidden) @ self.node_in.weight
        sizes = [by_h.shape[1], tape.source.shape[1], self.n_vectors]
        by_normed, by_aggregated, by_products = by_parts.split_with_sizes(sizes, -1)
        half = (0.5 * self._bounded_vjp(by_products, tape.products)).unsqueeze(-2)
        read = (tape.right * half) @ self.read_left.weight + (tape.left * half) @ self.read_right.weight
        by_vectors = read if by_vectors is None else by_vectors + read
        by_source: Tensor | None = None
        by_target: Tensor | None = None
        by_v_in = by_vectors
        for k, edges in enumerate(tape.blocks):
            if tape.messages:
                messages = tape.messages[k]
            else:
                _, messages = self._messages(tape.source, tape.target, tape.v_in, edges)
            by_hidden, by_centre, by_neighbor = self._edges_vjp(edges, messages, by_aggregated, by_vectors, by_pairs[k])
            if inputs:
                by_source = edges.layout.to_centre(by_hidden, by_source)
                by_target = edges.layout.to_neighbor(by_hidden, by_target)
            if inputs and by_centre is not None and by_neighbor is not None:
                by_v_in = edges.layout.to_neighbor(by_neighbor, edges.layout.to_centre(by_centre, by_v_in))
        if by_source is not None and by_target is not None:
            by_normed = torch.addmm(by_normed, by_source, self.source.weight)
            by_normed = plus_product(by_normed, by_target, self.target.weight)
            by_h = by_h + normalised_vjp(by_normed, tape.normed, tape.inverse_norm)
        return by_h, None if self.first else by_v_in

    def _edges_vjp(
        self, edges: Edges, messages: Messages, by_aggregated: Tensor, by_vectors: Tensor, by_pairs: PairGradients
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Through one block: ∂E by W_s h_i + W_t h_j, by v_i and by v_j of each edge."""
        by_sent = edges.layout.at_centre(by_vectors)
        by_gates = (by_sent * edges.directions).sum(-2)
        by_directions = by_sent * messages.along
        if messages.v_neighbor is not None:
            by_gates = torch.cat([by_gates, (by_sent * messages.v_neighbor).sum(-2)], -1)
        by_message = plus_product(edges.layout.at_centre(by_aggregated), by_gates, self.gate.weight)
        by_weight = (by_message * messages.activated).sum(-1, keepdim=True)
        by_hidden = silu_vjp(by_message * edges.weight, messages.hidden)
        by_centre = by_neighbor = None
        if messages.invariants is not None and messages.v_centre is not None and messages.v_neighbor is not None:
            assert messages.across is not None
            by_invariants = self._bounded_vjp(by_hidden @ self.geometry.weight, messages.invariants).unsqueeze(-2)
            to_centre, to_neighbor, inner = by_invariants.chunk(3, -1)
            by_centre = torch.addcmul(edges.directions * to_centre, messages.v_neighbor, inner)
            by_neighbor = torch.addcmul(edges.directions * to_neighbor, messages.v_centre, inner)
            by_neighbor = torch.addcmul(by_neighbor, by_sent, messages.across)
            by_directions = torch.addcmul(by_directions, messages.v_centre, to_centre)
            by_directions = torch.addcmul(by_directions, messages.v_neighbor, to_neighbor)
        self._add(by_pairs, by_directions.sum(-1, keepdim=True), by_hidden, by_weight)
        return by_hidden, by_centre, by_neighbor

    def _add(self, to: PairGradients, by_directions: Tensor, by_hidden: Tensor, by_weight: Tensor) -> None:
        if to.by_directions is None or to.by_radial is None or to.by_weight is None:
            to.by_directions, to.by_radial, to.by_weight = by_directions, by_hidden @ self.radial.weight, by_weight
            return
        to.by_directions = to.by_directions + by_directions
        to.by_radial = plus_product(to.by_radial, by_hidden, self.radial.weight)
        to.by_weight = to.by_weight + by_weight

    def _bounded(self, products: Tensor) -> Tensor:
        return products if self.bound is None else saturated(products, products.square(), self.bound)

    def _bounded_vjp(self, by: Tensor, products: Tensor) -> Tensor:
        if self.bound is None:
            return by
        inverse = torch.rsqrt(1.0 + products.square() / self.bound**2)
        return by * inverse * inverse * inverse


def normalised(h: Tensor) -> tuple[Tensor, Tensor]:
    """h over its root mean square along the last dimension, and one over that."""
    inverse = torch.rsqrt(h.square().mean(-1, keepdim=True) + NORM_FLOOR)
    return h * inverse, inverse


def normalised_vjp(by: Tensor, normed: Tensor, inverse: Tensor) -> Tensor:
    """∂E by h from ∂E by `normalised(h)`."""
    along = (by * normed).mean(-1, keepdim=True)
    return torch.addcmul(by, normed, along, value=-1.0) * inverse


def saturated(x: Tensor, squared_size: Tensor, bound: float) -> Tensor:
    """x, scaled down so that its size stays below `bound`; far below the bound x stays as it is."""
    return x * torch.rsqrt(1.0 + squared_size / bound**2)


def saturated_vjp(by: Tensor, vectors: Tensor, bound: float) -> Tensor:
    """∂E by vectors (..., n_dim, n_vectors) from ∂E by `saturated` ones."""
    inverse = torch.rsqrt(1.0 + vectors.square().sum(-2, keepdim=True) / bound**2)
    along = (by * vectors).sum(-2, keepdim=True) * (inverse * inverse / bound**2)
    return torch.addcmul(by, vectors, along, value=-1.0) * inverse
