"""The loss of a potential, eager or traced and compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from egnn_md.data.frame_batches import Batch
from egnn_md.models.long_range import Far
from egnn_md.models.potential import (
    ForceCall,
    Potential,
    dipole_moments,
    forces_from_pairs,
    stress_from_pairs,
    stress_from_virials,
)
from egnn_md.nn.compilation import compile_function
from egnn_md.nn.ends import Ends
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
    charge: Tensor
    """e: error of an atom's reported charge, plus a tenth of the error of the charge that makes the field, plus the
    error of what surroundings show of a structure's total; 0 without."""
    dipole: Tensor
    """Length of the error of a structure's dipole moment, e·Å; 0 without."""


class PotentialLoss:
    """Energy error per atom, force error and stress error of a batch, and those of charges and dipole moments for
    models that have them, each with its weight.

    "l1": mean absolute energy error per atom, mean length of the force error; "mse": mean squares. Labels that are
    NaN do not count. With `compile`, the first call traces forward, forces and loss into one graph and compiles it.
    """

    def __init__(self, model: Potential, config: PotentialTrainingConfig) -> None:
        self.model = model
        self.config = config
        self._compiled: Callable[..., tuple[Tensor, ...]] | None = None

    def __call__(self, batch: Batch) -> LossTerms:
        graph, model = batch.graph, self.model
        far = None if model.long_range is None else model.long_range.far(graph, model.dtype)
        inputs = (
            graph.pair_vectors().to(self.model.dtype),
            self.model.species(graph.atomic_numbers),
            graph.pairs,
            graph.batch,
            graph.cell,
            graph.pbc,
            batch.energy,
            batch.forces,
            batch.share,
            batch.stress if self.config.stress_weight > 0 else None,
            far,
            None if far is None or batch.charges is None else (graph.positions, *batch.charges),
        )
        parameters = dict(self.model.named_parameters())
        traceable = far is None or not far.waves  # cells are as many as they are in each batch
        if self.config.compile and traceable and self._compiled is None:
            self._compiled = compile_function(self._terms, (parameters, *inputs))
        terms = self._compiled if traceable and self._compiled is not None else self._terms
        total, *parts = terms(parameters, *inputs)
        return LossTerms(total, *(part.detach() for part in parts))

    def _terms(
        self,
        parameters: Mapping[str, Tensor],
        vectors: Tensor,
        species: Tensor,
        pairs: Tensor,
        batch: Tensor,
        cell: Tensor,
        pbc: Tensor,
        energy: Tensor,
        forces: Tensor,
        share: Tensor,
        stress: Tensor | None,
        far: Far | None,
        electric: tuple[Tensor, Tensor, Tensor, Tensor] | None,
    ) -> tuple[Tensor, ...]:
        config, n_graphs = self.config, energy.shape[0]
        named, inputs = {f"model.{k}": v for k, v in parameters.items()}, (vectors, species, pairs, far)
        energies, gradient, _, field = torch.func.functional_call(_ForceCall(self.model), named, inputs)
        predicted_forces = forces_from_pairs(gradient, Ends(pairs, batch.shape[0]))
        if field is not None:
            predicted_forces = predicted_forces + field.forces
        counts = segment_sum(torch.ones_like(energies), batch, n_graphs)
        energy_error = _known((segment_sum(energies, batch, n_graphs) - energy) / counts, energy).unsqueeze(-1)
        energy_term = _penalty(energy_error, config.loss).sum() * share[0]
        force_term = _penalty(_known(predicted_forces - forces, forces), config.loss).sum() * share[1]
        stress_term = energy_term * 0.0
        if stress is not None:
            predicted_stress = stress_from_pairs(vectors, gradient, pairs, batch, cell, pbc)
            if field is not None and far is not None and field.virials:
                predicted_stress = predicted_stress + stress_from_virials(field.virials, far, cell, pbc)
            stress_error = _known(predicted_stress - stress, stress).reshape(n_graphs, 9)
            stress_term = _penalty(stress_error, config.loss).sum() * share[0]
        charge_term = dipole_term = energy_term * 0.0
        if field is not None and electric is not None:
            charge_term, dipole_term = _electric_terms(field.charges, electric, batch, share)
        total = (
            config.energy_weight * energy_term
            + config.force_weight * force_term
            + config.stress_weight * stress_term
            + config.charge_weight * charge_term
            + config.dipole_weight * dipole_term
        )
        return total, force_term, energy_term, stress_term, charge_term, dipole_term


def _electric_terms(
    charges: Tensor, electric: tuple[Tensor, Tensor, Tensor, Tensor], batch: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """See `LossTerms`: of charges as in `FarField`, beside positions, total charges, charges, dipoles."""
    positions, total_label, label, dipole_label = electric
    n_graphs = total_label.shape[0]
    sources, reported, shown = charges[:, :3].double().unbind(-1)
    total = segment_sum(shown, batch, n_graphs) - total_label
    apart = _known(reported - label, label).abs() + 0.1 * _known(sources - label, label).abs()
    dipole = dipole_moments(charges, positions, batch, n_graphs) - dipole_label
    lengths = (_known(dipole, dipole_label).square().sum(-1) + 1e-8).sqrt()
    return apart.sum() * share[1] + total.abs().sum() * share[0], lengths.sum() * share[0]


class _ForceCall(torch.nn.Module):
    """`Potential.force_call` as a module, which torch.func.functional_call asks for."""

    def __init__(self, model: Potential) -> None:
        super().__init__()
        self.model = model

    def forward(self, vectors: Tensor, species: Tensor, pairs: Tensor, far: Far | None) -> ForceCall:
        return self.model.force_call(vectors, species, pairs, far)


def _known(error: Tensor, label: Tensor) -> Tensor:
    return torch.where(torch.isnan(label), 0.0, error)


def _penalty(error: Tensor, kind: str) -> Tensor:
    """Length of each row (l1), rounded off below 1e-3 to keep its gradient finite; or its square (mse)."""
    squared = error.square().sum(-1)
    return squared.double() if kind == "mse" else (squared + 1e-6).sqrt().double()
