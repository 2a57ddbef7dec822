"""An EGCL with several vector channels, forwards and backwards: the layer of our networks.

The paper's layer carries one vector per node, its position, updated by Σ_j (x_i - x_j) φ_x(m_ij) and read back through
|x_i - x_j|². The same idea with many channels v_i (n_vectors of them), started at zero and read back through all inner
products with the edge and with each other, sees angles and dihedrals without spherical harmonics:

    m_ij = SiLU(W_s h_i + W_t h_j + W_d b(d_ij) + W_g [r̂_ij·v_i; r̂_ij·v_j; v_i·v_j]) w(d_ij)
    v_i' = v_i + Σ_j (r̂_ij ⊗ W_1 m_ij + v_j ∘ W_2 m_ij)
    h_i' = h_i + W_o n_i,   n_i = SiLU(W_n [h_i; Σ_j m_ij; ½⟨A v_i', B v_i'⟩])
    v_i'' = v_i' ∘ (1 + W_v n_i)

and, at the price of a sum per atom, moments of rank 2 (n_tensors channels of symmetric matrices), which edges never
read:

    T_i' = T_i + Σ_j (r̂_ij ⊗ r̂_ij - 1/n) ⊗ W_3 m_ij,   T_i'' = T_i' ∘ (1 + W_T n_i)

whose invariants ½⟨C T', D T'⟩ and aᵀ S a, a = F v', S = G T', stand beside those of the vectors in n_i.

b is a radial basis, w the cutoff envelope over about the root of the number of neighbours; h enters normalised to unit
mean square. The second linear map of the paper's φ_e is linear, so it is applied after the sum over j, inside W_n: per
node instead of per edge.

The two messages of a pair, m_ij and m_ji, have b, w and v_i·v_j in common. With a_i = r̂_ij·v_i and a_j = r̂_ji·v_j, how
far the vectors at each end point to the other, and W_g = [W_a W_b W_c],

    W_a r̂_ij·v_i + W_b r̂_ij·v_j = ½ (W_a - W_b)(a_i + a_j) + ½ (W_a + W_b)(a_i - a_j),

of which the first product is the same at both ends and the second changes its sign: half the work of two messages.

`vjp` is the same layer read backwards, of ordinary operations: without gradients to track it is a force call at half
of autograd's operations, with them it is a training step, where energy and forces are explicit functions of the weights
and one backward pass is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from egnn_md.nn.ends import AtEnds, Ends
from egnn_md.nn.ops import ahead_of_time, kept, op_by_op, plus_product, product, silu_vjp, sum_over_space
from egnn_md.nn.symmetric import SymmetricSquare

NEIGHBOR_SCALE = 0.25
"""1/sqrt(16): sums over about 16 neighbours start at order one."""
NORM_FLOOR = 1e-3
"""Added to the mean square of h before h is divided by its root."""


class State(NamedTuple):
    """What layers hand on of each atom, or ∂E by it. None: nothing yet, or nobody reads it."""

    h: Tensor
    """Features, (n_atoms, hidden_dim)."""
    v: Tensor | None = None
    """Vectors, (n_atoms, n_dim, n_vectors)."""
    t: Tensor | None = None
    """Symmetric tensors, packed by `SymmetricSquare`, (n_atoms, n_components, n_tensors)."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of atoms, or a block of them, as a layer reads them."""

    ends: Ends
    directions: Tensor
    """r̂ from end 0 to end 1, (n_pairs, n_dim, 1)."""
    radial: Tensor
    """b(d), (n_pairs, n_radial)."""
    weight: Tensor
    """w(d), the envelope times `NEIGHBOR_SCALE`, (n_pairs, 1)."""
    quadrupoles: Tensor | None = None
    """r̂ ⊗ r̂ - 1/n, packed as by `SymmetricSquare`, (n_pairs, n_components, 1), for layers with tensors."""


@dataclass(eq=False)
class PairGradients:
    """∂E by what layers read of a block of pairs; each `vjp` adds its own. None: nothing yet."""

    by_directions: Tensor | None = None
    """(n_pairs, n_dim, k), to be summed over k: channels, or 1 if they are."""
    by_radial: Tensor | None = None
    by_weight: Tensor | None = None
    """(n_pairs, k), likewise."""
    by_quadrupoles: Tensor | None = None


