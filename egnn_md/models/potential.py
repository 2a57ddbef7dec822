"""A potential: `Graph` -> energy, with forces and stress from one autograd call.

The energy is a sum over atoms of a reference energy per element, a network's term and a screened nuclear repulsion:

    E = Σ_i [ E0(Z_i) + ε(h_i) ] + ½ Σ_ij E_ZBL(d_ij)

Everything depends on positions through the edge vectors r_ij alone, so one gradient g_ij = ∂E/∂r_ij gives both
F_k = Σ_j g_kj - Σ_i g_ik and the virial Σ_ij r_ij ⊗ g_ij. Energies are summed in float64 whatever the precision of
the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from egnn_md.chemistry.elements import MAX_ATOMIC_NUMBER, UnsupportedElement, symbols
from egnn_md.graph import Graph, Prediction
from egnn_md.nn.compilation import compile_function
from egnn_md.nn.egnn import EGNN
from egnn_md.nn.familiarity import Familiarity
from egnn_md.nn.ops import gather, segment_sum
from egnn_md.nn.pairs import PairFunctions, Pairs
from egnn_md.nn.vector_egcl import VectorEGCL
from egnn_md.nn.written_out import WrittenOut

_Terms = tuple[Tensor, Tensor, Tensor]
Network = Literal["vectors", "invariant", "coordinates"]
LARGEST = {"hidden_dim": 4096, "message_dim": 4096, "n_vectors": 4096, "n_radial": 4096, "n_layers": 100}
"""Limits of each size: a damaged or hostile configuration fails before anything is allocated."""


@dataclass(frozen=True)
class PotentialConfig:
    """All that defines a potential's function, its weights apart."""

    elements: tuple[int, ...]
    """Atomic numbers the model knows, ascending."""
    reference_energies: tuple[float, ...]
    """E0 of each element, eV, in the order of `elements`."""
    network: Network = "vectors"
    """"vectors": EGCLs with vector channels; "invariant": the same without; "coordinates": the paper's EGCL,
    with its coordinate update."""
    cutoff: float = 5.0
    """Å."""
    hidden_dim: int = 64
    message_dim: int = 64
    n_layers: int = 3
    n_vectors: int = 16
    n_radial: int = 20
    repulsion_reach: float = 1.5
    """Where the nuclear repulsion ends, in sums of covalent radii."""
    core_start: float = 0.5
    core_end: float = 0.75
    """Between these distances, in sums of covalent radii, the network's view of a pair stops shrinking, at 0.625: no
    nearer than what close contacts in the training data can show it."""

    def __post_init__(self) -> None:
        if list(self.elements) != sorted(set(self.elements)) or not all(type(z) is int for z in self.elements):
            raise ValueError(f"elements must be distinct, ascending atomic numbers, not {self.elements}")
        if not self.elements or not 1 <= self.elements[0] <= self.elements[-1] <= MAX_ATOMIC_NUMBER:
            raise ValueError(f"elements must lie between 1 and {MAX_ATOMIC_NUMBER}, not {self.elements}")
        if len(self.reference_energies) != len(self.elements):
            raise ValueError("reference_energies needs one energy (eV) for each element")
        if not all(math.isfinite(number) for number in (self.cutoff, *self.reference_energies)) or self.cutoff <= 0:
            raise ValueError("cutoff (Å) must be positive, and all energies finite numbers")
        if not 0 < self.core_start < self.core_end < self.repulsion_reach < math.inf:
            raise ValueError("0 < core_start < core_end < repulsion_reach must hold, all in sums of covalent radii")
        if self.network not in get_args(Network):
            raise ValueError(f"network is one of {get_args(Network)}, not {self.network!r}")
        for name, largest in LARGEST.items():
            size = getattr(self, name)
            if type(size) is not int or not 1 <= size <= largest:
                raise ValueError(f"{name} must be a whole number from 1 to {largest}, not {size!r}")


