"""The two networks of the property model: the one of the paper, and ours with vector channels and physical readouts.

Both turn a batch of molecules into normalised outputs; `egnn_md.models.property` gives them units.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from egnn_md.nn.egcl import EGCL, EdgeInput, NodeState
from egnn_md.nn.ends import Ends
from egnn_md.nn.ops import gather, segment_sum
from egnn_md.nn.radial import BesselBasis, cutoff_value, distance
from egnn_md.nn.vector_layer import NEIGHBOR_SCALE, Pairs, State, VectorLayer, saturated

SUMS: Final = ("alpha", "zpve", "u0", "u298-u0", "h298-g298", "cv")
"""Readouts that are a sum over atoms."""
ORBITALS: Final = ("homo", "lumo")
"""Readouts of the whole molecule: they do not grow with it."""
READOUTS: Final = (*SUMS, *ORBITALS, "mu", "r2")
"""What our network gives; the twelve properties follow from these (`egnn_md.models.property`)."""
POOLED: Final = (*ORBITALS, "u298-u0", "h298-g298")
"""Readouts that the pooled features (also) contribute to: entropies know the whole molecule's moments of inertia."""
N_HEADS: Final = 8
BOUND: Final = 5.0
"""`VectorLayer`'s, and that of the features which the readouts see: with few exceptions QM9's stay below it."""


class MoleculeBatch(NamedTuple):
    """What the networks read."""

    vectors: Tensor
    """r_ij of each pair of atoms, (n_pairs, 3) Å."""
    centred: Tensor
    """Positions from each molecule's centre of mass, (n_atoms, 3) Å."""
    species: Tensor
    """(n_atoms,) position of each atom's element among the model's."""
    pairs: Tensor
    """(2, n_pairs), each pair once."""
    batch: Tensor
    """(n_atoms,) the molecule of each atom."""
    n_molecules: int


class NetworkOutput(NamedTuple):
    """Normalised outputs and what lies behind them."""

    values: Tensor
    """(n_molecules, n_outputs)."""
    features: Tensor
    """Final h of each atom, (n_atoms, hidden_dim)."""
    pooled: Tensor
    """Of each molecule, (n_molecules, pooled_dim)."""


class PaperNetwork(nn.Module):
    """The network of the paper's QM9 experiment (arXiv 2102.09844, appendix C; the authors' class EGNN).

    One-hot elements times (Z/9)^{0, 1, 2}, EGCLs with soft edges (they call them attention) and without coordinate
    update over all pairs, a network on each atom, the sum, a network on the sum.
    """

    def __init__(self, atomic_numbers: tuple[int, ...], n_outputs: int, hidden_dim: int, n_layers: int, soft: bool):
        super().__init__()
        one_hot = torch.eye(len(atomic_numbers), dtype=torch.float64)
        charge = torch.tensor(atomic_numbers, dtype=torch.float64) / 9.0
        inputs = one_hot.unsqueeze(-1) * charge[:, None, None] ** torch.arange(3)  # element by element, its powers
        self.register_buffer("inputs", inputs.flatten(1).to(torch.get_default_dtype()), persistent=False)
        self.inputs: Tensor
        self.embedding = nn.Linear(self.inputs.shape[1], hidden_dim)
        self.layers = nn.ModuleList(
            EGCL(hidden_dim, update_coordinates=False, soft_edges=soft) for _ in range(n_layers)
        )
        self.node_decoder = _two_layers(hidden_dim, hidden_dim)
        self.graph_decoder = _two_layers(hidden_dim, n_outputs)
        self.pooled_dim = hidden_dim

    def forward(self, molecules: MoleculeBatch) -> NetworkOutput:
        """See `MoleculeBatch`; all pairs of atoms are to be there."""
        h = gather(self.embedding(self.inputs), molecules.species)
        x = molecules.centred
        state = NodeState(h, x)
        edge_index = torch.cat([molecules.pairs, molecules.pairs.flip(0)], 1)
        edges = EdgeInput(edge_index, x.new_ones(x.shape[0], 1))
        for layer in self.layers:
            state = layer(state, edges)
        pooled = segment_sum(self.node_decoder(state.features), molecules.batch, molecules.n_molecules)
        return NetworkOutput(self.graph_decoder(pooled), state.features, pooled)


