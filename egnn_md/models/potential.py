"""A potential: `Graph` -> energy, forces and stress.

The energy is a sum of terms (`egnn_md.models.terms`). Those that a checkpoint has are

    E = Σ_i [ E0(Z_i) + ε(h_i) ] + Σ_{i<j} E_ZBL(d_ij)  (+ charges and dispersion at any distance: `long_range`)

a reference energy for each element, a network and a screened nuclear repulsion. They depend on positions through the
vectors r_ij of pairs alone, each pair once, so that g_ij = ∂E/∂r_ij gives both F_k = Σ_j g_kj - Σ_i g_ik and the virial
Σ_ij r_ij ⊗ g_ij.
Charges are read from the network's features between its way forward and its way back, and so are part of g_ij.
Energies are summed in float64 whatever the precision of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from egnn_md.graph import Graph, Prediction
from egnn_md.models.bounds import check_positive, check_sizes
from egnn_md.models.charge_response import Window
from egnn_md.models.long_range import Far, FarField, LongRange
from egnn_md.models.network import Network
from egnn_md.models.species import Species, check_elements
from egnn_md.models.terms import EnergyTerm, NuclearRepulsion, ReferenceEnergies, System, TermResult
from egnn_md.nn.ends import Ends
from egnn_md.nn.expected_error import ExpectedError
from egnn_md.nn.familiarity import Familiarity
from egnn_md.nn.ops import segment_sum
from egnn_md.nn.valences import Valences, stranger
from egnn_md.shown import Shown

PART_PAIRS = 1500
"""Pairs of a part of a batch in a compiled call: some 10 MB of what they make."""


@dataclass(frozen=True)
class PotentialConfig:
    """All that defines a potential's function, its weights apart."""

    RETIRED: ClassVar[dict[str, object]] = {"network": "vectors"}
    """Settings of older files that have one value left."""

    elements: tuple[int, ...]
    """Atomic numbers the model knows, ascending."""
    reference_energies: tuple[float, ...]
    """E0 of each element, eV, in the order of `elements`."""
    cutoff: float = 5.0
    """Å."""
    hidden_dim: int = 64
    message_dim: int = 64
    n_layers: int = 3
    n_vectors: int = 16
    n_tensors: int = 0
    """Channels of rank 2; files from before there were any have none."""
    n_radial: int = 20
    repulsion_reach: float = 1.5
    """Where the nuclear repulsion ends, in sums of covalent radii."""
    core_start: float = 0.5
    core_end: float = 0.75
    """Between these distances, in sums of covalent radii, the network's view of a pair stops shrinking, at 0.625: no
    nearer than what close contacts in the training data can show it."""
    long_range: bool = False
    """Whether atoms have charges and dispersion that act at any distance; so the model knows ions."""
    charge_response: bool = False
    """Whether the charge of the structure, given or counted, adds what the atoms' surroundings do not show of it."""
    response_window: tuple[float, float, float] = (0.1, 0.003, 0.2)
    """Of that, where it sets in: see `charge_response.Window`."""
    bound: float | None = None
    """Where vectors and their products saturate in the layers (`VectorLayer`); None: nowhere."""
    node_dim: int | None = None
    """Width of what layers compute at each atom, which costs little beside pairs; None: `hidden_dim`."""
    atomic_dipoles: bool = False
    """Whether dipole moments have a part of each atom beside that of the charges: as GFN2-xTB's have."""

    def __post_init__(self) -> None:
        check_elements(self.elements)
        if len(self.reference_energies) != len(self.elements):
            raise ValueError("reference_energies needs one energy (eV) for each element")
        if not all(math.isfinite(number) for number in (self.cutoff, *self.reference_energies)) or self.cutoff <= 0:
            raise ValueError("cutoff (Å) must be positive, and all energies finite numbers")
        if not 0 < self.core_start < self.core_end < self.repulsion_reach < math.inf:
            raise ValueError("0 < core_start < core_end < repulsion_reach must hold, all in sums of covalent radii")
        for name in ("charge_response", "atomic_dipoles"):
            if getattr(self, name) and not self.long_range:
                raise ValueError(f"{name} needs long_range")
        if self.bound is not None:
            check_positive(self, "bound")
        window = self.response_window
        if len(window) != 3 or not all(type(x) in (int, float) and 0 <= x < math.inf for x in window) or not window[2]:
            raise ValueError("response_window must be three numbers from 0 on (e, e per atom, e), the last above 0")
        check_sizes(self)


