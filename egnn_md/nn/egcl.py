"""The E(n)-equivariant graph convolutional layer of Satorras, Hoogeboom, Welling (arXiv 2102.09844).

m_ij = φ_e(h_i, h_j, |x_i - x_j|², a_ij)                     (eq. 3)
x_i' = x_i + C Σ_j (x_i - x_j) φ_x(m_ij)                     (eq. 4)
m_i  = Σ_j m_ij,  or  Σ_j φ_inf(m_ij) m_ij  with soft edges  (eqs. 5 and 8)
h_i' = h_i + φ_h(h_i, m_i)                                   (eq. 6, with the residual of the paper's code)
v_i' = φ_v(h_i) v_i + C Σ_j (x_i - x_j) φ_x(m_ij)            (eq. 7; v_i is the input velocity in every layer)
x_i' = x_i + v_i'
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from egnn_md.nn.ops import gather, segment_sum
from egnn_md.nn.radial import distance


@dataclass(frozen=True, eq=False)
class NodeState:
    """What an EGCL updates. Any number of dimensions; the unit of length is the caller's."""

    features: Tensor
    """h, (n_nodes, hidden_dim)."""
    positions: Tensor
    """x, (n_nodes, n_dim)."""
    velocities: Tensor | None = None
    """v, (n_nodes, n_dim), or None for a layer without velocities."""


@dataclass(frozen=True, eq=False)
class EdgeInput:
    """What all layers read of the edges, and no layer changes."""

    index: Tensor
    """(2, n_edges) int64: row 0 the centre i, row 1 the neighbour j."""
    coordinate_scale: Tensor
    """C of eqs. 4 and 7, (n_nodes, 1)."""
    attributes: Tensor | None = None
    """a_ij, (n_edges, edge_dim)."""
    offsets: Tensor | None = None
    """(n_edges, n_dim), added to x_i - x_j: minus the cell shift of a periodic image."""
    weight: Tensor | None = None
    """(n_edges, 1), known soft edges such as a cutoff envelope: every message is multiplied by it."""


class EdgeModel(nn.Module):
    """φ_e of eq. 3: two linear maps, each followed by SiLU.

    The first acts on the concatenation [h_i; h_j; |x_i - x_j|²; a_ij]. It is kept in three parts,
    W_s h_i + W_t h_j + W_p [d²; a_ij], so that the two large products run over nodes instead of edges: the same
    function for about a third of the arithmetic.
    """

    def __init__(self, hidden_dim: int, edge_dim: int) -> None:
        super().__init__()
        self.source = nn.Linear(hidden_dim, hidden_dim)
        self.target = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.pair = nn.Linear(1 + edge_dim, hidden_dim, bias=False)
        self.output = nn.Linear(hidden_dim, hidden_dim)
        _initialize_as_one(self.source, self.target, self.pair)

    def forward(self, features: Tensor, edges: EdgeInput, squared_distances: Tensor) -> Tensor:
        """h (n_nodes, hidden_dim), d² (n_edges, 1) -> m_ij (n_edges, hidden_dim)."""
        centre, neighbor = edges.index
        ends = gather(self.source(features), centre) + gather(self.target(features), neighbor)
        by_distance, by_attributes = self.pair.weight.t().contiguous().tensor_split([1])  # (inputs, hidden_dim): so,
        hidden = torch.addmm(ends, squared_distances, by_distance)  # gradients of such thin products are quick
        if edges.attributes is not None:
            hidden = torch.addmm(hidden, edges.attributes, by_attributes)
        return nn.functional.silu(self.output(nn.functional.silu(hidden)))


def _initialize_as_one(*parts: nn.Linear) -> None:
    """Give the parts of a split linear map the initial weights of the whole (torch's default: ±1/sqrt(fan_in))."""
    bound = sum(part.in_features for part in parts) ** -0.5
    for part in parts:
        nn.init.uniform_(part.weight, -bound, bound)
        if part.bias is not None:
            nn.init.uniform_(part.bias, -bound, bound)


def _two_layers(in_dim: int, hidden_dim: int, out_dim: int, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, out_dim, bias=bias))