class Messages(NamedTuple):
    """What the way back needs of a block's messages, one to each end of a pair."""

    hidden: AtEnds
    """Before SiLU, (n_pairs, message_dim)."""
    activated: AtEnds
    """After SiLU."""
    along: AtEnds
    """W_1 m, (n_pairs, 1, n_vectors)."""
    across: AtEnds | None
    """W_2 m, the same; None in the first layer, as all below."""
    v: AtEnds | None
    """(n_pairs, n_dim, n_vectors)."""
    invariants: Tensor | None
    """[a_i; a_j; v_i·v_j] before the bound, (n_pairs, 3 n_vectors)."""
    moment: AtEnds | None
    """W_3 m, (n_pairs, 1, n_tensors); None without tensors."""


class Weights(NamedTuple):
    """A layer's matrices (out, in) and biases (out,), looked up once a call: asking a module for an attribute costs as
    much as a product of small matrices. Letters as in the equations.
    """

    source: Tensor
    """W_s."""
    source_bias: Tensor
    target: Tensor
    """W_t."""
    gate: Tensor
    """W_1, W_2 and W_3, one below the other."""
    read_left: Tensor
    """A."""
    read_right: Tensor
    """B."""
    node_in: Tensor
    """W_n."""
    node_in_bias: Tensor
    node_out: Tensor
    """W_o."""
    node_out_bias: Tensor
    vector_scale: Tensor | None
    """W_v; None in the last layer."""
    vector_scale_bias: Tensor | None
    tensor_left: Tensor | None
    """C; None without tensors, as all below."""
    tensor_right: Tensor | None
    """D."""
    tensor_axes: Tensor | None
    """F."""
    tensor_forms: Tensor | None
    """G."""
    tensor_scale: Tensor | None
    """W_T; None in the last layer too."""
    tensor_scale_bias: Tensor | None
    shared: Tensor
    """[W_d ½(W_a - W_b) W_c]: of what both messages of a pair have in common; W_d in the first layer."""
    opposite: Tensor | None
    """½(W_a + W_b): of what has another sign in each; None in the first layer."""


_PLACES: Final = tuple(
    (field, field.removesuffix("_bias"), "bias" if field.endswith("_bias") else "weight")
    for field in Weights._fields[:-2]
)
"""Field, module and parameter of each of them but the last two."""


class TensorTape(NamedTuple):
    """What the way back needs of the invariants of the tensors."""

    tensors: Tensor
    """T', packed, (n_atoms, n_components, n_tensors)."""
    left: Tensor
    right: Tensor
    axes: Tensor
    """a, (n_atoms, n_dim, n_tensors)."""
    squares: Tensor
    """a ⊗ a."""
    forms: Tensor
    """S."""


