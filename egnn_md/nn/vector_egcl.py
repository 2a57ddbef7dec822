"""An EGCL with several vector channels: the layer of our potentials.

The paper's layer carries one vector per node, its position, updated by Σ_j (x_i - x_j) φ_x(m_ij) and read back through
|x_i - x_j|². The same idea with many channels v_i (n_vectors of them), started at zero and read back through all inner
products with the edge and with each other, sees angles and dihedrals without spherical harmonics:

    m_ij = SiLU(W_s h_i + W_t h_j + W_d b(d_ij) + W_g [r̂_ij·v_i; r̂_ij·v_j; v_i·v_j]) f(d_ij)
    v_i' = v_i + Σ_j (r̂_ij ⊗ W_1 m_ij + v_j ∘ W_2 m_ij)
    h_i' = h_i + φ_h(h_i, Σ_j m_ij, ⟨A v_i', B v_i'⟩)
    v_i'' = v_i' ∘ (1 + W_v φ_h)

b is a radial basis, f the cutoff envelope; h enters normalised to unit mean square. The second linear map of φ_e is
linear, so it is applied after the sum over j, inside φ_h: per node instead of per edge.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from egnn_md.nn.ops import gather, segment_sum

NEIGHBOR_SCALE = 0.25
"""1/sqrt(16): sums over about 16 neighbours start at order one."""


NORM_FLOOR = 1e-3
"""Added to the mean square of h before h is divided by its root."""


class Edges(Protocol):
    """What a layer reads of the edges; `Pairs` is one."""

    @property
    def index(self) -> Tensor:
        """(2, n_edges): centre i, neighbour j."""

    @property
    def directions(self) -> Tensor:
        """r̂_ij, (n_edges, n_dim, 1)."""

    @property
    def radial(self) -> Tensor:
        """b(d_ij), (n_edges, n_radial)."""

    @property
    def envelope(self) -> Tensor:
        """f(d_ij), (n_edges, 1)."""


def _linear(in_dim: int, out_dim: int, bias: bool = True, gain: float = 1.0) -> nn.Linear:
    layer = nn.Linear(in_dim, out_dim, bias=bias)
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class VectorEGCL(nn.Module):
    """One layer; see the equations at the top of this module.

    Parameters
    ----------
    hidden_dim: width of h. message_dim: width of m. n_radial: size of b(d).
    n_vectors: vector channels; 0 gives a plain invariant network.
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
        if n_vectors:
            self.gate = _linear(message_dim, n_vectors if first else 2 * n_vectors, bias=False)
            self.read_left = _linear(n_vectors, n_vectors, bias=False)
            self.read_right = _linear(n_vectors, n_vectors, bias=False)
            if not last:
                self.vector_scale = _linear(hidden_dim, n_vectors, gain=0.1)
            if not first:
                self.geometry = _linear(3 * n_vectors, message_dim, bias=False, gain=0.3)

    def forward(self, h: Tensor, v: Tensor | None, edges: Edges) -> tuple[Tensor, Tensor | None]:
        """h (n_atoms, hidden_dim), v (n_atoms, n_dim, n_vectors) or None -> the same, updated."""
        centre, neighbor = edges.index
        normed = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + NORM_FLOOR)
        hidden = gather(self.source(normed), centre) + gather(self.target(normed), neighbor)
        hidden = torch.addmm(hidden, edges.radial, self.radial.weight.T)
        v_neighbor = None
        if v is not None and self.n_vectors:
            v_centre, v_neighbor = gather(v, centre), gather(v, neighbor)
            invariants = self._bounded(_invariants(edges.directions, v_centre, v_neighbor))
            hidden = torch.addmm(hidden, invariants, self.geometry.weight.T)
        messages = silu(hidden) * (edges.envelope * NEIGHBOR_SCALE)
        aggregated = segment_sum(messages, centre, h.shape[0])
        if not self.n_vectors:
            return h + self.node_out(silu(self.node_in(torch.cat([normed, aggregated], -1)))), None
        v = self._update_vectors(v, v_neighbor, messages, edges, h.shape[0])
        lengths = self._bounded((self.read_left(v) * self.read_right(v)).sum(1) * 0.5)
        node = silu(self.node_in(torch.cat([normed, aggregated, lengths], -1)))
        h = h + self.node_out(node)
        if self.last:
            return h, None
        v = torch.addcmul(v, v, self.vector_scale(node).unsqueeze(1))
        return h, v if self.bound is None else saturated(v, v.square().sum(1, keepdim=True), self.bound)

    def _bounded(self, products: Tensor) -> Tensor:
        return products if self.bound is None else saturated(products, products.square(), self.bound)

    def _update_vectors(
        self, v: Tensor | None, v_neighbor: Tensor | None, messages: Tensor, edges: Edges, n_atoms: int
    ) -> Tensor:
        gates = self.gate(messages).unsqueeze(1)
        if v is None or v_neighbor is None:
            return segment_sum(edges.directions * gates, edges.index[0], n_atoms)
        along, across = gates.split(self.n_vectors, -1)
        sent = torch.addcmul(edges.directions * along, v_neighbor, across)
        return v + segment_sum(sent, edges.index[0], n_atoms)


def saturated(x: Tensor, squared_size: Tensor, bound: float) -> Tensor:
    """x, scaled down so that its size stays below `bound`; far below the bound x stays as it is."""
    return x * torch.rsqrt(1.0 + squared_size / bound**2)


def _invariants(directions: Tensor, v_centre: Tensor, v_neighbor: Tensor) -> Tensor:
    """[r̂_ij·v_i; r̂_ij·v_j; v_i·v_j] of each channel, (n_edges, 3 n_vectors)."""
    return torch.cat(
        [(directions * v_centre).sum(1), (directions * v_neighbor).sum(1), (v_centre * v_neighbor).sum(1)], -1
    )
