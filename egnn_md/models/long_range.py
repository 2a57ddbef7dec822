"""Charges of atoms, and what they and dispersion do at any distance.

Three numbers are read from the final features of each atom: a charge q that makes the field, a strength a = √C6, and
the charge that is reported (and, of models with atomic dipoles, how much each vector counts in these). The energy of
all pairs, whatever their distance,

    E = ½ Σ_i≠j [ q_i q_j φ(d_ij) + a_i a_j ψ(d_ij) ]        (φ, ψ: `egnn_md.nn.far_field`)

is added to that of the network, which learns the rest. In a periodic structure the sum goes over all images, as one
over reciprocal vectors. Charges come from an atom's surroundings alone, so that two molecules far apart have those that
they have by themselves; that they add up to the charge of the molecule is learned, and checked (`egnn_md.predict`), or
else made so (`egnn_md.models.charge_response`).

q is trained so that dipole moments and total charges are the labels', which Mulliken's charges, those reported, are not
made for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, silu

from egnn_md.chemistry.dispersion import free_atom_c6
from egnn_md.graph import Graph
from egnn_md.models.charge_response import ChargeResponse, Totals, Window
from egnn_md.models.species import version_of
from egnn_md.nn.far_field import (
    CHARGE_AT_ZERO,
    STRENGTH_AT_ZERO,
    Waves,
    charge_potential,
    dispersion_potential,
    waves_of,
)
from egnn_md.nn.ops import add_rows, gather, segment_sum, silu_vjp
from egnn_md.nn.radial import distance

LARGEST_CHARGE: Final = 4.0
"""e; charges saturate there."""
ROWS_FROM: Final = 1024
"""Atoms of a structure that is not periodic, beyond which its pairs are not kept."""
BLOCK_PAIRS: Final = 2**18
"""Of a block of rows: 1 MB for each number of a pair in float32."""


class FarPairs(NamedTuple):
    """All pairs of atoms of structures that are not periodic, each pair once."""

    vectors: Tensor
    """x_j - x_i, (n_pairs, 3) Å, in the precision of the model."""
    ends: Tensor
    """i and j, (2, n_pairs) int64."""


class FarRows(NamedTuple):
    """A large structure that is not periodic: its pairs are made a few rows of atoms at a time."""

    first: int
    """Its first atom."""
    positions: Tensor
    """(n_atoms, 3) Å, about their middle, in the precision of the model."""


class FarWaves(NamedTuple):
    """A periodic structure, seen by the reciprocal vectors of its cell."""

    structure: int
    """Which of the batch it is."""
    first: int
    """Its first atom."""
    phases: Tensor
    """k·x_i, (n_atoms, n_waves), in the precision of the model."""
    waves: Waves


class Far(NamedTuple):
    """All that is to be summed, of one structure or a batch."""

    pairs: FarPairs | None
    waves: Sequence[FarWaves] = ()
    rows: Sequence[FarRows] = ()
    totals: Totals | None = None
    """For models with a `ChargeResponse`."""


class FarField(NamedTuple):
    """What charges and dispersion add."""

    energies: Tensor
    """(n_atoms,) eV, float64: half of each pair's."""
    forces: Tensor
    """(n_atoms, 3) eV/Å, at constant charges and strengths."""
    by_features: Tensor
    """∂E by the features that charges and strengths were read from, (n_atoms, hidden_dim)."""
    charges: Tensor
    """(n_atoms, 3) e: those that make the field, those that are reported, and what of the first the surroundings show:
    all of it, but for a `ChargeResponse`. (n_atoms, 6) of models with atomic dipoles, the last three columns, e·Å."""
    virials: tuple[Tensor, ...]
    """∂E by a strain of positions and cell together, (3, 3) eV, of each periodic structure, at constant charges."""


class _Response(NamedTuple):
    """Of one pass over pairs or waves."""

    by_both: Tensor
    """∂E by charge and strength, (n_atoms, 2)."""
    forces: Tensor
    virial: Tensor | None = None


