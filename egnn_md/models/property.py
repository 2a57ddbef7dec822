"""Properties of isolated molecules: `Graph` -> QM9's twelve, with an uncertainty.

A network's outputs y become properties as offset + Σ_i reference(Z_i) + scale · y, in float64 and in the units of
`egnn_md.chemistry.targets`. Ours gives ten readouts, and the properties keep the relations that hold between them:

    gap = LUMO - HOMO,  U298 = U0 + ΔU,  H298 = U298 + RT,  G298 = H298 - TS,  R² = Σ_i Z_i ρ_i² + learned

The uncertainty is the expected absolute error: the scale b of a Laplace distribution, given by a small network on the
molecule's features that training never lets back into them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, get_args

import torch
from torch import Tensor, nn

from egnn_md.chemistry.elements import MASSES
from egnn_md.chemistry.structures import Structure, batches, structures_of
from egnn_md.chemistry.targets import BY_NAME, NAMES, RT, unit_of
from egnn_md.chemistry.units import ANGSTROM_PER_BOHR
from egnn_md.graph import Graph
from egnn_md.models.bounds import check_sizes
from egnn_md.models.property_networks import (
    N_HEADS,
    READOUTS,
    MoleculeBatch,
    NetworkOutput,
    PaperNetwork,
    VectorNetwork,
)
from egnn_md.models.species import Species, check_elements
from egnn_md.neighbors import molecules_graph
from egnn_md.nn.bond_lengths import BondLengths
from egnn_md.nn.familiarity import Familiarity
from egnn_md.nn.ops import segment_sum
from egnn_md.shown import Shown

Network = Literal["vectors", "paper"]
SIZES: Final = ("hidden_dim", "message_dim", "n_vectors", "n_radial", "n_layers")
"""Of network "vectors"."""
FAR: Final = 1.5
"""Extrapolation from which a geometry is called far from the training data."""
_READOUT_OF: Final = {"gap": "lumo", "u298": "u0", "h298": "u0", "g298": "u0"}
"""Readout whose scale is that of a derived property."""


@dataclass(frozen=True)
class PropertyConfig:
    """All that defines a property model's function, its weights apart."""

    elements: tuple[int, ...]
    """Atomic numbers the model knows, ascending."""
    offsets: tuple[float, ...]
    """Of each network output, in the unit of its property."""
    scales: tuple[float, ...]
    """Of each output; 0: no label was ever seen, the property is NaN."""
    references: tuple[float, ...]
    """Of each element and output, in one row: element by element."""
    targets: tuple[str, ...] = NAMES
    """What is predicted. Network "vectors" predicts all twelve."""
    network: Network = "vectors"
    """"vectors": ours; "paper": the paper's QM9 network, over all pairs of atoms."""
    cutoff: float = 5.0
    """Å; "vectors" only."""
    hidden_dim: int = 96
    message_dim: int = 96
    """"vectors" only, as n_vectors and n_radial."""
    n_layers: int = 3
    n_vectors: int = 24
    n_radial: int = 20
    soft_edges: bool = True
    """Attention, "paper" only."""

    def __post_init__(self) -> None:
        check_elements(self.elements)
        if self.network not in get_args(Network):
            raise ValueError(f"network is one of {get_args(Network)}, not {self.network!r}")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets must be distinct names, not {self.targets}")
        if self.network == "vectors" and self.targets != NAMES:
            raise ValueError(f"network 'vectors' predicts {', '.join(NAMES)}, in this order")
        n = self.n_outputs
        if (len(self.offsets), len(self.scales), len(self.references)) != (n, n, n * len(self.elements)):
            raise ValueError(f"{n} outputs need as many offsets and scales, and references for each element")
        numbers = (self.cutoff, *self.offsets, *self.scales, *self.references)
        if not all(math.isfinite(number) for number in numbers) or self.cutoff <= 0 or min(self.scales) < 0:
            raise ValueError("cutoff (Å) must be positive, scales not negative, and all of them finite numbers")
        check_sizes(self)
        if self.network == "vectors" and self.hidden_dim % N_HEADS:
            raise ValueError(f"hidden_dim must be a multiple of {N_HEADS}, not {self.hidden_dim}")

    @property
    def n_outputs(self) -> int:
        """Of the network."""
        return len(READOUTS) if self.network == "vectors" else len(self.targets)

    @property
    def reach(self) -> float:
        """Length of the longest edge, Å."""
        return self.cutoff if self.network == "vectors" else math.inf