class Potential(nn.Module):
    """Energy, forces and stress of a `Graph` whose edges reach at least `config.cutoff`."""

    def __init__(self, config: PotentialConfig) -> None:
        super().__init__()
        self.config = config
        self.network = _CoordinateNetwork(config) if config.network == "coordinates" else _VectorNetwork(config)
        self.pairs = PairFunctions(
            config.elements,
            cutoff=config.cutoff,
            n_radial=config.n_radial,
            repulsion_reach=config.repulsion_reach,
            core_start=config.core_start,
            core_end=config.core_end,
        )
        dim = config.hidden_dim
        self.readout = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, 1))
        self.familiarity = Familiarity(dim, len(config.elements))
        lookup = torch.full((256,), len(config.elements), dtype=torch.int64)  # unknown: out of range, never a number
        lookup[list(config.elements)] = torch.arange(len(config.elements))
        self.register_buffer("species_of", lookup, persistent=False)
        self.species_of: Tensor
        self.reference_energies = torch.tensor(config.reference_energies, dtype=torch.float64)
        self._holders = [module for module in (*self.network.modules(), *self.readout.modules()) if module._parameters]
        self._compile = False
        self._compiled: Callable[..., _Terms] | None = None
        self._written_out: WrittenOut | None = None
        self._written_for: list[tuple[int, int]] = []
        """Identity and version of each weight that `_written_out` holds."""

    def compile_forces(self) -> None:
        """From now on, predict through compiled code, made at the first call: a minute or so, then about twice as
        fast on a CPU. Structures of any size share it; changing the model's precision or device makes it anew.
        """
        self._compile = True

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Keep the reference energies in float64, on the device of the weights."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.reference_energies = self.reference_energies.to(self.species_of.device)
        self._compiled = self._written_out = None
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network and of the forces."""
        return self.pairs.short_range.table.dtype

    @property
    def device(self) -> torch.device:
        return self.species_of.device

    def check_elements(self, atomic_numbers: Tensor) -> None:
        """Raise UnsupportedElement, naming the elements, if the model does not know one of `atomic_numbers`."""
        unknown = sorted(set(atomic_numbers.tolist()) - set(self.config.elements))
        if unknown:
            raise UnsupportedElement(
                f"this model knows {symbols(self.config.elements)}; the structure has {symbols(unknown)}. "
                "Use a model trained with these elements, or train one: egnn-md train"
            )

    def forward(self, graph: Graph, *, stress: bool = False, differentiable: bool = False) -> Prediction:
        """Predict for each structure of `graph` (positions in Å, on the model's device).

        Edge vectors are rounded to the model's dtype only after their differences are taken: float64 positions keep
        a float32 model accurate far from the origin.

        `stress` asks for the stress too. `differentiable` keeps what training needs to differentiate the energy and
        the forces by the weights. Raises UnsupportedElement.
        """
        try:
            species = self.species_of.index_select(0, graph.atomic_numbers)
        except (IndexError, RuntimeError):
            self.check_elements(graph.atomic_numbers)
            raise
        vectors = graph.edge_vectors().to(self.dtype).detach()
        try:
            energies, gradient, features = self._force_call(vectors, species, graph.edge_index, differentiable)
        except (IndexError, RuntimeError):
            self.check_elements(graph.atomic_numbers)
            raise
        return Prediction(
            energy=segment_sum(energies, graph.batch, graph.n_graphs),
            forces=forces_from_edges(gradient, graph.edge_index, graph.n_atoms),
            stress=_stress(vectors, gradient, graph) if stress else None,
            energies=energies,
            extrapolation=self.familiarity(features.detach(), species),
        )

    def _force_call(self, vectors: Tensor, species: Tensor, edge_index: Tensor, differentiable: bool) -> _Terms:
        inputs = (vectors, species, edge_index)
        if differentiable:
            return self.energies_and_gradient(*inputs, differentiable=True)
        if self._compile and min(vectors.shape[0], species.shape[0]) >= 2:  # no trace fits sizes 0 and 1
            if self._compiled is None:
                self._compiled = compile_function(self.energies_and_gradient, inputs)
            return self._compiled(*inputs)
        if self.config.network != "vectors":
            return self.energies_and_gradient(*inputs)
        energies, gradient, features = self._current_written_out()(*inputs)
        return energies + self.reference_energies.index_select(0, species), gradient, features

    def _current_written_out(self) -> WrittenOut:
        """The network with its derivatives written out, for the weights as they are now."""
        weights = (p for module in self._holders for p in module._parameters.values() if p is not None)
        current = [(id(p), p._version) for p in weights]
        if self._written_out is None or current != self._written_for:
            network = self.network
            assert isinstance(network, _VectorNetwork)
            layers = [layer for layer in network.layers if isinstance(layer, VectorEGCL)]
            self._written_out = WrittenOut(self.pairs, network.embedding.weight, layers, list(self.readout))
            self._written_for = current
        return self._written_out

    def energies_and_gradient(
        self, vectors: Tensor, species: Tensor, edge_index: Tensor, differentiable: bool = False
    ) -> _Terms:
        """The physics with its one autograd call, traceable.

        r_ij (n_edges, 3) in Å, species (n_atoms,) int64 positions in `config.elements`, edge_index (2, n_edges) ->
        energies (n_atoms,) eV float64, ∂E/∂r_ij (n_edges, 3) eV/Å, and final features (n_atoms, hidden_dim).
        `differentiable`: by the weights.
        """
        with torch.enable_grad():
            pairs = self.pairs(vectors, species, edge_index)
            features = self.network(pairs, species)
            learned = self.readout(features).squeeze(-1).double()
            by_values = torch.autograd.grad(learned.sum(), pairs.values, create_graph=differentiable, allow_unused=True)
            gradient = pairs.gradient(by_values)
        repulsion = 0.5 * segment_sum(pairs.repulsion.squeeze(-1).double(), edge_index[0], species.shape[0])
        energies = (learned if differentiable else learned.detach()) + repulsion
        return energies + self.reference_energies.index_select(0, species), gradient, features


def forces_from_edges(gradient: Tensor, edge_index: Tensor, n_atoms: int) -> Tensor:
    """F_k = -∂E/∂x_k = Σ_j g_kj - Σ_i g_ik, (n_atoms, 3) eV/Å."""
    return segment_sum(gradient, edge_index[0], n_atoms) - segment_sum(gradient, edge_index[1], n_atoms)


def _stress(vectors: Tensor, gradient: Tensor, graph: Graph) -> Tensor:
    """(1/V) Σ_ij r_ij ⊗ g_ij, symmetrised, (n_graphs, 3, 3) eV/Å³."""
    vectors = vectors.detach()
    if graph.n_graphs == 1:
        virial = (vectors.double().mT @ gradient.double()).to(gradient.dtype).unsqueeze(0)
    else:
        virials = vectors.unsqueeze(-1) * gradient.unsqueeze(-2)
        virial = segment_sum(virials, graph.batch.index_select(0, graph.edge_index[0]), graph.n_graphs)
    volume = torch.linalg.det(graph.cell).abs()
    volume = torch.where(graph.pbc.all(-1), volume, torch.nan).to(virial)
    return 0.5 * (virial + virial.mT) / volume[:, None, None]


class _VectorNetwork(nn.Module):
    """Element embedding and a stack of `VectorEGCL`."""

    def __init__(self, config: PotentialConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(config.elements), config.hidden_dim)
        n_vectors = 0 if config.network == "invariant" else config.n_vectors
        sizes = (config.hidden_dim, config.message_dim, config.n_radial, n_vectors)
        last = config.n_layers - 1
        self.layers = nn.ModuleList(VectorEGCL(*sizes, first=k == 0, last=k == last) for k in range(config.n_layers))

    def forward(self, pairs: Pairs, species: Tensor) -> Tensor:
        h, v = gather(self.embedding.weight, species), None
        for layer in self.layers:
            h, v = layer(h, v, pairs)
        return h


class _CoordinateNetwork(nn.Module):
    """The paper's EGNN with its coordinate update: radial basis as edge attributes, cutoff envelope as edge weight.

    Positions enter as edge vectors: each node starts at zero and x_i - x_j has the offset -r_ij, with the length that
    the network may see. C of eq. 4 is 1: a mean would change with edges beyond the cutoff.
    """

    def __init__(self, config: PotentialConfig) -> None:
        super().__init__()
        self.n_elements = len(config.elements)
        dim = config.hidden_dim
        self.egnn = EGNN(self.n_elements, dim, dim, config.n_layers, edge_dim=config.n_radial, coordinate_scale="sum")

    def forward(self, pairs: Pairs, species: Tensor) -> Tensor:
        offsets = -pairs.directions.squeeze(-1) * pairs.seen
        state: Tensor = self.egnn(
            nn.functional.one_hot(species, self.n_elements).to(offsets.dtype),
            offsets.new_zeros(species.shape[0], offsets.shape[1]),
            pairs.index,
            edge_attributes=pairs.radial,
            edge_weight=pairs.envelope,
            edge_offsets=offsets,
        ).features
        return state
