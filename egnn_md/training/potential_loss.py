"""The loss of a potential, eager or traced and compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from egnn_md.data.frame_batches import Batch
from egnn_md.models.potential import Potential, forces_from_edges
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
            self.model.species_of.index_select(0, graph.atomic_numbers),
            graph.edge_index,
            graph.batch,
            graph.cell,
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
        energy: Tensor,
        forces: Tensor,
        share: Tensor,
        stress: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        config, n_graphs, n_atoms = self.config, energy.shape[0], species.shape[0]
        energies, gradient = torch.func.functional_call(
            _EnergiesAndGradient(self.model),
            {f"model.{k}": v for k, v in parameters.items()},
            (vectors, species, edge_index),
        )
        counts = segment_sum(torch.ones_like(energies), batch, n_graphs)
        energy_error = _known((segment_sum(energies, batch, n_graphs) - energy) / counts, energy).unsqueeze(-1)
        force_error = _known(forces_from_edges(gradient, edge_index, n_atoms) - forces, forces)
        energy_term = _penalty(energy_error, config.loss).sum() * share[0]
        force_term = _penalty(force_error, config.loss).sum() * share[1]
        stress_term = energy_term * 0.0
        if stress is not None:
            virials = vectors.unsqueeze(-1) * gradient.unsqueeze(-2)
            virial = segment_sum(virials, batch.index_select(0, edge_index[0]), n_graphs)
            volume = torch.linalg.det(cell).abs()
            volume = torch.where(volume > 0, volume, 1.0)  # molecules: no label, and no division by zero to derive
            predicted = virial / volume[:, None, None]
            stress_error = _known(predicted - stress, stress).reshape(n_graphs, 9)
            stress_term = _penalty(stress_error, config.loss).sum() * share[0]
        total = (
            config.energy_weight * energy_term + config.force_weight * force_term + config.stress_weight * stress_term
        )
        return total, force_term, energy_term, stress_term


class _EnergiesAndGradient(torch.nn.Module):
    """`Potential.energies_and_gradient` as a module, which torch.func.functional_call asks for."""

    def __init__(self, model: Potential) -> None:
        super().__init__()
        self.model = model

    def forward(self, vectors: Tensor, species: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.energies_and_gradient(vectors, species, edge_index, differentiable=True)[:2]


def _known(error: Tensor, label: Tensor) -> Tensor:
    return torch.where(torch.isnan(label), 0.0, error)


def _penalty(error: Tensor, kind: str) -> Tensor:
    """Length of each row (l1), rounded off below 1e-3 to keep its gradient finite; or its square (mse)."""
    squared = error.square().sum(-1)
    return squared.double() if kind == "mse" else (squared + 1e-6).sqrt().double()
