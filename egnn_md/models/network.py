"""The learned term of a potential: Σ_i ε(h_i), h from an element embedding and a stack of `VectorLayer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from egnn_md.models.terms import System, TermResult
from egnn_md.nn.ops import gather, silu_vjp
from egnn_md.nn.pairs import PairFunctions, PairValues
from egnn_md.nn.vector_layer import PairGradients, State, Tape, VectorLayer


class NetworkTape(NamedTuple):
    """What the way back needs of the way forward."""

    blocks: list[PairValues]
    layers: list[Tape]
    hidden: Tensor
    """Of the readout, before SiLU."""


class Network(nn.Module):
    """Energies and ∂E/∂r_ij, explicit functions of positions and weights: differentiable by the weights where gradients
    are tracked, and without a trace where they are not.
    """

    def __init__(
        self,
        elements: Sequence[int],
        *,
        cutoff: float,
        hidden_dim: int,
        message_dim: int,
        n_layers: int,
        n_vectors: int,
        n_tensors: int,
        n_radial: int,
        core_start: float,
        core_end: float,
        bound: float | None = None,
        node_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(elements), hidden_dim)
        sizes, last = (hidden_dim, message_dim, n_radial, n_vectors), n_layers - 1
        self.layers = nn.ModuleList(
            VectorLayer(*sizes, first=k == 0, last=k == last, n_tensors=n_tensors, bound=bound, node_dim=node_dim)
            for k in range(n_layers)
        )
        self.pairs = PairFunctions(
            elements,
            cutoff=cutoff,
            n_radial=n_radial,
            core_start=core_start,
            core_end=core_end,
            quadrupoles=n_tensors > 0,
        )
        self.readout = nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, 1))

    def forward(self, system: System) -> TermResult:
        energies, features, tape = self.evaluate(system)
        return TermResult(energies, by_pair=self.gradient(tape), features=features)

    def evaluate(self, system: System) -> tuple[Tensor, Tensor, NetworkTape]:
        """Energies (n_atoms,) eV in float64, final features (n_atoms, hidden_dim), and what `gradient` needs."""
        blocks = [self.pairs(part.directions, part.distances, part.kinds, part.ends) for part in system.blocks]
        pairs = [block.pairs for block in blocks]
        state, tapes = State(gather(self.embedding.weight, system.species)), []
        for layer in self.layers:
            state, tape = layer(state, pairs)
            tapes.append(tape)
        first, _, second = self.readout
        hidden = first(state.h)
        energies = second(silu(hidden)).squeeze(-1).double()
        return energies, state.h, NetworkTape(blocks, tapes, hidden)

    def gradient(self, tape: NetworkTape, by_features: Tensor | None = None) -> Tensor:
        """∂E/∂r_ij, (n_pairs, 3) eV/Å, E the sum of all energies and of what else was made of the features."""
        into, out = (part.weight for part in self.readout if isinstance(part, nn.Linear))
        by_h = silu_vjp(out.expand(tape.hidden.shape[0], -1), tape.hidden) @ into
        by = State(by_h if by_features is None else by_h + by_features)
        by_pairs = [PairGradients() for _ in tape.blocks]
        for layer, passed in zip(reversed(list(self.layers)), reversed(tape.layers), strict=True):
            assert isinstance(layer, VectorLayer)
            by = layer.vjp(passed, by, by_pairs, inputs=not layer.first)
        gradients = [block.gradient(by) for block, by in zip(tape.blocks, by_pairs, strict=True)]
        return torch.cat(gradients) if len(gradients) > 1 else gradients[0]
