"""Neighbour lists: all pairs for small molecules, vesin for the rest, and a Verlet skin around both.

Every pair of atoms stands once: r_ij = r_j - r_i + S @ cell, S the integer cell shift, i < j, or i = j and the first
number of S that is not zero is positive. Lengths in Å.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import vesin
from numpy.typing import NDArray
from torch import Tensor

from egnn_md.chemistry.elements import CLOSEST_PAIR

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

BRUTE_FORCE_ATOMS = 64
"""Below this, an isolated structure's distances all at once are faster than a cell list."""
ALL_PAIRS_ATOMS = 32
"""Up to this many atoms an isolated molecule keeps every pair and never needs a new list."""
LARGEST_COORDINATE = 1e8
"""Å."""
LONGEST_CELL = 1e4
"""Cutoffs: longer cells crash vesin."""
MOST_IMAGES = 200
"""Of a cell within a cutoff, in one direction."""
MOST_BOXES = 1e5
"""Into which vesin divides a cell, each about a cutoff wide."""
MOST_SEARCHES = 1e7
"""Of boxes, each with all that a cutoff reaches, images included: a microsecond each; a million atoms need 3e6."""
MOST_NEIGHBORS = 1e5
"""Of an atom, ..."""
MOST_PAIRS = 2e8
"""... and of all, counted from both ends: some 10 GB."""
DEFAULT_SKIN = 0.7
"""Å."""


def neighbor_list(
    positions: FloatArray, cell: FloatArray, pbc: BoolArray, cutoff: float
) -> tuple[IntArray, IntArray | None]:
    """All pairs closer than `cutoff`, periodic images included.

    positions (n_atoms, 3) and cell (3, 3, rows are vectors) in Å, pbc (3,) -> atoms i and j of each pair (2, n_pairs)
    and shifts S (n_pairs, 3), None if nothing is periodic. Cells may be triclinic, periodic in some directions only,
    and smaller than the cutoff. Raises ValueError for NaN positions and for a periodic direction without a cell vector.
    """
    pairs, shifts, _ = _pairs(positions, cell, pbc, cutoff)
    return pairs, shifts


def _pairs(
    positions: FloatArray, cell: FloatArray, pbc: BoolArray, cutoff: float
) -> tuple[IntArray, IntArray | None, FloatArray]:
    """As `neighbor_list`, with the distance of each pair (n_pairs,), Å."""
    if not np.isfinite(positions).all():
        atom = int(np.flatnonzero(~np.isfinite(positions).all(1))[0])
        raise ValueError(f"the position of atom {atom} (counted from 0) is NaN or infinite")
    if not pbc.any():
        if len(positions) <= BRUTE_FORCE_ATOMS:
            squared = ((positions[:, None] - positions) ** 2).sum(-1)
            index = np.stack(np.nonzero(np.triu(squared < cutoff**2, 1)))
            return index, None, np.sqrt(squared[index[0], index[1]])
        bounded_box(positions, np.eye(3), pbc, cutoff)
        i, j, distances = _vesin(cutoff).compute(positions, np.zeros((3, 3)), False, "ijd")
        first, second = np.minimum(i, j).astype(np.int64), np.maximum(i, j).astype(np.int64)
        order = np.lexsort((second, first))
        return np.stack([first, second])[:, order], None, distances[order]
    box = bounded_box(positions, complete_cell(cell, pbc), pbc, cutoff)
    i, j, shifts, distances = _vesin(cutoff).compute(positions, box, pbc, "ijSd")
    i, j, shifts = i.astype(np.int64), j.astype(np.int64), shifts.astype(np.int64)
    leading = np.take_along_axis(shifts, (shifts != 0).argmax(1)[:, None], 1)[:, 0]
    turned = (i > j) | ((i == j) & (leading < 0))  # vesin names the atoms of a pair in any order
    index = np.where(turned, np.stack([j, i]), np.stack([i, j]))
    shifts = np.where(turned[:, None], -shifts, shifts)
    order = np.lexsort((*shifts.T, *index[::-1]))
    return index[:, order], shifts[order], distances[order]


def _vesin(cutoff: float) -> vesin.NeighborList:
    return vesin.NeighborList(cutoff=cutoff, full_list=False, sorted=False, n_threads=1)