class FarLayout(NamedTuple):
    """What of `Far` does not depend on positions: the same at each step of a simulation at constant volume."""

    ends: Tensor | None
    """Of `FarPairs`; None without any."""
    cells: tuple[tuple[int, int, int, Waves], ...]
    """Periodic structures: which of the batch, its first atom, how many it has, its reciprocal vectors."""
    rows: tuple[tuple[int, int], ...]
    """Large structures that are not periodic: first atom and number of atoms."""
    totals: Totals


def far_layout(graph: Graph) -> FarLayout:
    """Raises ValueError for structures periodic in one or two directions."""
    some, all_of_them = graph.pbc.any(-1), graph.pbc.all(-1)
    if bool((some & ~all_of_them).any()):
        raise ValueError(
            "electrostatics of structures periodic in one or two directions are not known to this model: make them "
            "periodic in three (with a vacuum), or in none"
        )
    counts = torch.bincount(graph.batch, minlength=graph.n_graphs)
    starts = counts.cumsum(0) - counts
    large = ~all_of_them & (counts > ROWS_FROM)
    cells = tuple(
        (k, int(starts[k]), int(counts[k]), _waves(tuple(graph.cell[k].flatten().tolist()), graph.cell.device))
        for k in all_of_them.nonzero().squeeze(-1).tolist()
    )
    rows = tuple((int(starts[k]), int(counts[k])) for k in large.nonzero().squeeze(-1).tolist())
    others = torch.where(all_of_them | large, 0, counts)
    return FarLayout(all_pairs(others, starts) if bool(others.any()) else None, cells, rows, _totals(graph))


def _totals(graph: Graph) -> Totals:
    nuclei = segment_sum(graph.atomic_numbers, graph.batch, graph.n_graphs + 1)
    charge = torch.full(nuclei.shape, torch.nan, dtype=torch.float64, device=nuclei.device)
    if graph.charge is not None:
        charge[:-1] = graph.charge
    return Totals(graph.batch, charge, torch.remainder(nuclei, 2).double())


def far_of(graph: Graph, dtype: torch.dtype, layout: FarLayout | None = None) -> Far:
    """What `LongRange` needs of a graph. Raises ValueError as `far_layout`, which is asked where it is not given."""
    ends, cells, large, totals = layout or far_layout(graph)
    totals = totals._replace(charge=totals.charge.to(dtype), odd=totals.odd.to(dtype))
    waves, rows = [], []
    for k, first, n_atoms, of_cell in cells:
        phases = graph.positions[first : first + n_atoms].double() @ of_cell.vectors.mT
        waves.append(FarWaves(k, first, torch.remainder(phases, 2.0 * math.pi).to(dtype), of_cell))
    for first, n_atoms in large:
        positions = graph.positions[first : first + n_atoms]
        rows.append(FarRows(first, (positions - positions.mean(0)).to(dtype)))
    if ends is None:
        return Far(None, waves, rows, totals)
    first_end, second_end = ends
    vectors = graph.positions.index_select(0, second_end) - graph.positions.index_select(0, first_end)
    return Far(FarPairs(vectors.to(dtype), ends), waves, rows, totals)


def all_pairs(counts: Tensor, starts: Tensor) -> Tensor:
    """Pairs of atoms of the same structure, each once, (2, n_pairs) int64: counts (n_graphs,) atoms from `starts`."""
    if counts.shape[0] == 1 and int(starts) == 0:
        return _triangle(int(counts), counts.device)
    row = torch.arange(int(counts.sum()), device=counts.device)  # of the first atom of each pair
    structure = torch.repeat_interleave(torch.arange(counts.shape[0], device=counts.device), counts)
    within = row - (counts.cumsum(0) - counts).index_select(0, structure)
    later = counts.index_select(0, structure) - within - 1
    atom = within + starts.index_select(0, structure)
    first = torch.repeat_interleave(atom, later)
    begun = torch.repeat_interleave(later.cumsum(0) - later, later)
    return torch.stack([first, first + 1 + torch.arange(first.shape[0], device=counts.device) - begun])


@lru_cache(maxsize=16)
def _triangle(n_atoms: int, device: torch.device) -> Tensor:
    """`all_pairs` of one structure, the same at each step of a simulation."""
    with torch.inference_mode(False):
        return torch.triu_indices(n_atoms, n_atoms, 1, device=device)


