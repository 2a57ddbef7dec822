"""A cheap sign of extrapolation: how unusual an atom's surroundings are to the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Familiarity(nn.Module):
    """How far an atom's features lie from those of the training data: a Mahalanobis distance.

    Per element the mean, for all one whitening, and as unit the distance that 99.9 % of the training atoms of the
    element stay below: above 1, the model extrapolates. NaN until `fit`.
    """

    def __init__(self, dim: int, n_elements: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((n_elements, dim), torch.nan))
        self.register_buffer("whitening", torch.zeros(dim, dim))
        self.register_buffer("unit", torch.ones(n_elements))
        self.mean: Tensor
        self.whitening: Tensor
        self.unit: Tensor

    def forward(self, features: Tensor, species: Tensor) -> Tensor:
        """Features (n_atoms, dim), species (n_atoms,) -> (n_atoms,)."""
        white = (features - self.mean.index_select(0, species)) @ self.whitening
        lengths: Tensor = torch.linalg.vector_norm(white, dim=-1)
        return lengths / self.unit.index_select(0, species)

    @torch.no_grad()
    def fit(self, features: Tensor, species: Tensor) -> None:
        """Take the statistics of a sample of training atoms; elements without atoms stay NaN."""
        features = features.double()
        centred = torch.zeros_like(features)
        mean = torch.full(self.mean.shape, torch.nan, dtype=torch.float64)
        for s in _distinct(species):
            chosen = species == s
            mean[s] = features[chosen].mean(0)
            centred[chosen] = features[chosen] - mean[s]
        variances, axes = torch.linalg.eigh(centred.T @ centred / features.shape[0])
        whitening = axes / (variances.clamp(min=1e-6 * float(variances.max()))).sqrt()
        self.mean.copy_(mean)
        self.whitening.copy_(whitening)
        self.unit.fill_(1.0)
        raw = torch.linalg.vector_norm(centred @ whitening, dim=-1)
        for s in _distinct(species):
            self.unit[s] = torch.quantile(raw[species == s][:1_000_000], 0.999).clamp(min=1e-6)


def _distinct(species: Tensor) -> list[int]:
    return sorted(set(species.tolist()))