def bounded_box(positions: FloatArray, box: FloatArray, pbc: BoolArray, cutoff: float) -> FloatArray:
    """A cell that the native code can take: `box` with its non-periodic vectors as long as the atoms reach.

    Raises ValueError for what makes it crash, hang or fill the memory: atoms or cells of no size that matter has, more
    pairs than `MOST_PAIRS`, by the mean density, and more searches than `MOST_SEARCHES`.
    """
    if not (np.abs(positions) <= LARGEST_COORDINATE).all():
        atom = int(np.abs(positions).max(1).argmax())
        raise ValueError(f"the position of atom {atom} (counted from 0) is {positions[atom]} Å: it has run away")
    reach = np.ptp(positions @ np.linalg.inv(box), axis=0) if len(positions) else np.zeros(3)
    box = np.where(pbc[:, None], box, box * np.maximum(reach, 2.0 * cutoff)[:, None])
    volume = abs(float(np.linalg.det(box)))
    heights = volume / np.linalg.norm(np.cross(box[[1, 2, 0]], box[[2, 0, 1]]), axis=1)
    if pbc.any() and heights.max() > LONGEST_CELL * cutoff:
        raise ValueError(
            f"cell and atoms reach over {heights.max():.3g} Å: the simulation has run away, or lengths are not in Å"
        )
    n_atoms = len(positions)
    per_atom = n_atoms * 4.19 * cutoff**3 / volume
    thin = pbc.any() and heights[pbc].min() * MOST_IMAGES < cutoff
    boxes = min(float(np.maximum(heights / cutoff, 1.0).prod()), MOST_BOXES)
    searches = boxes * float((2.0 * np.ceil(cutoff / np.minimum(heights, cutoff)) + 1.0).prod())
    if thin or searches > MOST_SEARCHES or per_atom > MOST_NEIGHBORS or n_atoms * per_atom > MOST_PAIRS:
        raise ValueError(
            f"{n_atoms} atoms in {volume:.3g} Å³ have {per_atom:.3g} neighbours each within {cutoff:g} Å: the cell has "
            "collapsed, or lengths are not in Å"
        )
    return box


def complete_cell(cell: FloatArray, pbc: BoolArray) -> FloatArray:
    """`cell` with its non-periodic vectors replaced by unit vectors normal to the periodic ones.

    Raises ValueError if a periodic direction has no cell vector or the periodic vectors are linearly dependent.
    """
    box = np.where(pbc[:, None], cell, 0.0)
    if not np.isfinite(box).all():
        raise ValueError(f"the cell {cell.tolist()} holds NaN or infinite values")
    for axis in np.flatnonzero(~pbc):
        periodic = box[np.linalg.norm(box, axis=1) > 0]
        box[axis] = np.linalg.svd(periodic)[2][-1] if len(periodic) else np.eye(3)[axis]
    lengths = np.linalg.norm(box, axis=1)
    if (lengths[pbc] < 1e-6).any() or abs(np.linalg.det(box / np.maximum(lengths, 1e-6)[:, None])) < 1e-6:
        raise ValueError(
            f"periodic in directions {pbc.tolist()}, but the cell {cell.tolist()} has no volume there: "
            "set the cell, or pbc=False"
        )
    return box


class VerletList:
    """A neighbour list with a skin, rebuilt only when it could have become wrong.

    The list holds all pairs closer than cutoff + skin. Let the cell have changed from H0 to H = H0 F since, and write
    each position as x_k = x0_k F + u_k + w_k H + c, with whole numbers w_k (atom k was wrapped) and one c (all moved
    together). A vector r0 of the list is then r = r0 F + u_j - u_i with the shift S + w_i - w_j, so that
    |r| >= σ |r0| - 2 max|u|, σ the smallest singular value of F. Nothing outside the list has come closer than the
    cutoff while

        2 max|u| <= σ (cutoff + skin) - cutoff,

    and no two atoms have come closer than `closest` while 2 max|u| <= σ min|r0| - closest. Both are true whatever
    numbers w_k and c are taken: a poor choice only means an early rebuild. New numbers of atoms or other periodic
    directions make a new list; reordered atoms are atoms that have moved. Elements play no part. `closest` 0 allows
    any distance.
    """

    def __init__(
        self,
        cutoff: float,
        skin: float = DEFAULT_SKIN,
        *,
        closest: float = CLOSEST_PAIR,
        device: torch.device | str = "cpu",
    ) -> None:
        if not (0 < cutoff < math.inf and 0 <= skin < math.inf):
            raise ValueError(f"cutoff must be positive and skin not negative, not {cutoff} and {skin} Å")
        self.cutoff = cutoff
        self.skin = skin
        self.closest = closest
        self.device = torch.device(device)
        self.n_builds = 0
        self._list: _Pairs | None = None
        self._reference: _Reference | None = None

    def update(self, positions: FloatArray, cell: FloatArray, pbc: BoolArray) -> tuple[Tensor, Tensor | None]:
        """Pairs (2, n_pairs) int64 and shifts (n_pairs, 3) float64 or None, complete for these positions.

        The same tensors come back as long as the list holds; after wrapping, the same pairs with new shifts.
        Arguments as `neighbor_list`. Raises ValueError as it does, and for atoms closer than `closest`, naming them.
        """
        pairs, reference = self._list, self._reference
        if pairs is None or reference is None or not reference.fits(len(positions), pbc):
            pairs = self._build(positions, cell, pbc)
        elif not reference.holds(positions, cell):
            wraps = reference.follow(positions)
            if wraps is None:
                pairs = self._build(positions, cell, pbc)
            else:
                pairs.wrap(wraps)
        return pairs.index, pairs.shift

    def _build(self, positions: FloatArray, cell: FloatArray, pbc: BoolArray) -> _Pairs:
        all_pairs = len(positions) <= ALL_PAIRS_ATOMS and not pbc.any()
        kept = self._list if all_pairs and self._reference and self._reference.fits(len(positions), pbc) else None
        self._list = self._reference = None  # an error below must not leave an old list behind
        reach = math.inf if all_pairs else self.cutoff + self.skin
        index, shift, distances = _pairs(positions, cell, pbc, reach)
        nearest = float(distances.min(initial=math.inf))
        if nearest < self.closest:
            i, j = index[:, int(distances.argmin())]
            whom = f"atoms {i} and {j}" if i != j else f"atom {i} and its own periodic image"
            raise ValueError(
                f"{whom} (counted from 0) are {nearest:.3f} Å apart, closer than {self.closest} Å: "
                "not a structure that a potential can describe"
            )
        if kept is None:
            kept = _Pairs(index, shift, self.device)
            self.n_builds += 1
        self._list = kept
        completeness = None if all_pairs else (self.cutoff, reach)
        self._reference = _Reference(positions, cell, pbc, completeness, nearest, self.closest)
        return kept