class VectorNetwork(nn.Module):
    """`VectorLayer`s, and a readout for each kind of property.

    - sums over atoms: polarizability, energies, heat capacity, and half of the thermal terms;
    - the dipole moment |Σ_i q_i ρ_i + p_i|, Σ q_i = 0, ρ_i from the centre of mass;
    - the spatial extent Σ_i q_i |ρ_i|² + p_i·ρ_i + s_i;
    - orbital energies from features pooled with learned weights, a softmax over the atoms for each head.
    """

    def __init__(
        self,
        n_elements: int,
        *,
        hidden_dim: int,
        message_dim: int,
        n_layers: int,
        n_vectors: int,
        n_radial: int,
        cutoff: float,
    ) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.embedding = nn.Embedding(n_elements, hidden_dim)
        self.basis = BesselBasis(n_radial, cutoff)
        sizes = (hidden_dim, message_dim, n_radial, n_vectors)
        self.layers = nn.ModuleList(VectorLayer(*sizes, first=k == 0, last=False, bound=BOUND) for k in range(n_layers))
        self.atom = nn.Linear(hidden_dim, hidden_dim)
        self.atom_readout = nn.Linear(hidden_dim, len(SUMS) + 3)  # and charges of mu and r2, own extent
        self.vector_gates = nn.Linear(hidden_dim, 2 * n_vectors)
        self.pool_values = nn.Linear(hidden_dim, hidden_dim)
        self.pool_weights = nn.Linear(hidden_dim, N_HEADS)
        self.pooled_dim = 2 * hidden_dim
        self.molecule = _two_layers(self.pooled_dim, len(POOLED), hidden_dim)

    def forward(self, molecules: MoleculeBatch) -> NetworkOutput:
        """See `MoleculeBatch`; pairs are to reach `cutoff`. Outputs in the order of `READOUTS`."""
        state = State(gather(self.embedding.weight, molecules.species))
        pairs = self._pairs(molecules)
        for layer in self.layers:
            state, _ = layer(state, [pairs])
        v = state.v
        assert v is not None
        h = saturated(state.h, state.h.square(), BOUND)
        atom = silu(self.atom(h))
        pooled = self._pool(atom, molecules)
        by_atom = self.atom_readout(atom)
        sums = segment_sum(by_atom[:, : len(SUMS)], molecules.batch, molecules.n_molecules)
        whole = dict(zip(POOLED, self.molecule(pooled).unbind(1), strict=True))
        values = {name: sums[:, k] for k, name in enumerate(SUMS)} | self._moments(atom, v, by_atom, molecules)
        for name, value in whole.items():
            values[name] = values[name] + value if name in values else value
        return NetworkOutput(torch.stack([values[name] for name in READOUTS], 1), h, pooled)

    def _pairs(self, molecules: MoleculeBatch) -> Pairs:
        d = distance(molecules.vectors)
        directions = (molecules.vectors / d).unsqueeze(-1)
        weight = cutoff_value(d, self.cutoff) * NEIGHBOR_SCALE
        ends = Ends(molecules.pairs, molecules.species.shape[0])
        return Pairs(ends, directions, self.basis.value(d), weight)

    def _moments(self, atom: Tensor, v: Tensor, by_atom: Tensor, molecules: MoleculeBatch) -> dict[str, Tensor]:
        """Dipole moment and spatial extent."""
        rho, n = molecules.centred, molecules.n_molecules
        charge, extent_charge, own_extent = torch.split(by_atom[:, len(SUMS) :], 1, -1)
        gates = self.vector_gates(atom).reshape(-1, 1, 2, v.shape[-1])
        dipole, extent_vector = (v.unsqueeze(2) * gates).mean(-1).unbind(-1)
        # Σ ρ need not vanish: charges that do not add up to zero would make the dipole depend on the origin.
        moments = torch.cat([charge * rho + dipole, charge, rho, torch.ones_like(charge)], 1)
        total = segment_sum(moments, molecules.batch, n)
        mu = total[:, :3] - total[:, 4:7] * (total[:, 3:4] / total[:, 7:8])
        square = rho.square().sum(-1, keepdim=True)
        extent = 0.1 * extent_charge * square + own_extent + (extent_vector * rho).sum(-1, keepdim=True)
        return {"mu": distance(mu).squeeze(-1), "r2": segment_sum(extent, molecules.batch, n).squeeze(-1)}

    def _pool(self, atom: Tensor, molecules: MoleculeBatch) -> Tensor:
        """Mean over atoms, and heads that choose their atoms; (n_molecules, 2 hidden_dim)."""
        batch, n = molecules.batch, molecules.n_molecules
        weights = torch.exp(5.0 * torch.tanh(0.2 * self.pool_weights(atom)))  # bounded: no maximum to subtract
        values = self.pool_values(atom)
        chosen = values.reshape(values.shape[0], N_HEADS, -1) * weights.unsqueeze(-1)
        ones = torch.ones_like(weights[:, :1])
        summed = segment_sum(torch.cat([chosen.flatten(1), values, weights, ones], 1), batch, n)
        chosen, mean, total, count = torch.split(summed, [values.shape[1], values.shape[1], N_HEADS, 1], 1)
        heads = chosen.reshape(n, N_HEADS, -1) / total.unsqueeze(-1)
        return torch.cat([heads.flatten(1), mean / count], 1)


def _two_layers(in_dim: int, out_dim: int, hidden_dim: int | None = None) -> nn.Sequential:
    hidden_dim = hidden_dim or in_dim
    layers: list[Any] = [nn.Linear(in_dim, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, out_dim)]
    return nn.Sequential(*layers)
