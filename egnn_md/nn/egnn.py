"""The stack of EGCLs: an E(n)-equivariant graph neural network (arXiv 2102.09844)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from egnn_md.nn.egcl import EGCL, EdgeInput, NodeState, one_over_neighbors
from egnn_md.nn.ops import gather, segment_sum

CoordinateScale = Literal["others", "mean", "sum"]
"""C of eqs. 4 and 7: 1/(n-1) of the paper, n the nodes of a graph; 1/neighbours of each node; or 1."""


class EGNN(nn.Module):
    """(h, x[, v]) -> (h', x'[, v']) in any number of dimensions: h' is invariant, x' and v' are equivariant.

    Parameters
    ----------
    in_dim, hidden_dim, out_dim: widths of the input, hidden and output features; out_dim None where only positions
        (and velocities) are wanted: the last layer then leaves the features alone.
    n_layers: number of EGCLs.
    coordinate_scale: the constant C, see `CoordinateScale`.
    layer_options: passed on to `EGCL` (edge_dim, update_coordinates, velocities, soft_edges, …). For deep stacks and
        large graphs normalize=True and largest_step=…: as in the paper, 16 layers on 100 nodes overflow.

    >>> edge_index = torch.tensor([(i, j) for i in range(5) for j in range(5) if i != j]).T
    >>> network = EGNN(in_dim=3, hidden_dim=16, out_dim=1, n_layers=2)
    >>> out = network(torch.randn(5, 3), torch.randn(5, 4), edge_index)  # in four dimensions
    >>> out.features.shape, out.positions.shape
    (torch.Size([5, 1]), torch.Size([5, 4]))
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int | None,
        n_layers: int,
        *,
        coordinate_scale: CoordinateScale = "others",
        edge_dim: int = 0,
        largest_step: float | None = None,
        **layer_options: bool,
    ) -> None:
        super().__init__()
        if coordinate_scale not in get_args(CoordinateScale):
            raise ValueError(f"coordinate_scale is one of {get_args(CoordinateScale)}, not {coordinate_scale!r}")
        self.coordinate_scale = coordinate_scale
        self.has_velocities = bool(layer_options.get("velocities", False))
        self.embedding = nn.Linear(in_dim, hidden_dim)
        self.layers = nn.ModuleList(
            EGCL(
                hidden_dim,
                edge_dim=edge_dim,
                largest_step=largest_step,
                update_features=out_dim is not None or k + 1 < n_layers,
                **layer_options,
            )
            for k in range(n_layers)
        )
        self.output = nn.Identity() if out_dim is None else nn.Linear(hidden_dim, out_dim)

    def forward(
        self,
        features: Tensor,
        positions: Tensor,
        edge_index: Tensor,
        *,
        edge_attributes: Tensor | None = None,
        edge_weight: Tensor | None = None,
        edge_offsets: Tensor | None = None,
        velocities: Tensor | None = None,
        batch: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> NodeState:
        """Run all layers.

        Shapes: features (n_nodes, in_dim), positions and velocities (n_nodes, n_dim), edge_index (2, n_edges),
        edge_attributes (n_edges, edge_dim), edge_weight (n_edges, 1), edge_offsets (n_edges, n_dim), batch (n_nodes,)
        the graph of each node (None: one graph), mask (n_nodes,) bool, False for nodes that are padding, which then
        count nowhere (they have no edges); see `EdgeInput`. Inputs are not changed. Lengths in the caller's unit,
        velocities in that unit per step. Raises ValueError for shapes that do not fit, edge attributes that are
        missing or too many, and velocities given to a network without, or missing from one with them.
        """
        if velocities is not None and not self.has_velocities:
            raise ValueError("velocities given to an EGNN built without them: EGNN(…, velocities=True)")
        self._check(features, positions, edge_index, batch, mask)
        scale = _coordinate_scale(self.coordinate_scale, positions, edge_index, batch, mask)
        edges = EdgeInput(edge_index, scale, edge_attributes, edge_offsets, edge_weight)
        state = NodeState(self.embedding(features), positions, velocities)
        for layer in self.layers:
            state = layer(state, edges, velocities)
        return NodeState(self.output(state.features), state.positions, state.velocities)

    def _check(
        self, features: Tensor, positions: Tensor, edge_index: Tensor, batch: Tensor | None, mask: Tensor | None
    ) -> None:
        """Raise ValueError for what the layers could not say in the caller's words."""
        if positions.dim() != 2:
            raise ValueError(f"positions must have the shape (n_nodes, n_dim), not {tuple(positions.shape)}")
        n_nodes = positions.shape[0]
        if features.shape != (n_nodes, self.embedding.in_features):
            wanted = (n_nodes, self.embedding.in_features)
            raise ValueError(f"features must have the shape {wanted}, (n_nodes, in_dim), not {tuple(features.shape)}")
        if edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
            raise ValueError(
                f"edge_index must be int64 of shape (2, n_edges), not {edge_index.dtype} of {tuple(edge_index.shape)}"
            )
        for name, tensor in (("batch", batch), ("mask", mask)):
            if tensor is not None and tensor.shape != (n_nodes,):
                raise ValueError(f"{name} must have the shape ({n_nodes},), not {tuple(tensor.shape)}")


def _coordinate_scale(
    kind: CoordinateScale, positions: Tensor, edge_index: Tensor, batch: Tensor | None, mask: Tensor | None
) -> Tensor:
    n_nodes = positions.shape[0]
    if kind == "sum":
        return positions.new_ones(n_nodes, 1)
    if kind == "mean":
        return one_over_neighbors(edge_index, positions)
    if batch is None and mask is not None:
        batch = torch.zeros_like(mask, dtype=torch.int64)
    if batch is None:
        return positions.new_full((n_nodes, 1), 1.0 / max(n_nodes - 1, 1))
    return one_over_others(batch, positions.dtype, mask)


def one_over_others(batch: Tensor, dtype: torch.dtype, mask: Tensor | None = None) -> Tensor:
    """C = 1/(n - 1) of eq. 4 for each node, (n_nodes, 1), n the nodes of its graph (but for those that `mask` leaves
    out); 1 where it is alone.
    """
    n_nodes = batch.shape[0]  # there are no more graphs than nodes
    counted = torch.ones(n_nodes, 1, dtype=dtype, device=batch.device)
    if mask is not None:
        counted = counted * mask.unsqueeze(-1)
    counts = segment_sum(counted, batch, n_nodes)
    return 1.0 / (gather(counts, batch) - 1.0).clamp(min=1.0)
