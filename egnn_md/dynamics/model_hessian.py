"""A guess of molecules' Hessians, from nothing but their geometry: where quasi-Newton begins.

Springs along bonds, at angles between bonds and about bonds (Lindh, Bernhardsson, Karlström, Malmqvist, Chem. Phys.
Lett. 241, 423 (1995), with bonds of `BOUND` in place of all pairs). The numbers are a least-squares fit to the Hessians
of 80 QM9 molecules with organic-xtb. Lengths in Å, energies in eV.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from egnn_md.chemistry.elements import BOUND

STRETCH, STRETCH_DECAY = 27.0, 6.5
"""eV/Å², of a bond as long as the sum of its covalent radii; and how fast it falls with the length over that sum."""
BEND: Final = 2.6
"""eV/rad²."""
TWIST, TWIST_DECAY = 1.0, 6.0
"""eV/rad² for all torsions about a bond together."""
FLOOR: Final = 0.5
"""eV/Å², added for all that no spring holds."""
NO_BOND: Final = 0.05
"""Å; atoms as near as this have no direction."""
SHORTEST_BOND: Final = 0.75
"""Over the sum of covalent radii: shorter ones are as stiff."""
LEAST_SINE: Final = 0.3
"""Angles nearer to 180° (0°) have no good derivative: theirs is damped."""
MOST_TORSIONS: Final = 9
"""About one bond. Those of more, in metals, are left out."""


def model_hessian(vectors: Tensor, radii: Tensor, there: Tensor) -> Tensor:
    """(n_rows, 3 n, 3 n) eV/Å², positive definite, of molecules padded to n atoms.

    vectors: x_i - x_j (n_rows, n, n, 3), Å, of the nearest images; radii (n_rows, n) covalent, Å; there (n_rows, n):
    false for padding, whose part is `FLOOR` times the unit matrix.
    """
    n_rows, n = radii.shape
    distances, sums = vectors.norm(dim=3), radii[:, :, None] + radii[:, None]
    bonded = (distances > NO_BOND) & (distances < BOUND * sums) & there[:, :, None] & there[:, None]
    unit = vectors / distances.clamp(min=1e-9)[..., None]
    stretched = (distances / sums.clamp(min=1e-9)).clamp(min=SHORTEST_BOND) - 1.0
    hessian = torch.zeros(n_rows, n, 3, n, 3, dtype=vectors.dtype)
    rows, i, j = bonded.triu(1).nonzero(as_tuple=True)
    stiffness = STRETCH * torch.exp(-STRETCH_DECAY * stretched[rows, i, j])
    along = unit[rows, i, j]
    _add(hessian, stiffness, rows, (i, j), (along, -along))
    _add_bends(hessian, bonded, unit, distances)
    _add_torsions(hessian, bonded, vectors, stretched, (rows, i, j))
    hessian = hessian.reshape(n_rows, 3 * n, 3 * n)
    hessian.diagonal(dim1=1, dim2=2).add_(FLOOR)
    return hessian


def _add_bends(hessian: Tensor, bonded: Tensor, unit: Tensor, distances: Tensor) -> None:
    """Angles i-j-k."""
    once = torch.ones(bonded.shape[1:], dtype=torch.bool).triu(1)
    rows, j, i, k = (bonded[:, :, :, None] & bonded[:, :, None] & once).nonzero(as_tuple=True)
    first, second = unit[rows, i, j], unit[rows, k, j]
    cosine = (first * second).sum(1, keepdim=True)
    sine = (1.0 - cosine**2).clamp(min=LEAST_SINE**2).sqrt()
    of_i = (cosine * first - second) / (distances[rows, i, j][:, None] * sine)
    of_k = (cosine * second - first) / (distances[rows, k, j][:, None] * sine)
    _add(hessian, torch.full_like(distances[rows, i, j], BEND), rows, (i, j, k), (of_i, -of_i - of_k, of_k))


def _add_torsions(
    hessian: Tensor, bonded: Tensor, vectors: Tensor, stretched: Tensor, bonds: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Torsions i-j-k-l, those about one bond j-k as stiff as one."""
    n = bonded.shape[1]
    rows, j, k = bonds
    itself = torch.eye(n, dtype=torch.bool)
    ends = (bonded[rows, j] & ~itself[k])[:, :, None] & (bonded[rows, k] & ~itself[j])[:, None] & ~itself
    count = ends.sum((1, 2))
    bond, i, last = (ends & (count <= MOST_TORSIONS)[:, None, None]).nonzero(as_tuple=True)
    stiffness = TWIST * torch.exp(-TWIST_DECAY * stretched[rows, j, k]) / count
    rows, j, k = rows[bond], j[bond], k[bond]
    a, b, c = vectors[rows, j, i], vectors[rows, k, j], vectors[rows, last, k]
    length = b.norm(dim=1, keepdim=True)
    of_i, of_l = -length * _over_square(a, b), length * _over_square(b, c)
    p, q = ((side * b).sum(1, keepdim=True) / length**2 for side in (a, c))
    of_j, of_k = -(1.0 + p) * of_i + q * of_l, p * of_i - (1.0 + q) * of_l
    _add(hessian, stiffness[bond], rows, (i, j, k, last), (of_i, of_j, of_k, of_l))


def _over_square(a: Tensor, b: Tensor) -> Tensor:
    """a × b over its square, damped where a and b are parallel."""
    normal: Tensor = torch.linalg.cross(a, b)
    least = LEAST_SINE**2 * (a * a).sum(1) * (b * b).sum(1)
    damped: Tensor = normal / torch.maximum((normal * normal).sum(1), least)[:, None]
    return damped


def _add(
    hessian: Tensor, stiffness: Tensor, rows: Tensor, atoms: Sequence[Tensor], gradients: Sequence[Tensor]
) -> None:
    """k g ⊗ g of each coordinate with stiffness k and gradient g by `atoms`: all (n_coordinates, ...)."""
    n, size = hessian.shape[1], 3 * len(atoms)
    components = 3 * torch.stack(list(atoms), 1)[:, :, None] + torch.arange(3)
    places, values = components.reshape(-1, size), torch.stack(list(gradients), 1).reshape(-1, size)
    where = rows[:, None, None] * (3 * n) ** 2 + places[:, :, None] * (3 * n) + places[:, None]
    what = stiffness[:, None, None] * values[:, :, None] * values[:, None]
    hessian.view(-1).index_add_(0, where.reshape(-1), what.reshape(-1))