class _Pairs:
    """The list as tensors."""

    def __init__(self, index: IntArray, shift: IntArray | None, device: torch.device) -> None:
        self.index = torch.from_numpy(np.ascontiguousarray(index)).to(device)
        self.shift = None if shift is None else torch.from_numpy(shift).to(device, torch.float64)

    def wrap(self, wraps: FloatArray) -> None:
        """Atoms have moved by `wraps` (n_atoms, 3) cell vectors: the same pairs, S + w_i - w_j."""
        if self.shift is not None and wraps.any():
            moved = torch.from_numpy(wraps).to(self.shift.device)
            self.shift = self.shift + moved.index_select(0, self.index[0]) - moved.index_select(0, self.index[1])


class _Reference:
    """Where atoms and cell were when the list was made, and how far they may go."""

    def __init__(
        self,
        positions: FloatArray,
        cell: FloatArray,
        pbc: BoolArray,
        completeness: tuple[float, float] | None,
        nearest: float,
        closest: float,
    ) -> None:
        self.completeness, self.nearest, self.closest = completeness, nearest, closest
        self.n_atoms = len(positions)
        self.pbc_bytes = pbc.tobytes()
        self.periodic = bool(pbc.any())
        self.mask = pbc[:, None].copy()
        self.box = self.box_now = np.where(self.mask, cell, 0.0)
        self.inverse = np.linalg.pinv(self.box)
        self.cell_bytes = cell.tobytes()
        self.deformation = np.eye(3)
        self.origin = self.expected = positions.copy()
        """x0 and x0 F (+ wraps, + c), (n_atoms, 3)."""
        self.limit = self._limit(1.0)

    def _limit(self, stretch: float) -> float:
        """Largest allowed |u|², Å²; negative if the list cannot hold."""
        slack = stretch * self.nearest - self.closest if self.closest > 0 else math.inf
        if self.completeness is not None:
            cutoff, reach = self.completeness
            slack = min(slack, stretch * reach - cutoff)
        return (0.5 * min(slack, 1e6)) ** 2 if slack >= 0 else -1.0  # finite, so that infinity never passes

    def fits(self, n_atoms: int, pbc: BoolArray) -> bool:
        return n_atoms == self.n_atoms and pbc.tobytes() == self.pbc_bytes

    def holds(self, positions: FloatArray, cell: FloatArray) -> bool:
        """Whether the list is right as it stands. The hot path; NaN answers no."""
        if self.periodic and cell.tobytes() != self.cell_bytes:
            self._deform(cell)
        moved = positions - self.expected
        if np.vdot(moved, moved) <= self.limit:  # Σ|u|² bounds max|u|²
            return True
        return bool(np.einsum("ij,ij->i", moved, moved).max() <= self.limit)

    def _deform(self, cell: FloatArray) -> None:
        self.cell_bytes = cell.tobytes()
        self.box_now = np.where(self.mask, cell, 0.0)
        if not np.isfinite(self.box_now).all():
            self.limit = -1.0
            return
        # F = 1 + B0⁺ (B - B0): maps the periodic vectors, leaves what is normal to them alone.
        self.deformation = np.eye(3) + self.inverse @ (self.box_now - self.box)
        self.limit = self._limit(float(np.linalg.svd(self.deformation, compute_uv=False)[-1]))
        self.expected = self.origin @ self.deformation

    def follow(self, positions: FloatArray) -> FloatArray | None:
        """Take up wrapped atoms and a common translation: w (n_atoms, 3), or None if the list does not hold."""
        if self.limit < 0:
            return None
        moved = positions - self.expected
        if not np.isfinite(moved).all():
            return None
        moved -= moved[0].copy()
        wraps: FloatArray = np.zeros_like(moved)
        if self.periodic:
            wraps = np.rint(moved @ np.linalg.pinv(self.box_now))
            moved -= wraps @ self.box_now
        moved -= moved.mean(0)
        if not np.einsum("ij,ij->i", moved, moved).max() <= self.limit:
            return None
        self.expected = positions - moved
        self.origin = np.asarray(np.linalg.solve(self.deformation.T, self.expected.T).T, np.float64)
        return wraps
