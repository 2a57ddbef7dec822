"""Charge that the surroundings of atoms do not show.

In a conjugated ion, phenoxide or a protonated quinoline, each atom looks much as in some neutral molecule; what tells
them apart is the number of electrons of the whole. Charges q⁰ that were read from the surroundings then do not add up.
What is missing of the charge Q of the structure,

    δ = Q - Σ_i q⁰_i,

is shared out by a learned softness σ, and costs what learned electronegativities χ and hardnesses η say:

    q_i = q⁰_i + Δ_i,   Δ_i = δ' exp(σ_i) / Σ_j exp(σ_j),   E = Σ_i [ χ_i Δ_i + ½ η_i Δ_i² ]

(Parr, Pearson, J. Am. Chem. Soc. 1983, 105, 7512). Q is the charge that is given or, since closed shells have an even
number of electrons, the nearest to Σ q⁰ that leaves an even number.

δ' is δ, but for a smooth step to nothing where δ is small. So where the surroundings show the charge they alone decide,
and the energies of molecules far apart add up; where they do not, as far as the softness knows whose charge it is.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from egnn_md.nn.ops import gather, segment_sum

SOFTEST: Final = 4.0
"""σ saturates there."""
SCALE: Final = 5.0
"""eV/e and eV/e²: χ and η are in units of it, so that weights are of order one."""


class Window(NamedTuple):
    """Where δ' rises from nothing to δ; steep, so that few structures ought to lie within."""

    shown: float = 0.1
    """e: what may be missing before anything is added,"""
    per_atom: float = 0.003
    """and for each atom of the structure."""
    step: float = 0.2
    """e: so much further on, all of it is added."""


class Totals(NamedTuple):
    """What is known of each structure's charge. One row more than there are structures: code compiled ahead of time
    serves no size 1.
    """

    structure: Tensor
    """Of each atom, (n_atoms,) int64."""
    charge: Tensor
    """e, NaN where it is not given, (n_structures + 1,)."""
    odd: Tensor
    """1 where the nuclei have an odd charge, 0 where an even one, the same shape."""


class ResponseTape(NamedTuple):
    """What the way back needs of the way forward."""

    softness: Tensor
    electronegativity: Tensor
    hardness: Tensor
    shares: Tensor
    """exp(σ_i) / Σ_j exp(σ_j), (n_atoms,)."""
    added: Tensor
    """Δ, (n_atoms,) e."""
    slope: Tensor
    """∂δ'/∂δ of each structure."""


class ChargeResponse(nn.Module):
    """See the top of this module."""

    def __init__(self, hidden_dim: int, window: Window) -> None:
        super().__init__()
        self.window = window
        self.head = nn.Linear(hidden_dim, 3)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor, own: Tensor, totals: Totals) -> tuple[Tensor, ResponseTape]:
        """Features (n_atoms, hidden_dim), the charges q⁰ (n_atoms,) that their surroundings show -> q, (n_atoms,) e."""
        softness, electronegativity, hardness = linear(features, self.head.weight, self.head.bias).unbind(-1)
        softness = SOFTEST * torch.tanh(softness * (1.0 / SOFTEST))
        weights, structure = torch.exp(softness), totals.structure
        sums = segment_sum(torch.stack([own, weights, torch.ones_like(own)], -1), structure, totals.odd.shape[0])
        shown, weight, n_atoms = sums.unbind(-1)
        nearest = 2.0 * torch.round(0.5 * (shown.detach() - totals.odd)) + totals.odd
        missing = torch.where(torch.isnan(totals.charge), nearest, totals.charge) - shown
        shown_enough, per_atom, width = self.window
        t = ((missing.abs() - shown_enough - per_atom * n_atoms) * (1.0 / width)).clamp(0.0, 1.0)
        step = t * t * t * (10.0 - t * (15.0 - 6.0 * t))
        slope = step + missing.abs() * (t * (1.0 - t)).square() * (30.0 / width)
        shares = weights / gather(weight, structure)
        added = shares * gather(missing * step, structure)
        return own + added, ResponseTape(softness, electronegativity, hardness, shares, added, slope)

    def vjp(self, tape: ResponseTape, by_charge: Tensor, totals: Totals) -> tuple[Tensor, Tensor, Tensor]:
        """From ∂E by q, of what else depends on it: E of each atom (n_atoms,) eV, and ∂(E + else) by q⁰ and by the
        features.
        """
        added, structure = tape.added, totals.structure
        energies = SCALE * added * (tape.electronegativity + 0.5 * tape.hardness * added)
        by_added = by_charge + SCALE * (tape.electronegativity + tape.hardness * added)
        by_missing = segment_sum(tape.shares * by_added, structure, totals.odd.shape[0])
        by_own = by_charge - gather(tape.slope * by_missing, structure)
        by_softness = added * (by_added - gather(by_missing, structure))
        by_softness = by_softness * (1.0 - (tape.softness * (1.0 / SOFTEST)).square())
        by_output = torch.stack([by_softness, SCALE * added, (0.5 * SCALE) * added * added], -1)
        return energies, by_own, by_output @ self.head.weight
