"""A flow map: (positions, momenta) -> the same a stride later, without forces.

A stride is a few equal sub-steps of length s, each a palindrome of learned kicks K and free flights D:

    Ψ_s = K_a D K_b D K_a        D: x_i += ½ s p_i / m_i        K: p_i += c s Σ_j f_ij r̂_ij,  f_ij = f_ji

with c = 1/6 in K_a and 2/3 in K_b. An EGNN gives the f_ij (eV/Å, positive: attraction) from positions, elements,
masses and s, and beside each of K_a, for next to nothing, an energy E = Σ ε_ij. Whatever it has learned,

- shears preserve the volume of phase space, and a palindrome of them is time-reversible: turn the momenta round, apply
  Ψ_s again, turn them round, and the start is back;
- symmetric central pair kicks conserve momentum and angular momentum, as free flights do;
- so a Metropolis test of E plus the kinetic energy makes a stride with a thermostat sample exp(-E/kT) exactly.

For small s the kicks are the force, with Simpson's weights c; the one in the middle, corrected by terms of order s²,
makes this a step of fourth order (Chin, Phys. Lett. A 226, 344, 1997). Kicks that know s do more: for a vibration of
frequency ω and mass 1, Ψ_s is its rotation by ωs exactly if p changes by -b x in K_b and by -a x in K_a, with
b = (4/s)(1 - sin(ωs)/(ωs)) and a = 2/s - ω cot(ωs/2): for all s below the pole at one period, 2π/ω.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import silu

from egnn_md.chemistry.molecules import bond_pattern, surroundings
from egnn_md.chemistry.units import FS_PER_TIME_UNIT
from egnn_md.models.bounds import check_sizes
from egnn_md.models.species import Species, check_elements
from egnn_md.nn.ends import Ends
from egnn_md.nn.ops import gather, segment_sum
from egnn_md.nn.radial import BesselBasis, cutoff_value, distance
from egnn_md.nn.vector_layer import NEIGHBOR_SCALE, Pairs, State, VectorLayer, normalised
from egnn_md.shown import Shown

FORCE_SCALE: Final = 10.0
"""eV/Å: what f_ij is in units of, so that the last layer's weights are of order one."""


Kick = tuple[Tensor, Tensor]
"""Impulse over time of each atom, (n_atoms, 3) eV/Å, and its share of the energy, (n_atoms,) eV."""


class UnknownMolecule(ValueError):
    """A molecule that a flow map was not trained to move: it would go wrong without a sign."""