@dataclass(frozen=True, eq=False)
class PropertyPrediction:
    """What a property model says of the molecules of a `Graph`."""

    values: Tensor
    """(n_molecules, n_targets) float64, in the units of `egnn_md.chemistry.targets`."""
    uncertainty: Tensor
    """(n_molecules, n_targets) expected absolute error, same units; NaN where the model gives none."""
    extrapolation: Tensor
    """(n_atoms,) ratio to the training data, the larger of `Familiarity` and the strain of `BondLengths`; NaN where the
    model carries no statistics."""


class PropertyModel(Shown, nn.Module):
    """QM9's properties of isolated molecules; see the top of this module."""

    def __init__(self, config: PropertyConfig) -> None:
        super().__init__()
        self.config = config
        n_targets, n_elements = len(config.targets), len(config.elements)
        self.network: PaperNetwork | VectorNetwork
        if config.network == "paper":
            self.network = PaperNetwork(
                config.elements, n_targets, config.hidden_dim, config.n_layers, config.soft_edges
            )
            self.error_model = None
        else:
            sizes = {name: getattr(config, name) for name in SIZES}
            self.network = VectorNetwork(n_elements, cutoff=config.cutoff, **sizes)
            self.error_model = _error_model(self.network.pooled_dim, config.hidden_dim, n_targets)
            self.register_buffer("calibration", torch.ones(n_targets))
            self.calibration: Tensor
        self.familiarity = Familiarity(config.hidden_dim, n_elements)
        self.bond_lengths = BondLengths(config.elements)
        self.species = Species(config.elements)
        masses = torch.tensor([MASSES[z] for z in config.elements], dtype=torch.float64)
        self._constants = {"masses": masses, **_normalisation(config)}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Keep the physics in float64, on the device of the weights."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._constants = {name: value.to(self.device) for name, value in self._constants.items()}
        return self

    @property
    def units(self) -> dict[str, str]:
        """Of each property."""
        return {name: unit_of(name) for name in self.config.targets}

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return self.species.table.device

    def prepare(self, graph: Graph) -> MoleculeBatch:
        """What the network reads of a graph whose edges reach `config.reach`, on the model's device.

        Raises UnsupportedElement.
        """
        species = self.species(graph.atomic_numbers)
        masses = self._constants["masses"].index_select(0, species).unsqueeze(-1)
        positions = graph.positions.double()
        weighted = segment_sum(torch.cat([masses * positions, masses], 1), graph.batch, graph.n_graphs)
        centred = positions - (weighted[:, :3] / weighted[:, 3:]).index_select(0, graph.batch)
        vectors = graph.pair_vectors().to(self.dtype)
        return MoleculeBatch(vectors, centred.to(self.dtype), species, graph.pairs, graph.batch, graph.n_graphs)

    def forward(self, graph: Graph) -> PropertyPrediction:
        """Predict for each molecule of `graph`; see `prepare`."""
        molecules = self.prepare(graph)
        out = self.network(molecules)
        familiarity = self.familiarity(out.features.detach(), molecules.species)
        strain = self.bond_lengths(molecules.vectors.norm(dim=-1), molecules.pairs, molecules.species)
        return PropertyPrediction(
            values=self.properties(out, molecules),
            uncertainty=self.uncertainty(out),
            extrapolation=torch.maximum(familiarity, strain),
        )

    def properties(self, out: NetworkOutput, molecules: MoleculeBatch) -> Tensor:
        """Outputs of the network -> (n_molecules, n_targets) in their units, float64."""
        constants = self._constants
        references = segment_sum(
            constants["references"].index_select(0, molecules.species), molecules.batch, molecules.n_molecules
        )
        readouts = constants["offsets"] + references + constants["scales"] * out.values.double()
        readouts = torch.where(constants["scales"] > 0, readouts, torch.nan)
        if self.config.network == "paper":
            return readouts
        of = dict(zip(READOUTS, readouts.unbind(1), strict=True))
        charge = constants["atomic_numbers"].index_select(0, molecules.species)
        square = molecules.centred.double().square().sum(-1) / ANGSTROM_PER_BOHR**2
        atoms = constants["h-u"].index_select(0, molecules.species)
        nuclear, h_minus_u = segment_sum(
            torch.stack([charge * square, atoms], 1), molecules.batch, molecules.n_molecules
        ).unbind(1)
        of["r2"] = of["r2"] + nuclear
        of["gap"] = of["lumo"] - of["homo"]
        of["u298"] = of["u0"] + of["u298-u0"]
        of["h298"] = of["u298"] + RT - h_minus_u
        of["g298"] = of["h298"] - of["h298-g298"]
        return torch.stack([of[name] for name in NAMES], 1)

    def uncertainty(self, out: NetworkOutput) -> Tensor:
        """Expected absolute errors, (n_molecules, n_targets) float64; the features are taken as they are."""
        if self.error_model is None:
            return out.values.new_full(out.values.shape, torch.nan, dtype=torch.float64)
        log_b = self.error_model(out.pooled.detach()).double().clamp(-15.0, 5.0)
        return torch.exp(log_b) * self.calibration.double() * self._constants["error_scales"]

    @torch.no_grad()
    def predict(self, structures: Any, *, uncertainty: bool = False) -> dict[str, Any]:
        """Properties of one `ase.Atoms`, as floats, or of a sequence of them, as arrays, by name.

        Units: `egnn_md.chemistry.targets.BY_NAME[name].unit`. `uncertainty` adds the expected absolute error of each as
        "alpha_uncertainty" …, and "extrapolation", the largest of the molecule's atoms: above `FAR` the geometry is
        unlike the training data. Raises ValueError for structures that are empty, charged, periodic, have positions
        that are not finite or atoms on top of each other, and UnsupportedElement, naming the place in the sequence.
        """
        molecules, single = structures_of(structures)
        for k, molecule in enumerate(molecules):
            if (problem := molecule.problem(self.config.elements)) is not None:
                raise problem if single else type(problem)(f"structure {k}: {problem}")
        if not molecules:
            raise ValueError("there are no structures to predict for")
        parts = [self.predict_batch(batch) for batch in batches(molecules)]
        columns = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
        if not uncertainty:
            columns = {name: columns[name] for name in self.config.targets}
        return {name: float(column[0]) for name, column in columns.items()} if single else columns

    @torch.no_grad()
    def predict_batch(self, molecules: Sequence[Structure]) -> dict[str, Tensor]:
        """As `predict`, with uncertainties, for structures without problems, in one call: tensors on the CPU."""
        device = self.device
        numbers = torch.cat([torch.as_tensor(m.atomic_numbers, dtype=torch.int64) for m in molecules]).to(device)
        positions = torch.cat([torch.as_tensor(m.positions) for m in molecules]).to(device)
        counts = torch.tensor([len(m.atomic_numbers) for m in molecules], device=device)
        graph = molecules_graph(positions, numbers, counts, self.config.reach)
        prediction = self(graph)
        worst = torch.full((len(molecules),), -math.inf, dtype=torch.float64, device=device)
        extrapolation = prediction.extrapolation.double()
        if bool(self.familiarity.mean.isfinite().any()):  # NaN then means that the network itself overflowed
            extrapolation = extrapolation.nan_to_num(nan=math.inf, posinf=math.inf)
        worst = worst.scatter_reduce(0, graph.batch, extrapolation, "amax")
        names = self.config.targets
        columns = dict(zip(names, prediction.values.cpu().unbind(1), strict=True))
        errors = prediction.uncertainty.cpu().unbind(1)
        columns |= {f"{name}_uncertainty": error for name, error in zip(names, errors, strict=True)}
        return columns | {"extrapolation": worst.cpu()}


def _error_model(in_dim: int, hidden_dim: int, n_targets: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, n_targets))


def _normalisation(config: PropertyConfig) -> dict[str, Tensor]:
    """Everything that turns outputs into properties, float64; tables have a row for each element."""

    def tensor(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    scale_of = dict(zip(READOUTS if config.network == "vectors" else config.targets, config.scales, strict=True))
    u, h = BY_NAME["u298"], BY_NAME["h298"]
    return {
        "offsets": tensor(config.offsets),
        "scales": tensor(config.scales),
        "references": tensor(config.references).reshape(len(config.elements), -1),
        "error_scales": tensor([scale_of[_READOUT_OF.get(name, name)] for name in config.targets])
        if config.network == "vectors"
        else tensor(config.scales),
        "atomic_numbers": tensor(config.elements),
        "h-u": tensor([h.factor * (h.atoms.get(z, math.nan) - u.atoms.get(z, math.nan)) for z in config.elements]),
    }
