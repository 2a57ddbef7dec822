"""The two types that flow through everything: `Graph` in, `Prediction` out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from egnn_md.shown import html_table


@dataclass(frozen=True, eq=False)
class Graph:
    """One structure, or several side by side, with its neighbour list.

    Lengths in Å. Every pair of neighbours i and j stands once,
    `r_ij = positions[j] - positions[i] + shifts[k] @ cell` (vesin's convention);
    its two edges, one from each end, are what `edge_index` and `edge_vectors` give.

    >>> from ase.build import molecule
    >>> from egnn_md.neighbors import GraphBuilder
    >>> water = molecule("H2O")
    >>> graph = GraphBuilder(5.0)(water.positions, water.numbers, water.cell.array, water.pbc)
    >>> graph.n_atoms, graph.n_pairs, graph.pair_vectors().shape
    (3, 3, torch.Size([3, 3]))
    >>> graph.edge_index.shape, graph.edge_vectors().shape
    (torch.Size([2, 6]), torch.Size([6, 3]))
    >>> Graph.collate([graph, graph]).n_graphs
    2
    """

    positions: Tensor
    """(n_atoms, n_dim) float, Å; n_dim is 3 for molecules, any n for the network."""
    atomic_numbers: Tensor
    """(n_atoms,) int64."""
    pairs: Tensor
    """(2, n_pairs) int64: atoms i and j."""
    shifts: Tensor | None
    """(n_pairs, n_dim) integers as float: cell shifts S. None: all zero (no periodic image)."""
    cell: Tensor
    """(n_graphs, 3, 3) float, Å; rows are the cell vectors (ASE)."""
    pbc: Tensor
    """(n_graphs, 3) bool; all False for molecules."""
    batch: Tensor
    """(n_atoms,) int64: the graph each atom belongs to."""
    charge: Tensor | None = None
    """(n_graphs,) e, NaN where it is not known; None: of none."""

    @property
    def n_atoms(self) -> int:
        return self.positions.shape[0]

    @property
    def n_pairs(self) -> int:
        return self.pairs.shape[1]

    @property
    def n_graphs(self) -> int:
        return self.cell.shape[0]

    def pair_vectors(self) -> Tensor:
        """r_ij, (n_pairs, n_dim), Å, from i to j."""
        first, second = self.pairs
        vectors = self.positions.index_select(0, second) - self.positions.index_select(0, first)
        if self.shifts is None:
            return vectors
        if self.n_graphs == 1:
            return vectors + self.shifts @ self.cell[0]
        cells = self.cell.index_select(0, self.batch.index_select(0, first))
        return vectors + torch.bmm(self.shifts.unsqueeze(1), cells).squeeze(1)

    @property
    def edge_index(self) -> Tensor:
        """(2, 2 n_pairs), centres and neighbours: all pairs, then all of them from the other end."""
        return torch.cat([self.pairs, self.pairs.flip(0)], 1)

    def edge_vectors(self) -> Tensor:
        """From each centre to its neighbour, (2 n_pairs, n_dim), Å, in the order of `edge_index`."""
        vectors = self.pair_vectors()
        return torch.cat([vectors, -vectors])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Graph:
        """The same graph on another device; `dtype` applies to the floating-point fields."""

        def move(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        return Graph(**{field.name: move(getattr(self, field.name)) for field in fields(self)})  # type: ignore[arg-type]

    @staticmethod
    def collate(graphs: Sequence[Graph]) -> Graph:
        """Several graphs side by side as one, in order.

        Raises ValueError if `graphs` is empty.
        """
        if not graphs:
            raise ValueError("cannot collate an empty list of graphs")
        atom_offsets, graph_offsets, n_atoms, n_graphs = [], [], 0, 0
        for graph in graphs:
            atom_offsets.append(n_atoms)
            graph_offsets.append(n_graphs)
            n_atoms, n_graphs = n_atoms + graph.n_atoms, n_graphs + graph.n_graphs
        shifts = None
        if any(graph.shifts is not None for graph in graphs):
            shifts = torch.cat([_dense_shift(graph) for graph in graphs])
        return Graph(
            positions=torch.cat([graph.positions for graph in graphs]),
            atomic_numbers=torch.cat([graph.atomic_numbers for graph in graphs]),
            pairs=torch.cat([graph.pairs + offset for graph, offset in zip(graphs, atom_offsets, strict=True)], 1),
            shifts=shifts,
            cell=torch.cat([graph.cell for graph in graphs]),
            pbc=torch.cat([graph.pbc for graph in graphs]),
            batch=torch.cat([graph.batch + offset for graph, offset in zip(graphs, graph_offsets, strict=True)]),
            charge=_charges(graphs),
        )


def _charges(graphs: Sequence[Graph]) -> Tensor | None:
    if all(graph.charge is None for graph in graphs):
        return None
    unknown = graphs[0].cell.new_full((1,), torch.nan)
    return torch.cat([unknown.expand(g.n_graphs) if g.charge is None else g.charge.to(unknown) for g in graphs])


def _dense_shift(graph: Graph) -> Tensor:
    if graph.shifts is not None:
        return graph.shifts
    return graph.positions.new_zeros(graph.n_pairs, graph.positions.shape[1])


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a potential says of a `Graph`. Energies are float64 whatever the model's precision.

    >>> import egnn_md
    >>> from ase.build import molecule
    >>> from egnn_md.neighbors import GraphBuilder
    >>> model = egnn_md.load("organic-xtb")
    >>> water = molecule("H2O")
    >>> graph = GraphBuilder(model.config.cutoff)(water.positions, water.numbers, water.cell.array, water.pbc)
    >>> prediction = model(graph.to(dtype=model.dtype))
    >>> prediction.energy.shape, prediction.forces.shape
    (torch.Size([1]), torch.Size([3, 3]))
    >>> bool((prediction.extrapolation < 1).all())  # of a kind that it has learned from
    True
    """

    energy: Tensor
    """(n_graphs,) eV, float64."""
    forces: Tensor
    """(n_atoms, 3) eV/Å."""
    stress: Tensor | None
    """(n_graphs, 3, 3) eV/Å³, (1/V) dE/dε, positive under tension (ASE's sign); NaN for graphs without three
    periodic directions, None if not asked for."""
    energies: Tensor
    """(n_atoms,) eV, float64: each atom's share of the energy."""
    extrapolation: Tensor
    """(n_atoms,) ratio to the training data: above 1, the atom's surroundings are unlike what the model learned
    from. NaN where the model carries no statistics."""
    charges: Tensor | None = None
    """(n_atoms,) e, Mulliken's by GFN2-xTB for our models; None of a model without charges."""
    charge: Tensor | None = None
    """(n_graphs,) e: what the charges that make the electrostatics add up to; near a whole number where the model
    knows the structure."""
    shown_charge: Tensor | None = None
    """(n_graphs,) e: the same, of charges that the atoms' surroundings show by themselves."""
    dipole: Tensor | None = None
    """(n_graphs, 3) e·Å about the origin; NaN for periodic structures."""

    def _repr_html_(self) -> str:
        """In a notebook: energy, largest force and extrapolation of all graphs together."""
        largest = self.forces.norm(dim=1).max().item() if len(self.forces) else 0.0
        rows = {
            "energy": ", ".join(f"{energy:.5f}" for energy in self.energy[:8].tolist()) + " eV",
            "largest force on an atom": f"{largest:.4f} eV/Å",
            "largest extrapolation": f"{self.extrapolation.max().item():.2f}" if len(self.extrapolation) else "",
            "atoms": str(len(self.forces)),
        }
        return html_table(rows.items())