class EGCL(nn.Module):
    """One layer: see the equations at the top of this module.

    Parameters
    ----------
    hidden_dim: width of h and of the messages.
    edge_dim: number of edge attributes a_ij.
    update_coordinates: apply eq. 4 (and eq. 7 when velocities are given); False leaves x and v as they are.
    velocities: own a φ_v and update velocities, eq. 7.
    velocity_recursion: v' = φ_v(h) v + … with the velocity of the layer before, instead of the input velocity.
    soft_edges: weigh messages by φ_inf(m_ij) in (0, 1), eq. 8.
    residual: add h to φ_h, as the authors' code does.
    update_features: apply eqs. 5 and 6; False for a last layer whose features nobody reads.
    normalize: (x_i - x_j) / (|x_i - x_j| + 1) in eqs. 4 and 7, and the mean over the neighbours in eq. 5: far ones and
        many weigh no more than others. Not the paper's; for stacks that are deep or graphs that are large.
    largest_step: in the unit of length, what the sum Δ of eqs. 4 and 7 stays below: it becomes
        Δ / sqrt(1 + |Δ|²/largest_step²). None, the paper's: unbounded.

    Raises ValueError for options that contradict each other.
    """

    def __init__(
        self,
        hidden_dim: int,
        *,
        edge_dim: int = 0,
        update_coordinates: bool = True,
        velocities: bool = False,
        velocity_recursion: bool = False,
        soft_edges: bool = False,
        residual: bool = True,
        update_features: bool = True,
        normalize: bool = False,
        largest_step: float | None = None,
    ) -> None:
        super().__init__()
        if velocities and not update_coordinates:
            raise ValueError("velocities=True needs update_coordinates=True: eq. 7 moves the positions")
        if largest_step is not None and not 0 < largest_step < math.inf:
            raise ValueError(f"largest_step must be positive, or None for steps of any length, not {largest_step}")
        self.hidden_dim, self.edge_dim = hidden_dim, edge_dim
        self.normalize, self.largest_step = normalize, largest_step
        self.velocity_recursion = velocity_recursion
        self.residual = residual
        self.edge_model = EdgeModel(hidden_dim, edge_dim)  # φ_e
        self.node_model = _two_layers(2 * hidden_dim, hidden_dim, hidden_dim) if update_features else None  # φ_h
        self.soft_edge = nn.Linear(hidden_dim, 1) if soft_edges else None  # φ_inf, before its sigmoid
        self.coordinate_model = _two_layers(hidden_dim, hidden_dim, 1, bias=False) if update_coordinates else None
        self.velocity_model = _two_layers(hidden_dim, hidden_dim, 1) if velocities else None  # φ_v
        if self.coordinate_model is not None:  # φ_x starts near zero: deep stacks would fling the points apart
            nn.init.xavier_uniform_(cast(nn.Linear, self.coordinate_model[-1]).weight, gain=1e-3)

    def forward(self, state: NodeState, edges: EdgeInput, input_velocities: Tensor | None = None) -> NodeState:
        """One update of (h, x, v).

        `input_velocities` (n_nodes, n_dim) is v_init of eq. 7; None means `state.velocities`. Raises ValueError for
        shapes that do not fit, for edge attributes missing or too many, and if the layer has velocities and the state
        none.
        """
        self._check(state, edges)
        centre, neighbor = edges.index
        differences = gather(state.positions, centre) - gather(state.positions, neighbor)  # x_i - x_j
        if edges.offsets is not None:
            differences = differences + edges.offsets
        messages = self.edge_model(state.features, edges, differences.square().sum(-1, keepdim=True))
        if self.soft_edge is not None:
            messages = messages * torch.sigmoid(self.soft_edge(messages))
        if edges.weight is not None:
            messages = messages * edges.weight
        moved = self._move(state, edges, messages, differences, input_velocities)
        if self.node_model is None:
            return moved
        aggregated = segment_sum(messages, centre, state.features.shape[0])
        if self.normalize:
            aggregated = aggregated * one_over_neighbors(edges.index, aggregated)
        update = self.node_model(torch.cat([state.features, aggregated], -1))
        return replace(moved, features=state.features + update if self.residual else update)

    def _move(
        self,
        state: NodeState,
        edges: EdgeInput,
        messages: Tensor,
        differences: Tensor,
        input_velocities: Tensor | None,
    ) -> NodeState:
        """Eqs. 4 and 7: new positions, new velocities, old features."""
        if self.coordinate_model is None:
            return state
        if self.normalize:
            differences = differences / (distance(differences) + 1.0)
        weighted = differences * self.coordinate_model(messages)
        if edges.weight is not None:
            weighted = weighted * edges.weight
        step = edges.coordinate_scale * segment_sum(weighted, edges.index[0], state.positions.shape[0])
        if self.largest_step is not None:
            step = step * torch.rsqrt(1.0 + step.square().sum(-1, keepdim=True) / self.largest_step**2)
        if self.velocity_model is None:
            return replace(state, positions=state.positions + step)
        if state.velocities is None:
            raise ValueError("this EGCL has velocities=True: give the state velocities (n_nodes, n_dim)")
        carried = state.velocities if self.velocity_recursion or input_velocities is None else input_velocities
        velocities = self.velocity_model(state.features) * carried + step
        return replace(state, positions=state.positions + velocities, velocities=velocities)

    def _check(self, state: NodeState, edges: EdgeInput) -> None:
        """Raise ValueError, naming the shapes, for inputs that do not fit each other."""
        n_nodes, n_edges = state.positions.shape[0], edges.index.shape[-1]
        n_dim = state.positions.shape[-1]
        expected = (
            ("features", state.features, (n_nodes, self.hidden_dim)),
            ("positions", state.positions, (n_nodes, n_dim)),
            ("velocities", state.velocities, (n_nodes, n_dim)),
            ("edge_index", edges.index, (2, n_edges)),
            ("edge attributes", edges.attributes, (n_edges, self.edge_dim)),
            ("edge offsets", edges.offsets, (n_edges, n_dim)),
            ("edge weight", edges.weight, (n_edges, 1)),
            ("the coordinate scale", edges.coordinate_scale, (n_nodes, 1)),
        )
        for name, tensor, shape in expected:
            if tensor is not None and tensor.shape != shape:
                raise ValueError(
                    f"{name} must have the shape {tuple(shape)}, not {tuple(tensor.shape)}: {n_nodes} nodes in {n_dim} "
                    f"dimensions, {n_edges} edges"
                )
        if edges.attributes is None and self.edge_dim:
            raise ValueError(
                f"edge attributes (n_edges, {self.edge_dim}) are missing: the network was made with edge_dim="
                f"{self.edge_dim}"
            )


def one_over_neighbors(edge_index: Tensor, like: Tensor) -> Tensor:
    """1 / number of neighbours of each node, (n_nodes, 1); 1 where there are none. `like` has a row for each node."""
    ones = like.new_ones(edge_index.shape[1], 1)
    return 1.0 / segment_sum(ones, edge_index[0], like.shape[0]).clamp(min=1.0)