class ForceCall(NamedTuple):
    """What the terms that depend on pairs alone give."""

    energies: Tensor
    """(n_atoms,) eV, float64."""
    gradient: Tensor
    """∂E/∂r_ij, (n_pairs, 3) eV/Å."""
    features: Tensor
    """Final features of the network, (n_atoms, hidden_dim)."""
    far: FarField | None
    """What charges and dispersion add; the first two have it in them."""


class LocalCall(NamedTuple):
    """What follows of a `ForceCall`."""

    energies: Tensor
    """(n_atoms,) eV, float64."""
    gradient: Tensor
    """∂E/∂r_ij, (n_pairs, 3) eV/Å."""
    forces: Tensor
    """(n_atoms, 3) eV/Å."""
    extrapolation: Tensor
    """(n_atoms,)."""
    charges: Tensor | None = None
    """(n_atoms, 3) e or (n_atoms, 6), see `FarField`."""
    virials: tuple[Tensor, ...] = ()
    """Of what no pair carries, (3, 3) eV for each periodic structure."""


class Potential(Shown, nn.Module):
    """Energy, forces and stress of a `Graph` whose pairs reach at least `config.cutoff`."""

    RENAMED: ClassVar[dict[str, str]] = {"readout.": "network.readout."}
    """Beginnings of the names of tensors in older files, and what they are now."""
    OPTIONAL: ClassVar[tuple[str, ...]] = ("valences.ranges", "expected_error.table")
    """Tensors that older files lack: they stay as they are made."""

    def __init__(self, config: PotentialConfig) -> None:
        super().__init__()
        self.config = config
        self.species = Species(config.elements)
        self.reference = ReferenceEnergies(config.reference_energies)
        self.network = Network(
            config.elements,
            cutoff=config.cutoff,
            hidden_dim=config.hidden_dim,
            message_dim=config.message_dim,
            n_layers=config.n_layers,
            n_vectors=config.n_vectors,
            n_tensors=config.n_tensors,
            n_radial=config.n_radial,
            core_start=config.core_start,
            core_end=config.core_end,
            bound=config.bound,
            node_dim=config.node_dim,
        )
        self.repulsion = NuclearRepulsion(config.elements, reach=config.repulsion_reach)
        self.long_range = None
        if config.long_range:
            self.long_range = LongRange(
                config.elements,
                config.hidden_dim,
                response=Window(*config.response_window) if config.charge_response else None,
                n_vectors=config.n_vectors if config.atomic_dipoles else 0,
            )
        self.familiarity = Familiarity(config.hidden_dim, len(config.elements))
        self.valences = Valences(config.elements)
        self.expected_error = ExpectedError()
        self.terms: list[EnergyTerm] = []
        """Terms beside those of the checkpoint, added by the user; they are not saved."""
        self.compiled: Callable[..., LocalCall] | None = None
        """`local_call`, compiled ahead of time; a change of precision or device takes it away."""

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.drop_compiled()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def drop_compiled(self) -> None:
        """Force calls are eager from now on."""
        self._part()
        self.compiled = None

    def _part(self) -> None:
        """Compiled code holds all weights in one piece of memory, of which no copy of a weight is to take all."""
        if self.compiled is not None and hasattr(self.compiled, "part"):
            self.compiled.part()

    def __getstate__(self) -> dict[str, Any]:
        self._part()
        return self.__dict__

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *others: Any) -> None:
        if local_metadata.get("assign_to_params_buffers"):  # other tensors than those that compiled code reads
            self.drop_compiled()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network and of the forces."""
        return self.network.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.network.embedding.weight.device

    def check_elements(self, atomic_numbers: Tensor) -> None:
        """Raise UnsupportedElement, naming the elements, if the model does not know one of `atomic_numbers`."""
        self.species.check(atomic_numbers)

    def forward(self, graph: Graph, *, stress: bool = False, differentiable: bool = False) -> Prediction:
        """Predict for each structure of `graph` (positions in Å, on the model's device); `stress` asks for it too,
        `differentiable` for energies, forces and stress that can be differentiated by the weights.

        Vectors of pairs are rounded to the model's dtype only after their differences are taken: float64 positions keep
        a float32 model accurate far from the origin. Pairs beyond the cutoff are left out, and mixed precision
        (autocast) does not apply. Raises UnsupportedElement.
        """
        if torch.is_autocast_enabled(self.device.type):
            with torch.autocast(self.device.type, enabled=False):
                return self(graph, stress=stress, differentiable=differentiable)  # type: ignore[no-any-return]
        with torch.set_grad_enabled(differentiable):
            species = self.species(graph.atomic_numbers)
            vectors, pairs = self._pairs(graph)
            far = None if self.long_range is None else self.long_range.far(graph, self.dtype)
            local_call = self.local_call if differentiable else self.compiled or self._untracked_call
            inputs = (vectors, species, pairs, far)
            call = None if local_call is not self.compiled else in_parts(local_call, *inputs, graph)
            energies, gradient, forces, extrapolation, charges, virials = call or local_call(*inputs)
            stresses = None
            if stress:
                stresses = stress_from_pairs(vectors, gradient, pairs, graph.batch, graph.cell, graph.pbc)
                if virials and far is not None:
                    stresses = stresses + stress_from_virials(virials, far, graph.cell, graph.pbc)
            if self.terms:
                system = System(vectors, species, pairs, len(self.config.elements), graph)
                results = [term(system) for term in self.terms]
                energies, forces, stresses = _added(results, system, energies, forces, stresses)
            return Prediction(
                energy=segment_sum(energies, graph.batch, graph.n_graphs),
                forces=forces,
                stress=stresses,
                energies=energies,
                extrapolation=extrapolation,
                **({} if charges is None else of_charges(charges, graph)),
            )

    def _pairs(self, graph: Graph) -> tuple[Tensor, Tensor]:
        """Vectors and atoms of the pairs within the cutoff. On a GPU of all pairs: to know how many are left it would
        have to be waited for, and those beyond add nothing.
        """
        vectors, pairs = graph.pair_vectors(), graph.pairs
        if vectors.device.type == "cpu":
            inside = (vectors.square().sum(-1) < self.config.cutoff**2).nonzero().squeeze(-1)
            if len(inside) < len(vectors):
                vectors, pairs = vectors.index_select(0, inside), pairs.index_select(1, inside)
        return vectors.to(self.dtype), pairs

    def _untracked_call(self, vectors: Tensor, species: Tensor, pairs: Tensor, far: Far | None = None) -> LocalCall:
        """`local_call`, of which autograd is told nothing, a tenth of a small molecule's time; ordinary tensors, unless
        the caller is in inference mode already.
        """
        if torch.is_inference_mode_enabled():
            return self.local_call(vectors, species, pairs, far)
        with torch.inference_mode():
            call = self.local_call(vectors, species, pairs, far)
        return call._replace(
            **{name: value.clone() for name, value in call._asdict().items() if isinstance(value, Tensor)},
            virials=tuple(virial.clone() for virial in call.virials),
        )

    def local_call(self, vectors: Tensor, species: Tensor, pairs: Tensor, far: Far | None = None) -> LocalCall:
        """`force_call`, and what atoms get of it."""
        system = System(vectors, species, pairs, len(self.config.elements))
        energies, gradient, features, field = self._force_call(system, far)
        forces = forces_from_pairs(gradient, system.ends)
        extrapolation = self.extrapolation(features, system)
        if field is None:
            return LocalCall(energies, gradient, forces, extrapolation)
        return LocalCall(energies, gradient, forces + field.forces, extrapolation, field.charges, field.virials)

    def extrapolation(self, features: Tensor, system: System) -> Tensor:
        """How unlike the training data each atom is, (n_atoms,): by its final features, or by its bonds if these are
        stranger.
        """
        unfamiliar = self.familiarity(features, system.species)
        strain = self.valences(system.distances, system.kinds, system.ends, system.species)
        return stranger(unfamiliar, strain).detach()

    def force_call(self, vectors: Tensor, species: Tensor, pairs: Tensor, far: Far | None = None) -> ForceCall:
        """The terms of the checkpoint: a function of tensors alone, which can be traced, and differentiated by the
        weights where gradients are tracked.

        r_ij (n_pairs, 3) in Å, all within the cutoff; species (n_atoms,) int64 positions in `config.elements`;
        pairs (2, n_pairs); `far`: what models with `long_range` sum; None where only features are wanted.
        """
        return self._force_call(System(vectors, species, pairs, len(self.config.elements)), far)

    def _force_call(self, system: System, far: Far | None) -> ForceCall:
        learned, features, tape = self.network.evaluate(system)
        field = None
        if self.long_range is not None and far is not None:
            field = self.long_range(features, tape.layers[-1].vectors, system.species, far)
        repulsion = self.repulsion(system)
        energies = learned + repulsion.energies + self.reference(system).energies
        if field is not None:
            energies = energies + field.energies
        by_pair = self.network.gradient(tape, None if field is None else field.by_features)
        return ForceCall(energies, by_pair + repulsion.by_pair, features, field)


def in_parts(
    local_call: Callable[..., LocalCall],
    vectors: Tensor,
    species: Tensor,
    pairs: Tensor,
    far: Far | None,
    graph: Graph,
) -> LocalCall | None:
    """`local_call` of a batch, some structures at a time, so that what their pairs make stays in a core's cache; None
    where that is not to be had: little to cut, atoms or pairs that do not lie structure by structure, models with
    charges.
    """
    n_pairs = vectors.shape[0]
    if graph.n_graphs == 1 or far is not None or n_pairs < 2 * PART_PAIRS:
        return None
    owner = graph.batch.index_select(0, pairs[0])
    if bool((owner.diff() < 0).any()) or bool((graph.batch.diff() < 0).any()):
        return None
    ends = torch.bincount(owner, minlength=graph.n_graphs).cumsum(0)
    atoms = torch.bincount(graph.batch, minlength=graph.n_graphs).cumsum(0)
    part = torch.div(ends - 1, PART_PAIRS, rounding_mode="floor")
    last = torch.cat([part[1:] != part[:-1], part.new_ones(1, dtype=torch.bool)])  # structure of each part
    calls, start, first = [], 0, 0
    for end, after in zip(ends[last].tolist(), atoms[last].tolist(), strict=True):
        own = pairs[:, start:end] - first
        calls.append(local_call(vectors[start:end], species[first:after], own))
        start, first = end, after
    return LocalCall(
        torch.cat([call.energies for call in calls]),
        torch.cat([call.gradient for call in calls]),
        torch.cat([call.forces for call in calls]),
        torch.cat([call.extrapolation for call in calls]),
    )


def forces_from_pairs(gradient: Tensor, ends: Ends) -> Tensor:
    """F_k = Σ_j g_kj - Σ_i g_ik, (n_atoms, 3) eV/Å, from g_ij = ∂E/∂r_ij (n_pairs, 3) eV/Å."""
    return ends.sum((gradient, -gradient))


def stress_from_pairs(
    vectors: Tensor, gradient: Tensor, pairs: Tensor, batch: Tensor, cell: Tensor, pbc: Tensor
) -> Tensor:
    """The symmetric stress (1/V) Σ_ij r_ij ⊗ g_ij, (n_graphs, 3, 3) eV/Å³, from g_ij = ∂E/∂r_ij (n_pairs, 3) eV/Å; NaN
    where a structure is not periodic in three directions. r_ij, pairs, batch, cell and pbc as in `Graph`.
    """
    if cell.shape[0] == 1:
        virial = (vectors.double().mT @ gradient.double()).to(gradient.dtype).unsqueeze(0)
    else:
        virials = vectors.unsqueeze(-1) * gradient.unsqueeze(-2)
        virial = segment_sum(virials, batch.index_select(0, pairs[0]), cell.shape[0])
    return _over_volume(virial, cell, pbc)


def of_charges(charges: Tensor, graph: Graph) -> dict[str, Tensor]:
    """What a `Prediction` says of them: charges as in `FarField`."""
    sources, reported, shown = charges[:, :3].double().unbind(1)
    dipole = dipole_moments(charges, graph.positions, graph.batch, graph.n_graphs)
    return {
        "charges": reported,
        "charge": segment_sum(sources, graph.batch, graph.n_graphs),
        "shown_charge": segment_sum(shown, graph.batch, graph.n_graphs),
        "dipole": torch.where(graph.pbc.any(-1, keepdim=True), torch.nan, dipole),
    }


def dipole_moments(charges: Tensor, positions: Tensor, batch: Tensor, n_graphs: int) -> Tensor:
    """Dipole moments (n_graphs, 3) e·Å about the origin: those of charges, and atoms' own, as in `FarField`."""
    moments = charges[:, :1].double() * positions.double()
    return segment_sum(moments if charges.shape[1] == 3 else moments + charges[:, 3:].double(), batch, n_graphs)


def stress_from_virials(virials: Sequence[Tensor], far: Far, cell: Tensor, pbc: Tensor) -> Tensor:
    """Stress (n_graphs, 3, 3) eV/Å³ of what `far` sums over waves, from its virials (eV) of each periodic structure."""
    found = torch.zeros(cell.shape[0], 3, 3, dtype=virials[0].dtype, device=cell.device)
    which = torch.tensor([part.structure for part in far.waves], device=cell.device)
    return _over_volume(found.index_copy(0, which, torch.stack(list(virials))), cell, pbc)


def _over_volume(virial: Tensor, cell: Tensor, pbc: Tensor) -> Tensor:
    """Symmetric part over the volume, (n_graphs, 3, 3); NaN without a volume, with gradients that are not."""
    periodic = pbc.all(-1)
    volume = torch.where(periodic, torch.linalg.det(cell).abs(), 1.0).to(virial)
    stress = 0.5 * (virial + virial.mT) / volume[:, None, None]
    return torch.where(periodic[:, None, None], stress, torch.nan)


def _added(
    results: Sequence[TermResult], system: System, energies: Tensor, forces: Tensor, stresses: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Energies, forces and stress with those of further terms."""
    graph = system.graph
    assert graph is not None
    for result in results:
        energies = energies + result.energies
        if result.by_pair is not None:
            forces = forces + forces_from_pairs(result.by_pair, system.ends)
            if stresses is not None:
                pairs = (system.vectors, result.by_pair, system.pairs)
                stresses = stresses + stress_from_pairs(*pairs, graph.batch, graph.cell, graph.pbc)
        if result.by_position is not None:
            forces = forces - result.by_position.to(forces)
            if stresses is not None:
                unknown = torch.full_like(stresses, torch.nan)
                virial = unknown if result.virial is None else result.virial.to(stresses)
                stresses = stresses + _over_volume(virial, graph.cell, graph.pbc)
    return energies, forces, stresses