@lru_cache(maxsize=16)
def _waves(cell: tuple[float, ...], device: torch.device) -> Waves:
    """`waves_of` a cell, the same at each step at constant volume."""
    with torch.inference_mode(False):
        return waves_of(torch.tensor(cell, dtype=torch.float64, device=device).reshape(3, 3))


class LongRange(nn.Module):
    """See the top of this module."""

    def __init__(
        self, elements: Sequence[int], hidden_dim: int, *, response: Window | None = None, n_vectors: int = 0
    ) -> None:
        super().__init__()
        self.response = None if response is None else ChargeResponse(hidden_dim, response)
        self.head = nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, 3))
        strengths = torch.tensor(free_atom_c6(elements)).sqrt()
        self.strengths = nn.Parameter(strengths.to(torch.get_default_dtype()))
        """√C6 of each element, eV^½ Å³, before the surroundings count."""
        self.dipole_gates = None
        if n_vectors:
            self.dipole_gates = nn.Linear(hidden_dim, n_vectors)
            nn.init.zeros_(self.dipole_gates.weight)
            nn.init.zeros_(self.dipole_gates.bias)
        self._remembered: tuple[tuple[tuple[Tensor, int], ...], FarLayout] | None = None

    def far(self, graph: Graph, dtype: torch.dtype) -> Far:
        """`far_of`, its layout remembered: the next step of the same atoms in the same cell waits for no device."""
        key, remembered = self._key(graph), self._remembered
        if remembered is None or not _same(remembered[0], key):
            remembered = (key, far_layout(graph))
            self._remembered = remembered  # both at once: several threads may ask
        far = far_of(graph, dtype, remembered[1])
        return far if self.response is not None else far._replace(totals=None)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_remembered": None}

    @staticmethod
    def _key(graph: Graph) -> tuple[tuple[Tensor, int], ...]:
        charge = () if graph.charge is None else (graph.charge,)
        read = (graph.atomic_numbers, graph.batch, graph.cell, graph.pbc, *charge)
        return tuple((tensor, version_of(tensor)) for tensor in read)

    def forward(self, features: Tensor, vectors: Tensor, species: Tensor, far: Far) -> FarField:
        """Final features (n_atoms, hidden_dim), the vectors v' (n_atoms, 3, n_vectors) that they were made of, and
        species (n_atoms,) of the structures of `far`.
        """
        first, last = (part for part in self.head if isinstance(part, nn.Linear))
        hidden = linear(features, first.weight, first.bias)
        activated = silu(hidden)
        shown, strength, more = linear(activated, last.weight, last.bias).unbind(-1)
        shown = LARGEST_CHARGE * torch.tanh(shown * (1.0 / LARGEST_CHARGE))
        share = torch.sigmoid(strength)
        strength = 2.0 * gather(self.strengths, species) * share
        charge, tape, totals = shown, None, far.totals
        if self.response is not None and totals is not None:
            charge, tape = self.response(activated, shown, totals)
        both = torch.stack([charge, strength], -1)
        by_both, forces, virials = self._of_all(both, far)
        energies = 0.5 * (both * by_both).sum(-1)
        by_shown, by_strength = by_both.unbind(-1)
        by_activated: Tensor | None = None
        if self.response is not None and tape is not None and totals is not None:
            cost, by_shown, by_activated = self.response.vjp(tape, by_shown, totals)
            energies = energies + cost
        by_shown = by_shown * (1.0 - (shown * (1.0 / LARGEST_CHARGE)).square())
        by_head = torch.stack([by_shown, by_strength * strength * (1.0 - share)], -1) @ last.weight[:2]
        by_head = by_head if by_activated is None else by_head + by_activated
        by_features = silu_vjp(by_head, hidden) @ first.weight
        charges = torch.stack([charge, charge + more, shown], -1)
        if self.dipole_gates is not None:
            gates = linear(activated, self.dipole_gates.weight, self.dipole_gates.bias)
            charges = torch.cat([charges, (vectors * gates.unsqueeze(1)).sum(-1)], -1)
        return FarField(energies.double(), forces, by_features, charges, virials)

    def _of_all(self, both: Tensor, far: Far) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        by_both = forces = None
        virials = []
        if far.pairs is not None:
            by_both, forces, _ = _of_pairs(both, far.pairs)
        parts: list[FarWaves | FarRows] = [*far.waves, *far.rows]
        for part in parts:
            n_atoms = (part.phases if isinstance(part, FarWaves) else part.positions).shape[0]
            own = both.narrow(0, part.first, n_atoms)
            response = _of_waves(own, part) if isinstance(part, FarWaves) else _of_rows(own, part)
            around = (0, 0, part.first, both.shape[0] - part.first - n_atoms)
            more, pull = pad(response.by_both, around), pad(response.forces, around)
            by_both, forces = (more, pull) if by_both is None or forces is None else (by_both + more, forces + pull)
            if response.virial is not None:
                virials.append(response.virial)
        assert by_both is not None
        assert forces is not None
        return by_both, forces, tuple(virials)


