"""The energy of a structure as a sum of terms: what a term reads, what it gives, and the terms that are no network.

To add one, write a class like `ReferenceEnergies` in a file of its own and append an instance to `Potential.terms`
(docs: "How to add an energy term").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from egnn_md.graph import Graph
from egnn_md.nn.ends import Ends, block_size
from egnn_md.nn.ops import kept
from egnn_md.nn.radial import distance
from egnn_md.nn.repulsion import Repulsion


@dataclass(frozen=True, eq=False)
class System:
    """What the terms read of one or several structures. Lengths in Å."""

    vectors: Tensor
    """r_ij of each pair of atoms within the cutoff, (n_pairs, 3), in the precision of the model."""
    species: Tensor
    """(n_atoms,) int64 positions of the elements among the model's."""
    pairs: Tensor
    """(2, n_pairs) int64, atoms i and j: every pair stands once."""
    n_elements: int
    """How many the model knows."""
    graph: Graph | None = None
    """All else: positions in float64, cell, which atom belongs to which structure. None where a call is traced: the
    terms that come with the package do without."""

    @property
    def n_atoms(self) -> int:
        return self.species.shape[0]

    @cached_property
    def distances(self) -> Tensor:
        """d_ij, (n_pairs, 1)."""
        return kept(distance(self.vectors))

    @cached_property
    def directions(self) -> Tensor:
        """r̂_ij, (n_pairs, 3)."""
        return kept(self.vectors / self.distances)

    @cached_property
    def ends(self) -> Ends:
        """What brings values of atoms to the ends of pairs, and sums them up there."""
        return Ends(self.pairs, self.n_atoms)

    @cached_property
    def kinds(self) -> Tensor:
        """The elements of each pair, (n_pairs,): species of i times `n_elements` plus species of j."""
        first, second = self.ends.first, self.ends.second
        return self.species.index_select(0, first) * self.n_elements + self.species.index_select(0, second)

    @cached_property
    def blocks(self) -> list[System]:
        """The same, its pairs in blocks that are worked on one after another. One block holds all where gradients are
        tracked (nothing is made twice) and where sizes are symbols (a trace serves every size).
        """
        n_pairs = self.vectors.shape[0]
        if torch.is_grad_enabled() or isinstance(n_pairs, torch.SymInt):
            return [self]
        size = block_size(n_pairs, self.vectors.device.type)
        if n_pairs <= size:
            return [self]
        parts = zip(torch.split(self.vectors, size), torch.split(self.pairs, size, 1), strict=True)
        return [replace(self, vectors=vectors, pairs=pairs) for vectors, pairs in parts]


@dataclass(frozen=True, eq=False)
class TermResult:
    """Energies of a term and their derivatives; None where there is no such dependence."""

    energies: Tensor
    """(n_atoms,) float64, eV."""
    by_pair: Tensor | None = None
    """∂E/∂r_ij of each pair, (n_pairs, 3) eV/Å: forces and stress follow."""
    by_position: Tensor | None = None
    """∂E/∂x_i, (n_atoms, 3) eV/Å, of what no pair carries."""
    virial: Tensor | None = None
    """Σ_k x_k ⊗ ∂E/∂x_k and what the cell adds: ∂E by a strain of positions and cell together, (n_graphs, 3, 3) eV, of
    what `by_position` holds. None: not known, and so the stress is NaN."""
    features: Tensor | None = None
    """Final features of each atom, (n_atoms, hidden_dim), of the network."""


class EnergyTerm(Protocol):
    """A part of the energy."""

    def __call__(self, system: System) -> TermResult: ...


class ReferenceEnergies(nn.Module):
    """Σ_i E0(Z_i), in float64 whatever the precision of the model."""

    def __init__(self, energies: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("energies", torch.tensor(energies, dtype=torch.float64), persistent=False)
        self.energies: Tensor
        """(n_elements,) eV."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        exact = self.energies
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.energies = exact.to(self.energies.device)
        return self

    def forward(self, system: System) -> TermResult:
        return TermResult(self.energies.index_select(0, system.species))


class NuclearRepulsion(nn.Module):
    """Σ E_ZBL(d_ij) over pairs, half of each to either atom, see `Repulsion`."""

    def __init__(self, elements: Sequence[int], *, reach: float) -> None:
        super().__init__()
        self.repulsion = Repulsion(elements, reach=reach)

    def forward(self, system: System) -> TermResult:
        energies: Tensor | None = None
        by_pair = []
        for part in system.blocks:
            energy, slope = self.repulsion(part.distances, part.kinds)
            half = 0.5 * energy.squeeze(-1).double()
            energies = part.ends.sum((half, half), energies)
            by_pair.append(part.directions * slope)
        assert energies is not None
        return TermResult(energies, by_pair=torch.cat(by_pair) if len(by_pair) > 1 else by_pair[0])
