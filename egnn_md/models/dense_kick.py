"""`FlowMap.kick` for one molecule, all pairs of atoms as dense (n, n) arrays: the same function, without gathering and
scattering. Dense arrays waste little: nearly all atoms of a molecule are neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from egnn_md.models.flow import FORCE_SCALE, FlowMap, Kick
from egnn_md.nn.layouts import Dense
from egnn_md.nn.radial import TINY_SQUARE, cutoff_value
from egnn_md.nn.vector_layer import NEIGHBOR_SCALE, Edges, normalised


class DenseKick(nn.Module):
    """positions (n, 3) and features (n, hidden_dim) of K_a or K_b -> `Kick`, as `FlowMap.kick` with all pairs."""

    def __init__(self, model: FlowMap, n_atoms: int) -> None:
        super().__init__()
        self.model, self.dtype = model, model.dtype
        n_radial, n_vectors = model.config.n_radial, model.config.n_vectors
        weight = model.pair_inputs.weight
        self.pair_radial, by_difference, by_product = weight.split_with_sizes([n_radial, n_vectors, n_vectors], 1)
        self.pair_geometry = torch.cat([by_difference, by_product], 1)
        scales = torch.tensor([0.5 * FORCE_SCALE, 0.5], dtype=self.dtype, device=weight.device)[:, None]
        self.pair_output = model.pair_output.weight * scales  # ½: both ends are added up
        self.others = 1.0 - torch.eye(n_atoms, dtype=self.dtype, device=weight.device).unsqueeze(-1)

    def forward(self, positions: Tensor, features: Tensor) -> Kick:
        """Directions are taken and pushes added in the precision of the positions."""
        vectors = positions.unsqueeze(0) - positions.unsqueeze(1)
        distances = (vectors.square().sum(-1, keepdim=True) + TINY_SQUARE).sqrt()
        directions = vectors / distances
        seen, toward = distances.to(self.dtype), directions.to(self.dtype).unsqueeze(-1)
        envelope = cutoff_value(seen, self.model.config.cutoff) * self.others
        radial = self.model.basis.value(seen)
        h, v = self.model.through_layers(features, Edges(Dense(), toward, radial, envelope * NEIGHBOR_SCALE))
        node = self.model.pair_node(normalised(h)[0])
        own = (toward * v.unsqueeze(1)).sum(2)
        both = (v.unsqueeze(1) * v.unsqueeze(0)).sum(2)
        geometry = torch.cat([own + own.transpose(0, 1), both], -1)
        hidden = node.unsqueeze(1) + node.unsqueeze(0) + linear(radial, self.pair_radial)
        hidden = hidden + linear(geometry, self.pair_geometry)
        terms = linear(silu(hidden), self.pair_output) * envelope
        terms = (terms + terms.transpose(0, 1)).to(positions.dtype)  # exactly the same from both ends
        return (directions * terms[..., :1]).sum(1), 0.5 * terms[..., 1].sum(1)