def _same(a: tuple[tuple[Tensor, int], ...], b: tuple[tuple[Tensor, int], ...]) -> bool:
    """Whether they are the same tensors, unchanged."""
    return len(a) == len(b) and all(x is y and i == j for (x, i), (y, j) in zip(a, b, strict=True))


def _of_pairs(both: Tensor, pairs: FarPairs) -> _Response:
    n_atoms = both.shape[0]
    first, second = pairs.ends
    distances = distance(pairs.vectors)
    phi, phi_slope = charge_potential(distances)
    psi, psi_slope = dispersion_potential(distances)
    of_first, of_second = gather(both, first), gather(both, second)
    potentials = torch.cat([phi, psi], -1)
    by_both = add_rows(segment_sum(of_second * potentials, first, n_atoms), second, of_first * potentials, n_atoms)
    slope = (of_first * of_second * torch.cat([phi_slope, psi_slope], -1)).sum(-1, keepdim=True)
    pull = pairs.vectors * (slope / distances)
    return _Response(by_both, segment_sum(pull, first, n_atoms) - segment_sum(pull, second, n_atoms))


def _of_rows(both: Tensor, far: FarRows) -> _Response:
    x, by_both, forces = far.positions, [], []
    size = max(1, BLOCK_PAIRS // x.shape[0])
    for start in range(0, x.shape[0], size):
        own, values = x[start : start + size], both[start : start + size]
        vectors = x - own.unsqueeze(1)
        distances = distance(vectors)
        alone = torch.ones_like(distances[..., 0])
        alone[torch.arange(own.shape[0]), torch.arange(start, start + own.shape[0])] = 0.0
        phi, phi_slope = (part.squeeze(-1) * alone for part in charge_potential(distances))
        psi, psi_slope = (part.squeeze(-1) * alone for part in dispersion_potential(distances))
        by_both.append(torch.stack([phi @ both[:, 0], psi @ both[:, 1]], -1))
        slope = values[:, :1] * both[:, 0] * phi_slope + values[:, 1:] * both[:, 1] * psi_slope
        forces.append((vectors * (slope.unsqueeze(-1) / distances)).sum(1))
    return _Response(torch.cat(by_both), torch.cat(forces))


def _of_waves(both: Tensor, far: FarWaves) -> _Response:
    waves, phases = far.waves, far.phases
    cos, sin = torch.cos(phases), torch.sin(phases)
    real, imaginary = both.mT @ cos, both.mT @ sin  # S(k), (2, n_waves)
    power = (real.square() + imaginary.square()).double()
    weights = torch.stack([waves.charges, waves.strengths])
    rounded = (2.0 * weights).to(phases)
    real, imaginary = rounded * real, rounded * imaginary
    charges, strengths = both.unbind(-1)
    total = strengths.sum()
    alone = [CHARGE_AT_ZERO * charges, STRENGTH_AT_ZERO * strengths - 2.0 * waves.uniform.to(phases) * total]
    by_both = cos @ real.mT + sin @ imaginary.mT - torch.stack(alone, -1)
    by_phase = (both @ imaginary) * cos - (both @ real) * sin
    by_square = power[0] * waves.charges_slope + power[1] * waves.strengths_slope
    along = (waves.vectors * by_square[:, None]).mT @ waves.vectors
    energy = (power * weights).sum() + waves.uniform * total.double().square()
    virial = -2.0 * along - energy * torch.eye(3, dtype=energy.dtype, device=energy.device)
    return _Response(by_both, -(by_phase @ waves.vectors.to(phases)), virial)
