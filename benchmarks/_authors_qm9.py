"""The QM9 network of Satorras et al. written down the long way, as its public code computes it: to compare with.

Molecules are padded to the largest of a batch, every one of the n² pairs of places is an edge (masked where an atom is
missing or pairs with itself), and the first map of φ_e acts on the concatenation [h_i; h_j; d²] of each edge. Names of
the weights are those of the authors' class EGNN (github.com/vgsatorras/egnn, qm9/models.py), so that its state_dict
loads here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

ELEMENTS = (1, 6, 7, 8, 9)
N_INPUTS = 3 * len(ELEMENTS)


class Padded(NamedTuple):
    """A batch of molecules as the authors' loader makes it."""

    inputs: Tensor
    """(batch * n, 15): one-hot element times (Z/9)^{0, 1, 2}, zero where there is no atom."""
    positions: Tensor
    """(batch * n, 3) Å."""
    edges: tuple[Tensor, Tensor]
    """Both ends of the batch * n² pairs."""
    node_mask: Tensor
    """(batch * n, 1)."""
    edge_mask: Tensor
    """(batch * n², 1)."""
    n: int


def pad(atomic_numbers: list[Tensor], positions: list[Tensor], dtype: torch.dtype = torch.float32) -> Padded:
    """Molecules, each (n_atoms,) and (n_atoms, 3), to one padded batch."""
    batch, n = len(positions), max(map(len, positions))
    numbers = torch.zeros(batch, n, dtype=torch.int64)
    x = torch.zeros(batch, n, 3, dtype=dtype)
    for k, (z, r) in enumerate(zip(atomic_numbers, positions, strict=True)):
        numbers[k, : len(z)], x[k, : len(z)] = z, r.to(dtype)
    one_hot = (numbers.unsqueeze(-1) == torch.tensor(ELEMENTS)).to(dtype)
    powers = (numbers.to(dtype) / 9.0).unsqueeze(-1) ** torch.arange(3)
    inputs = (one_hot.unsqueeze(-1) * powers.unsqueeze(-2)).reshape(batch * n, N_INPUTS)
    present = numbers > 0
    pairs = present.unsqueeze(1) & present.unsqueeze(2) & ~torch.eye(n, dtype=torch.bool)
    place = torch.arange(batch * n).reshape(batch, n)
    row = place.unsqueeze(2).expand(batch, n, n).reshape(-1)
    column = place.unsqueeze(1).expand(batch, n, n).reshape(-1)
    masks = present.reshape(-1, 1).to(dtype), pairs.reshape(-1, 1).to(dtype)
    return Padded(inputs, x.reshape(-1, 3), (row, column), *masks, n)


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.edge_mlp = nn.Sequential(nn.Linear(2 * width + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.node_mlp = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
        self.att_mlp = nn.Sequential(nn.Linear(width, 1), nn.Sigmoid())

    def forward(self, h: Tensor, molecules: Padded) -> Tensor:
        row, column = molecules.edges
        difference = molecules.positions[row] - molecules.positions[column]
        squared = (difference**2).sum(1, keepdim=True)
        messages = self.edge_mlp(torch.cat([h[row], h[column], squared], 1))
        messages = messages * self.att_mlp(messages) * molecules.edge_mask
        index = row.unsqueeze(-1).expand(-1, messages.shape[1])
        summed = torch.zeros(len(h), messages.shape[1], dtype=h.dtype).scatter_add(0, index, messages)
        return h + self.node_mlp(torch.cat([h, summed], 1))


class LiteralEGNN(nn.Module):
    """`Padded` -> (batch, n_outputs); the authors have one output."""

    def __init__(self, width: int = 128, n_layers: int = 7, n_outputs: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Linear(N_INPUTS, width)
        self.n_layers = n_layers
        for k in range(n_layers):
            self.add_module(f"gcl_{k}", _Layer(width))
        self.node_dec = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.graph_dec = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, n_outputs))

    def forward(self, molecules: Padded) -> Tensor:
        h = self.embedding(molecules.inputs)
        for k in range(self.n_layers):
            h = self.get_submodule(f"gcl_{k}")(h, molecules)
        h = self.node_dec(h) * molecules.node_mask
        out: Tensor = self.graph_dec(h.reshape(-1, molecules.n, h.shape[-1]).sum(1))
        return out