class Tape(NamedTuple):
    """What `vjp` needs of a layer's way forward."""

    weights: Weights
    blocks: Sequence[Pairs]
    messages: list[Messages]
    """Of the only block; empty if there are several: they are made again, instead of being kept."""
    normed: Tensor
    inverse_norm: Tensor
    source: Tensor
    target: Tensor
    v_in: Tensor | None
    vectors: Tensor
    """v', (n_atoms, n_dim, n_vectors)."""
    half_left: Tensor
    """½ A."""
    left: Tensor
    """½ A v'."""
    right: Tensor
    """B v'."""
    moments: TensorTape | None
    products: Tensor
    """½⟨A v', B v'⟩ and the invariants of the tensors, before the bound."""
    node_hidden: Tensor
    scale: Tensor | None
    """W_v n, (n_atoms, 1, n_vectors); None in the last layer."""
    scaled: Tensor | None
    """v'' before the bound."""
    tensor_scale: Tensor | None
    tensor_scaled: Tensor | None
    """The same of T."""


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
    n_tensors: channels of rank 2; 0 does without. n_dim: of space, for layers with tensors. node_dim: width of n_i;
        None: hidden_dim.
    first: the layer that starts the vectors: it reads none. last: no layer reads its vectors.
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
        n_tensors: int = 0,
        n_dim: int = 3,
        node_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.n_vectors, self.n_tensors, self.first, self.last, self.bound = n_vectors, n_tensors, first, last, bound
        self.source = _linear(hidden_dim, message_dim)
        self.target = _linear(hidden_dim, message_dim, bias=False)
        self.radial = _linear(n_radial, message_dim, bias=False)
        node_dim = hidden_dim if node_dim is None else node_dim
        self.node_in = _linear(hidden_dim + message_dim + n_vectors + 2 * n_tensors, node_dim)
        self.node_out = _linear(node_dim, hidden_dim, gain=0.5)
        self.gate_sizes = [n_vectors] * (1 if first else 2) + ([n_tensors] if n_tensors else [])
        self.gate = _linear(message_dim, sum(self.gate_sizes), bias=False)
        self.read_left = _linear(n_vectors, n_vectors, bias=False)
        self.read_right = _linear(n_vectors, n_vectors, bias=False)
        if not last:
            self.vector_scale = _linear(node_dim, n_vectors, gain=0.1)
        if not first:
            self.geometry = _linear(3 * n_vectors, message_dim, bias=False, gain=0.3)
        if n_tensors:
            self.square = SymmetricSquare(n_dim)
            self.tensor_left = _linear(n_tensors, n_tensors, bias=False)
            self.tensor_right = _linear(n_tensors, n_tensors, bias=False)
            self.tensor_axes = _linear(n_vectors, n_tensors, bias=False)
            self.tensor_forms = _linear(n_tensors, n_tensors, bias=False)
            if not last:
                self.tensor_scale = _linear(node_dim, n_tensors, gain=0.1)

    def weights(self) -> Weights:
        """All weights as they are now."""
        modules: dict[str, Any] = self._modules
        found: dict[str, Any] = {
            field: modules[name]._parameters[kind] if name in modules else None for field, name, kind in _PLACES
        }
        shared, opposite = modules["radial"].weight, None
        if not self.first:
            own, other, inner = modules["geometry"].weight.chunk(3, 1)
            shared, opposite = torch.cat([shared, 0.5 * (own - other), inner], 1), 0.5 * (own + other)
        return Weights(**found, shared=shared, opposite=opposite)

    def forward(self, state: State, blocks: Sequence[Pairs]) -> tuple[State, Tape]:
        """The state, updated, and what `vjp` needs. Vectors and tensors are None before the first layer and after the
        last.
        """
        h, v, t = state
        w = self.weights()
        normed, inverse_norm = normalised(h)
        source, target = linear(normed, w.source, w.source_bias), linear(normed, w.target)
        aggregated: Tensor | None = None
        vectors, tensors, tapes = v, t, []
        for pairs in blocks:
            message, messages = self._messages(w, source, target, v, pairs)
            aggregated = pairs.ends.sum(message, aggregated)
            vectors = pairs.ends.sum(_sent(messages, pairs), vectors)
            if messages.moment is not None and pairs.quadrupoles is not None:
                first, second = messages.moment
                tensors = pairs.ends.sum((pairs.quadrupoles * first, pairs.quadrupoles * second), tensors)
            if len(blocks) == 1:
                tapes.append(messages)
        assert aggregated is not None
        assert vectors is not None
        half_left = 0.5 * w.read_left
        left, right = linear(vectors, half_left), linear(vectors, w.read_right)
        products = (left * right).sum(-2)
        moments = None
        if tensors is not None:
            moments, of_tensors = self._tensor_invariants(w, vectors, tensors)
            products = torch.cat([products, *of_tensors], -1)
        node_hidden = linear(torch.cat([normed, aggregated, self._bounded(products)], -1), w.node_in, w.node_in_bias)
        node = silu(node_hidden)
        h = h + linear(node, w.node_out, w.node_out_bias)
        v_scale = v_scaled = v_out = t_scale = t_scaled = t_out = None
        if w.vector_scale is not None:
            v_scale, v_scaled, v_out = self._scaled(vectors, linear(node, w.vector_scale, w.vector_scale_bias))
        if w.tensor_scale is not None and tensors is not None:
            t_scale, t_scaled, t_out = self._scaled(tensors, linear(node, w.tensor_scale, w.tensor_scale_bias))
        inputs = (w, blocks, tapes, normed, inverse_norm, source, target, v)
        read = (vectors, half_left, left, right, moments, products, node_hidden)
        return State(h, v_out, t_out), Tape(*inputs, *read, v_scale, v_scaled, t_scale, t_scaled)

    def _scaled(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x ∘ (1 + scale): the scale as it is multiplied, the product, and the product bounded."""
        scale = scale.unsqueeze(1)
        scaled = kept(torch.addcmul(x, x, scale))
        if self.bound is None:
            return scale, scaled, scaled
        return scale, scaled, saturated(scaled, scaled.square().sum(-2, keepdim=True), self.bound)

    def _tensor_invariants(
        self, w: Weights, vectors: Tensor, tensors: Tensor
    ) -> tuple[TensorTape, tuple[Tensor, Tensor]]:
        """½⟨C T', D T'⟩ and aᵀ S a, (n_atoms, n_tensors) each."""
        assert w.tensor_left is not None
        assert w.tensor_right is not None
        assert w.tensor_axes is not None
        assert w.tensor_forms is not None
        left, right = linear(tensors, w.tensor_left), linear(tensors, w.tensor_right)
        axes, forms = linear(vectors, w.tensor_axes), linear(tensors, w.tensor_forms)
        squares = self.square(axes)
        tape = TensorTape(tensors, left, right, axes, squares, forms)
        return tape, (0.5 * (left * right).sum(-2), (forms * squares).sum(-2))

    def _messages(
        self, w: Weights, source: Tensor, target: Tensor, v: Tensor | None, pairs: Pairs
    ) -> tuple[AtEnds, Messages]:
        """m to either end, (n_pairs, message_dim), and how they came about."""
        s, t = pairs.ends.of(source), pairs.ends.of(target)
        both = invariants = None
        common, differing = pairs.radial, None
        if v is not None:
            both = pairs.ends.of(v)
            along = [sum_over_space(end * pairs.directions) for end in both]
            invariants = kept(torch.cat([along[0], -along[1], sum_over_space(both[0] * both[1])], -1))
            first, second, inner = self._bounded(invariants).chunk(3, -1)
            common, differing = torch.cat([pairs.radial, first + second, inner], -1), first - second
        alike = product(common, w.shared)
        if differing is None or w.opposite is None:
            hidden = s[0] + t[1] + alike, s[1] + t[0] + alike
        else:
            unlike = product(differing, w.opposite)
            hidden = s[0] + t[1] + (alike + unlike), s[1] + t[0] + (alike - unlike)
        if ahead_of_time(hidden[0]):
            hidden = kept(hidden[0]), kept(hidden[1])
        activated = silu(hidden[0]), silu(hidden[1])
        message = activated[0] * pairs.weight, activated[1] * pairs.weight
        of_ends = (product(m, w.gate).unsqueeze(-2).split_with_sizes(self.gate_sizes, -1) for m in message)
        gates = list(zip(*of_ends, strict=True))
        moment = gates.pop() if self.n_tensors else None
        across = None if self.first else gates[1]
        return message, Messages(hidden, activated, gates[0], across, both, invariants, moment)

    def vjp(
        self,
        tape: Tape,
        by: State,
        by_pairs: Sequence[PairGradients],
        *,
        inputs: bool = True,
    ) -> State:
        """∂E by the state before the layer, from ∂E by that after it (None: nobody read it).

        What goes to the pairs is added to `by_pairs`, one for each block. `inputs` False: nothing before this layer
        depends on positions, and what comes back means nothing.
        """
        w, by_h = tape.weights, by.h
        by_node = by_h @ w.node_out
        by_vectors = by_tensors = None
        if by.v is not None and tape.scale is not None and tape.scaled is not None and w.vector_scale is not None:
            by_v = by.v if self.bound is None else saturated_vjp(by.v, tape.scaled, self.bound)
            by_vectors = torch.addcmul(by_v, by_v, tape.scale)
            by_node = plus_product(by_node, (by_v * tape.vectors).sum(-2), w.vector_scale)
        if by.t is not None and tape.tensor_scale is not None and tape.tensor_scaled is not None:
            assert tape.moments is not None
            assert w.tensor_scale is not None
            by_t = by.t if self.bound is None else saturated_vjp(by.t, tape.tensor_scaled, self.bound)
            by_tensors = torch.addcmul(by_t, by_t, tape.tensor_scale)
            by_node = plus_product(by_node, (by_t * tape.moments.tensors).sum(-2), w.tensor_scale)
        by_parts = silu_vjp(by_node, tape.node_hidden) @ w.node_in
        sizes = [by_h.shape[1], tape.source.shape[1], self.n_vectors + 2 * self.n_tensors]
        by_normed, by_aggregated, by_products = by_parts.split_with_sizes(sizes, -1)
        by_products = self._bounded_vjp(by_products, tape.products)
        by_inner = (by_products if tape.moments is None else by_products[:, : self.n_vectors]).unsqueeze(-2)
        read = (tape.right * by_inner) @ tape.half_left + (tape.left * by_inner) @ w.read_right
        by_vectors = read if by_vectors is None else by_vectors + read
        if tape.moments is not None:
            of_tensors = by_products[:, self.n_vectors :]
            more, by_tensors = self._tensor_invariants_vjp(w, of_tensors, tape.moments, by_tensors)
            by_vectors = by_vectors + more
        by_source: Tensor | None = None
        by_target: Tensor | None = None
        by_vectors = by_v_in = kept(by_vectors)
        for k, pairs in enumerate(tape.blocks):
            if tape.messages:
                messages = tape.messages[k]
            else:
                _, messages = self._messages(w, tape.source, tape.target, tape.v_in, pairs)
            by_hidden, by_ends = self._pairs_vjp(
                w, pairs, messages, by_aggregated, by_vectors, by_tensors, by_pairs[k], summed=len(tape.blocks) > 1
            )
            if inputs:
                by_source = pairs.ends.sum(by_hidden, by_source)
                by_target = pairs.ends.sum((by_hidden[1], by_hidden[0]), by_target)
            if inputs and by_ends is not None:
                by_v_in = pairs.ends.sum(by_ends, by_v_in)
        if by_source is not None and by_target is not None:
            by_normed = torch.addmm(by_normed, by_source, w.source)
            by_normed = plus_product(by_normed, by_target, w.target)
            by_h = normalised_vjp(by_normed, tape.normed, tape.inverse_norm, by_h)
        return State(by_h) if self.first else State(by_h, by_v_in, by_tensors)

    def _tensor_invariants_vjp(
        self, w: Weights, by: Tensor, tape: TensorTape, by_tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """∂E by v', and by T' with what is there already."""
        assert w.tensor_left is not None
        assert w.tensor_right is not None
        assert w.tensor_axes is not None
        assert w.tensor_forms is not None
        by_inner, by_forms = (part.unsqueeze(-2) for part in by.chunk(2, -1))
        half = 0.5 * by_inner
        more = (tape.right * half) @ w.tensor_left + (tape.left * half) @ w.tensor_right
        more = more + (tape.squares * by_forms) @ w.tensor_forms
        by_axes = self.square.vjp(tape.forms * by_forms, tape.axes)
        return by_axes @ w.tensor_axes, more if by_tensors is None else by_tensors + more

    def _pairs_vjp(
        self,
        w: Weights,
        pairs: Pairs,
        messages: Messages,
        by_aggregated: Tensor,
        by_vectors: Tensor,
        by_tensors: Tensor | None,
        by_pairs: PairGradients,
        *,
        summed: bool,
    ) -> tuple[AtEnds, AtEnds | None]:
        """Through one block: ∂E by W_s h + W_t h' and by v, at either end.

        `summed`: channels of `by_pairs` are added up in each layer, for memory, instead of once after all of them.
        """
        r, weight = pairs.directions, pairs.weight
        by_sent = pairs.ends.of(by_vectors)
        by_gates = [[sum_over_space(by_sent[0] * r)], [-sum_over_space(by_sent[1] * r)]]
        onto = PairGradients() if summed or not op_by_op(r) else by_pairs
        by_directions = _plus_elementwise(onto.by_directions, by_sent[0], messages.along[0])
        by_directions = torch.addcmul(by_directions, by_sent[1], messages.along[1], value=-1)
        if messages.v is not None:
            for end, of_end in enumerate(by_gates):
                of_end.append(sum_over_space(by_sent[end] * messages.v[1 - end]))
        if by_tensors is not None and pairs.quadrupoles is not None and messages.moment is not None:
            for of_end, by_moment, moment in zip(by_gates, pairs.ends.of(by_tensors), messages.moment, strict=True):
                of_end.append((by_moment * pairs.quadrupoles).sum(-2))
                by_quadrupoles = (by_moment * moment).sum(-1, keepdim=True)
                by_pairs.by_quadrupoles = _sum(by_pairs.by_quadrupoles, by_quadrupoles)
        by_weight, by_hidden = onto.by_weight, []
        for end, by_own in enumerate(pairs.ends.of(by_aggregated)):
            by_message = plus_product(by_own, torch.cat(by_gates[end], -1), w.gate)
            by_weight = _plus_elementwise(by_weight, by_message, messages.activated[end])
            by_hidden.append(kept(silu_vjp(by_message * weight, messages.hidden[end])))
        by_shared, by_v = (by_hidden[0] + by_hidden[1]) @ w.shared, None
        if w.opposite is not None and messages.invariants is not None:
            by_opposite = (by_hidden[0] - by_hidden[1]) @ w.opposite
            by_shared, by_invariants = self._invariants_vjp(by_shared, by_opposite, messages.invariants)
            by_v, by_directions = _geometry_vjp(by_invariants, by_sent, by_directions, messages, r)
        if onto is not by_pairs:
            by_directions = _sum(by_pairs.by_directions, by_directions.sum(-1, keepdim=True))
            assert by_weight is not None
            by_weight = _sum(by_pairs.by_weight, by_weight.sum(-1, keepdim=True))
        by_pairs.by_directions, by_pairs.by_weight = by_directions, by_weight
        by_pairs.by_radial = _sum(by_pairs.by_radial, by_shared)
        return (by_hidden[0], by_hidden[1]), by_v

    def _invariants_vjp(self, by_shared: Tensor, by_opposite: Tensor, invariants: Tensor) -> tuple[Tensor, Tensor]:
        """∂E by b and by [a_i; a_j; v_i·v_j], from that by the rows of the two products of messages."""
        n = self.n_vectors
        by_radial, by_sum, by_inner = by_shared.split_with_sizes([by_shared.shape[1] - 2 * n, n, n], -1)
        by_invariants = torch.cat([by_sum + by_opposite, by_sum - by_opposite, by_inner], -1)
        return by_radial, self._bounded_vjp(by_invariants, invariants)

    def _bounded(self, products: Tensor) -> Tensor:
        return products if self.bound is None else saturated(products, products.square(), self.bound)

    def _bounded_vjp(self, by: Tensor, products: Tensor) -> Tensor:
        if self.bound is None:
            return by
        inverse = torch.rsqrt(1.0 + products.square() / self.bound**2)
        return by * inverse * inverse * inverse


def _sent(messages: Messages, pairs: Pairs) -> AtEnds:
    """What vectors get of a pair, (n_pairs, n_dim, n_vectors)."""
    first = pairs.directions * messages.along[0]
    second = -pairs.directions * messages.along[1]
    if messages.v is None or messages.across is None:
        return first, second
    across = messages.across
    return torch.addcmul(first, messages.v[1], across[0]), torch.addcmul(second, messages.v[0], across[1])


def _geometry_vjp(
    by_invariants: Tensor, by_sent: AtEnds, by_directions: Tensor, messages: Messages, r: Tensor
) -> tuple[AtEnds, Tensor]:
    """∂E by v at either end, and by r̂ with what is there already, through the invariants and through what was sent."""
    assert messages.v is not None
    assert messages.across is not None
    v, across = messages.v, messages.across
    by_first, by_second, by_inner = by_invariants.unsqueeze(-2).chunk(3, -1)
    by_v0 = torch.addcmul(r * by_first, v[1], by_inner)
    by_v1 = torch.addcmul(v[0] * by_inner, r, by_second, value=-1)
    by_directions = torch.addcmul(by_directions, v[0], by_first)
    by_directions = torch.addcmul(by_directions, v[1], by_second, value=-1)
    by_v = torch.addcmul(by_v0, by_sent[1], across[1]), torch.addcmul(by_v1, by_sent[0], across[0])
    return by_v, by_directions


def _plus_elementwise(x: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """x (None for zero) + a ∘ b."""
    return a * b if x is None else torch.addcmul(x, a, b)


def _sum(x: Tensor | None, y: Tensor) -> Tensor:
    return y if x is None else x + y


def normalised(h: Tensor) -> tuple[Tensor, Tensor]:
    """h over its root mean square along the last dimension, and one over that."""
    inverse = torch.rsqrt(h.square().sum(-1, keepdim=True) / h.shape[-1] + NORM_FLOOR)
    return h * inverse, inverse


def normalised_vjp(by: Tensor, normed: Tensor, inverse: Tensor, onto: Tensor) -> Tensor:
    """onto plus ∂E by h, from ∂E by `normalised(h)`."""
    along = (by * normed).sum(-1, keepdim=True)
    return torch.addcmul(onto, torch.addcmul(by, normed, along, value=-1.0 / by.shape[-1]), inverse)


def saturated(x: Tensor, squared_size: Tensor, bound: float) -> Tensor:
    """x, scaled down so that its size stays below `bound`; far below the bound x stays as it is."""
    return x * torch.rsqrt(1.0 + squared_size / bound**2)


def saturated_vjp(by: Tensor, vectors: Tensor, bound: float) -> Tensor:
    """∂E by vectors (..., n_dim, n_vectors) from ∂E by `saturated` ones."""
    inverse = torch.rsqrt(1.0 + vectors.square().sum(-2, keepdim=True) / bound**2)
    along = (by * vectors).sum(-2, keepdim=True) * (inverse * inverse / bound**2)
    return torch.addcmul(by, vectors, along, value=-1.0) * inverse