@dataclass(frozen=True)
class FlowConfig:
    """All that defines a flow map's function, its weights apart."""

    elements: tuple[int, ...]
    """Atomic numbers the model knows, ascending."""
    reference_energies: tuple[float, ...]
    """Of each element, eV, in the order of `elements`: what E is counted from."""
    longest_substep: float = 5.0
    """fs; a stride is cut into equal sub-steps no longer than this, which is the longest in training."""
    cutoff: float = 5.0
    """Å."""
    hidden_dim: int = 64
    message_dim: int = 64
    n_layers: int = 2
    n_vectors: int = 16
    n_radial: int = 16
    molecules: tuple[str, ...] = ()
    """What it was trained to move, as `egnn_md.chemistry.molecules.bond_pattern` names it; empty: not known."""
    surroundings: tuple[str, ...] = ()
    """What its atoms were bound to in training, as `egnn_md.chemistry.molecules.surroundings` names it; empty: not
    known. A map of many molecules has these in place of `molecules`."""

    def __post_init__(self) -> None:
        check_elements(self.elements)
        if len(self.reference_energies) != len(self.elements) or not all(map(math.isfinite, self.reference_energies)):
            raise ValueError("reference_energies needs one finite energy (eV) for each element")
        for name in ("longest_substep", "cutoff"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, not {getattr(self, name)!r}")
        check_sizes(self)


class FlowMap(Shown, nn.Module):
    """Ψ_s of molecules; see the equations at the top of this module.

    Momenta are in amu Å per `FS_PER_TIME_UNIT` fs (ase's), positions in Å, masses in amu, sub-steps in fs. Positions
    and momenta may be more precise than the network (float64 beside float32): differences of positions are taken, and
    impulses added, in their own precision, so that what is conserved is conserved to its round-off.
    """

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        dim, width = config.hidden_dim, config.message_dim
        self.embedding = nn.Embedding(len(config.elements), dim)
        self.kinds = nn.Parameter(0.1 * torch.randn(2, 1, dim))  # K_a and K_b
        self.condition = nn.Sequential(nn.Linear(4, dim), nn.SiLU(), nn.Linear(dim, dim))
        sizes = (dim, width, config.n_radial, config.n_vectors)
        self.layers = nn.ModuleList(VectorLayer(*sizes, first=k == 0, last=False) for k in range(config.n_layers))
        self.pair_node = nn.Linear(dim, width)
        self.pair_inputs = nn.Linear(config.n_radial + 2 * config.n_vectors, width, bias=False)
        self.pair_output = nn.Linear(width, 2, bias=False)  # f_ij and ε_ij
        self.basis = BesselBasis(config.n_radial, config.cutoff)
        self.species = Species(config.elements, whose="this flow map")

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return self.pair_output.weight.dtype

    def check_elements(self, atomic_numbers: Tensor) -> None:
        """Raise UnsupportedElement, naming the elements, if the model does not know one of `atomic_numbers`."""
        self.species.check(atomic_numbers)

    def check_molecule(self, atomic_numbers: NDArray[np.int64], positions: NDArray[np.float64]) -> None:
        """Raise UnsupportedElement, or UnknownMolecule if it was not trained to move this one, or any with such bonds.

        atomic_numbers (n_atoms,), positions (n_atoms, 3) Å.
        """
        self.check_elements(torch.as_tensor(atomic_numbers))
        known = self.config.molecules
        if known and (found := bond_pattern(atomic_numbers, positions)) not in known:
            formulas = sorted({name.split(":")[0] for name in known})
            other = ", with other bonds" if found.split(":")[0] in formulas else ""
            raise UnknownMolecule(
                f"this flow map moves {', '.join(formulas)}; the structure is {found.split(':')[0]}{other}. "
                "Train one for it: egnn-md data flow, then egnn-md train"
            )
        seen = set(self.config.surroundings)
        strange = sorted(set(surroundings(atomic_numbers, positions)) - seen) if seen else []
        if strange:
            raise UnknownMolecule(
                f"this flow map saw no atom with such bonds in training: {', '.join(strange[:5])}. "
                "If the structure is right, train one for it: egnn-md data flow, then egnn-md train"
            )

    def n_substeps(self, stride: float) -> int:
        """How many equal sub-steps a stride (fs) is cut into."""
        return max(1, math.ceil(stride / self.config.longest_substep - 1e-9))

    def condition_on(self, species: Tensor, masses: Tensor, substep: Tensor) -> Tensor:
        """First features of each atom in K_a and K_b, (2, n_atoms, hidden_dim); of positions they know nothing.

        species (n_atoms,) positions in `config.elements`; masses (n_atoms, 1) amu; substep (n_atoms, 1) fs.
        """
        x, inverse = substep / self.config.longest_substep, 1.0 / masses
        known = torch.cat([x, x * x, inverse, x * x * inverse], -1).to(self.dtype)
        features: Tensor = gather(self.embedding.weight, species) + self.condition(known) + self.kinds
        return features

    def kick(self, positions: Tensor, features: Tensor, pairs: Tensor) -> Kick:
        """Σ_j f_ij r̂_ij of each atom, (n_atoms, 3) eV/Å; and its share of E, (n_atoms,) eV, without references.

        features: of K_a or K_b, from `condition_on`; E belongs to those of K_a. pairs (2, n_pairs): every pair of atoms
        within the cutoff once (others do not matter).
        """
        first, second = pairs
        vectors = positions.index_select(0, second) - positions.index_select(0, first)
        distances = distance(vectors)
        directions = vectors / distances
        seen = distances.to(self.dtype)
        radial, envelope = self.basis.value(seen), cutoff_value(seen, self.config.cutoff)
        forward = directions.to(self.dtype).unsqueeze(-1)
        ends = Ends(pairs, positions.shape[0])
        weight = envelope * NEIGHBOR_SCALE
        h, v = self.through_layers(features, Pairs(ends, forward, radial, weight))
        terms = self._pair_terms(h, v, pairs, forward, radial) * envelope
        attraction, energy = terms.to(directions.dtype).chunk(2, -1)
        push = directions * (FORCE_SCALE * attraction)
        return ends.sum((push, -push)), segment_sum(energy.squeeze(-1), first, positions.shape[0])

    def through_layers(self, features: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """h (n_atoms, hidden_dim) and v (n_atoms, 3, n_vectors) after all layers."""
        state = State(features)
        for layer in self.layers:
            state, _ = layer(state, [pairs])
        assert state.v is not None
        return state.h, state.v

    def _pair_terms(self, h: Tensor, v: Tensor, pairs: Tensor, directions: Tensor, radial: Tensor) -> Tensor:
        """f_ij and ε_ij before envelope and scale, (n_pairs, 2): the same from both ends."""
        first, second = pairs
        node = self.pair_node(normalised(h)[0])
        v_first, v_second = gather(v, first), gather(v, second)
        inputs = [radial, (directions * (v_first - v_second)).sum(1), (v_first * v_second).sum(1)]
        hidden = gather(node, first) + gather(node, second) + self.pair_inputs(torch.cat(inputs, -1))
        output: Tensor = self.pair_output(silu(hidden))
        return output

    def forward(
        self,
        positions: Tensor,
        momenta: Tensor,
        species: Tensor,
        masses: Tensor,
        pairs: Tensor,
        substep: Tensor,
        n_substeps: int = 1,
    ) -> tuple[Tensor, Tensor, Kick, Kick]:
        """`n_substeps` times Ψ_s: positions and momenta, (n_atoms, 3) each, n_substeps · s later; and K_a's kick with
        the energy, at the start and at the end.

        Arguments as in `condition_on` and `kick`.
        """
        kinds = self.condition_on(species, masses, substep)
        s = (substep / FS_PER_TIME_UNIT).to(positions.dtype)

        def kick(positions: Tensor, features: Tensor) -> Kick:
            return self.kick(positions, features, pairs)

        first, flight = kick(positions, kinds[0]), 0.5 * s / masses.to(s.dtype)
        positions, momenta, last = advance(kick, positions, momenta, first, kinds, flight, s, n_substeps)
        return positions, momenta, first, last


def pairs_of(n_atoms: NDArray[np.int64]) -> Tensor:
    """Every pair of atoms of the same molecule once, (2, n_pairs)."""
    starts = np.cumsum(n_atoms) - n_atoms
    once = {n: np.stack(np.triu_indices(n, 1)) for n in np.unique(n_atoms)}
    return torch.from_numpy(np.concatenate([once[n] + a for n, a in zip(n_atoms, starts, strict=True)], 1))


def advance(
    kick: Callable[[Tensor, Tensor], Kick],
    positions: Tensor,
    momenta: Tensor,
    first: Kick,
    kinds: Tensor,
    flight: Tensor,
    s: Tensor,
    n_substeps: int,
) -> tuple[Tensor, Tensor, Kick]:
    """`n_substeps` times Ψ_s, with all that lasts from stride to stride at hand: positions, momenta, the next `first`.

    The kicks at the end of a sub-step and at the start of the next act at the same positions: one evaluation of
    kick(positions, features). first: K_a's at `positions`; kinds: the features of K_a and K_b; flight: s/2m; s in units
    of `FS_PER_TIME_UNIT` fs.
    """
    outer, inner = kinds
    for _ in range(n_substeps):
        momenta = momenta + s / 6.0 * first[0]
        positions = positions + flight * momenta
        momenta = momenta + s / 1.5 * kick(positions, inner)[0]
        positions = positions + flight * momenta
        first = kick(positions, outer)
        momenta = momenta + s / 6.0 * first[0]
    return positions, momenta, first
