"""The loss of a potential, eager or traced and compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from egnn_md.data.frame_batches import Batch
from egnn_md.models.potential import ForceCall, Potential, forces_from_edges, stress_from_edges
from egnn_md.nn.compilation import compile_function
from egnn_md.nn.ops import segment_sum
from egnn_md.training.potential_config import PotentialTrainingConfig


class LossTerms(NamedTuple):
    """The weighted loss and its parts, each a mean over the whole step."""

    total: Tensor
    force: Tensor
    """eV/Å (l1) or its square (mse)."""
    energy: Tensor
    """eV/atom (l1) or its square (mse)."""
    stress: Tensor
    """eV/Å³ (l1) or its square (mse); 0 without."""


class PotentialLoss:
    """Energy error per atom, force error and stress error of a batch, each with its weight.

    "l1": mean absolute energy error per atom, mean length of the force error; "mse": mean squares. Labels that are
    NaN do not count. With `compile`, the first call traces forward, forces and loss into one graph and compiles it.
    """

    def __init__(self, model: Potential, config: PotentialTrainingConfig) -> None:
        self.model = model
        self.config = config
        self._compiled: Callable[..., tuple[Tensor, ...]] | None = None

    def __call__(self, batch: Batch) -> LossTerms:
        graph = batch.graph
        inputs = (
            graph.edge_vectors().to(self.model.dtype),
            self.model.species(graph.atomic_numbers),
            graph.edge_index,
            graph.batch,
            graph.cell,
            graph.pbc,
            batch.energy,
            batch.forces,
            batch.share,
            batch.stress if self.config.stress_weight > 0 else None,
        )
        parameters = dict(self.model.named_parameters())
        if self.config.compile and self._compiled is None:
            self._compiled = compile_function(self._terms, (parameters, *inputs))
        terms = self._terms if self._compiled is None else self._compiled
        total, *parts = terms(parameters, *inputs)
        return LossTerms(total, *(part.detach() for part in parts))

    def _terms(
        self,
        parameters: Mapping[str, Tensor],
        vectors: Tensor,
        species: Tensor,
        edge_index: Tensor,
        batch: Tensor,
        cell: Tensor,
        pbc: Tensor,
        energy: Tensor,
        forces: Tensor,
        share: Tensor,
        stress: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        config, n_graphs = self.config, energy.shape[0]
        energies, gradient, _ = torch.func.functional_call(
            _ForceCall(self.model), {f"model.{k}": v for k, v in parameters.items()}, (vectors, species, edge_index)
        )
        predicted_forces = forces_from_edges(gradient, edge_index, batch.shape[0])
        counts = segment_sum(torch.ones_like(energies), batch, n_graphs)
        energy_error = _known((segment_sum(energies, batch, n_graphs) - energy) / counts, energy).unsqueeze(-1)
        energy_term = _penalty(energy_error, config.loss).sum() * share[0]
        force_term = _penalty(_known(predicted_forces - forces, forces), config.loss).sum() * share[1]
        stress_term = energy_term * 0.0
        if stress is not None:
            predicted_stress = stress_from_edges(vectors, gradient, edge_index, batch, cell, pbc)
            stress_error = _known(predicted_stress - stress, stress).reshape(n_graphs, 9)
            stress_term = _penalty(stress_error, config.loss).sum() * share[0]
        total = (
            config.energy_weight * energy_term + config.force_weight * force_term + config.stress_weight * stress_term
        )
        return total, force_term, energy_term, stress_term


class _ForceCall(torch.nn.Module):
    """`Potential.force_call` as a module, which torch.func.functional_call asks for."""

    def __init__(self, model: Potential) -> None:
        super().__init__()
        self.model = model

    def forward(self, vectors: Tensor, species: Tensor, edge_index: Tensor) -> ForceCall:
        return self.model.force_call(vectors, species, edge_index)


def _known(error: Tensor, label: Tensor) -> Tensor:
    return torch.where(torch.isnan(label), 0.0, error)


def _penalty(error: Tensor, kind: str) -> Tensor:
    """Length of each row (l1), rounded off below 1e-3 to keep its gradient finite; or its square (mse)."""
    squared = error.square().sum(-1)
    return squared.double() if kind == "mse" else (squared + 1e-6).sqrt().double()
