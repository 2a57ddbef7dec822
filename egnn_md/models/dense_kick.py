"""`FlowMap.kick` for one molecule, written for speed: all pairs of atoms as dense (n, n) arrays, weights packed once.

The same function. For a small molecule a call is mostly the fixed cost of each operation, and there are fewer of these
without gathering, scattering and separate maps for what shares an input. Dense arrays waste little: nearly all atoms
of a molecule are neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from egnn_md.models.flow import FORCE_SCALE, FlowMap, Kick
from egnn_md.nn.radial import TINY_SQUARE, cutoff_value
from egnn_md.nn.vector_egcl import NEIGHBOR_SCALE, NORM_FLOOR, VectorEGCL


class _Layer(NamedTuple):
    """The maps of a `VectorEGCL`, those that share an input side by side."""

    ends: Tensor
    ends_bias: Tensor
    geometry: Tensor | None
    gate: Tensor
    read: Tensor
    node_in: Tensor
    node_in_bias: Tensor
    out: Tensor
    out_bias: Tensor

    @classmethod
    def of(cls, layer: VectorEGCL) -> _Layer:
        source, target, node_out, scale = layer.source, layer.target, layer.node_out, layer.vector_scale
        geometry = None
        if hasattr(layer, "geometry"):  # r̂_ij·v_j is minus r̂_ji·v_j, which is at hand
            own, other, both = layer.geometry.weight.chunk(3, 1)
            geometry = torch.cat([own, -other, both], 1).T.contiguous()
        return cls(
            ends=torch.cat([source.weight, target.weight]),
            ends_bias=torch.cat([source.bias, torch.zeros_like(source.bias)]),
            geometry=geometry,
            gate=layer.gate.weight,
            read=torch.cat([0.5 * layer.read_left.weight, layer.read_right.weight]),
            node_in=layer.node_in.weight,
            node_in_bias=layer.node_in.bias,
            out=torch.cat([node_out.weight, scale.weight]),
            out_bias=torch.cat([node_out.bias, scale.bias]),
        )


class DenseKick(nn.Module):
    """positions (n, 3) and features (n, hidden_dim) of K_a or K_b -> `Kick`, as `FlowMap.kick` with all pairs."""

    def __init__(self, model: FlowMap, n_atoms: int) -> None:
        super().__init__()
        self.model, self.dtype = model, model.dtype
        self.layers = [_Layer.of(layer) for layer in model.layers]  # type: ignore[arg-type]
        n_radial, n_vectors = model.config.n_radial, model.config.n_vectors
        last, *by_geometry = model.pair_inputs.weight.split_with_sizes([n_radial, n_vectors, n_vectors], 1)
        by_layer = [layer.radial.weight for layer in model.layers if isinstance(layer, VectorEGCL)]
        self.radial = torch.cat([*by_layer, last]).T.contiguous()
        self.pair_geometry = torch.cat(by_geometry, 1).T.contiguous()
        scales = torch.tensor([0.5 * FORCE_SCALE, 0.5], dtype=self.dtype)[:, None]
        self.pair_output = model.pair_output.weight * scales  # ½: both ends are added up
        self.others = 1.0 - torch.eye(n_atoms, dtype=self.dtype).unsqueeze(-1)

    def forward(self, positions: Tensor, features: Tensor) -> Kick:
        """Directions are taken and pushes added in the precision of the positions."""
        n, cutoff = len(positions), self.model.config.cutoff
        vectors = positions.unsqueeze(0) - positions.unsqueeze(1)
        distances = (vectors.square().sum(-1, keepdim=True) + TINY_SQUARE).sqrt()
        directions = vectors / distances
        seen, toward = distances.to(self.dtype), directions.to(self.dtype)
        envelope = cutoff_value(seen, cutoff) * self.others
        basis = self.model.basis
        radial = torch.sin(seen * basis.frequencies) * (basis.scale / seen)
        *by_layer, by_pair = (radial.view(n * n, -1) @ self.radial).view(n, n, -1).chunk(len(self.layers) + 1, -1)
        h, v = self._layers(features, toward, by_layer, envelope * NEIGHBOR_SCALE)
        node = self.model.pair_node(_normed(h))
        own, both = _products(toward, v)
        geometry = torch.cat([own + own.transpose(0, 1), both], -1)
        hidden = node.unsqueeze(1) + node.unsqueeze(0) + by_pair + geometry @ self.pair_geometry
        terms = linear(silu(hidden), self.pair_output) * envelope
        terms = (terms + terms.transpose(0, 1)).to(positions.dtype)  # exactly the same from both ends
        return (directions * terms[..., :1]).sum(1), 0.5 * terms[..., 1].sum(1)

    def _layers(self, h: Tensor, toward: Tensor, radial: list[Tensor], envelope: Tensor) -> tuple[Tensor, Tensor]:
        dim, backwards = h.shape[-1], toward.transpose(1, 2)
        v = h.new_zeros(0)
        for layer, by_radial in zip(self.layers, radial, strict=True):
            normed = _normed(h)
            source, target = linear(normed, layer.ends, layer.ends_bias).chunk(2, -1)
            hidden = source.unsqueeze(1) + target.unsqueeze(0) + by_radial
            if layer.geometry is not None:
                own, both = _products(toward, v)
                hidden = hidden + torch.cat([own, own.transpose(0, 1), both], -1) @ layer.geometry
            messages = silu(hidden) * envelope
            gates = linear(messages, layer.gate)
            if layer.geometry is None:
                v = backwards @ gates
            else:
                along, across = gates.chunk(2, -1)
                v = v + backwards @ along + (across.unsqueeze(2) * v.unsqueeze(0)).sum(1)
            left, right = linear(v, layer.read).chunk(2, -1)
            node = torch.cat([normed, messages.sum(1), (left * right).sum(1)], -1)
            node = silu(linear(node, layer.node_in, layer.node_in_bias))
            update, scale = linear(node, layer.out, layer.out_bias).split_with_sizes([dim, v.shape[-1]], -1)
            h, v = h + update, torch.addcmul(v, v, scale.unsqueeze(1))
        return h, v


def _normed(h: Tensor) -> Tensor:
    """h / sqrt(mean h² + floor) along the last dimension."""
    return h * torch.rsqrt(torch.linalg.vecdot(h, h) / h.shape[-1] + NORM_FLOOR).unsqueeze(-1)


def _products(toward: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """r̂_ij·v_i and v_i·v_j of each channel, (n, n, n_vectors) each."""
    return toward @ v, (v.unsqueeze(1) * v.unsqueeze(0)).sum(2)
