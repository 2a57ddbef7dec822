"""Labelled structures: many frames in flat arrays.

Flat ("ragged") arrays keep a hundred thousand molecules in a few arrays, so that a batch is a few numpy calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from egnn_md.chemistry.elements import symbols
from egnn_md.chemistry.structures import NEUTRAL
from egnn_md.data.reading import Array
from egnn_md.data.reading import DataError as DataError


@dataclass(frozen=True)
class Frames:
    """Structures with labels. Per-atom arrays of all frames stand one after another."""

    n_atoms: NDArray[np.int64]
    """(n_frames,)."""
    atomic_numbers: NDArray[np.int64]
    """(total,)."""
    positions: Array
    """(total, 3) Å."""
    energy: NDArray[np.float64]
    """(n_frames,) eV; NaN where unknown."""
    forces: Array | None
    """(total, 3) eV/Å; None if the source has none, NaN in single frames without."""
    cell: NDArray[np.float64]
    """(n_frames, 3, 3) Å, rows are vectors; zero for molecules."""
    pbc: NDArray[np.bool_]
    """(n_frames, 3)."""
    stress: Array | None
    """(n_frames, 3, 3) eV/Å³, NaN where unknown; None if the source has none."""
    group: NDArray[np.str_]
    """(n_frames,): frames of one group are never divided between training and test (a molecule's number, a formula)."""
    tag: NDArray[np.str_]
    """(n_frames,): a free label of how the frame was made, for errors by kind."""
    charge: NDArray[np.float64] | None = None
    """(n_frames,) total charges, e; None: all neutral."""
    multiplicity: NDArray[np.float64] | None = None
    """(n_frames,) of the spin; None: all closed shells."""
    charges: Array | None = None
    """(total,) charges of the atoms, e; NaN where unknown."""
    dipole: Array | None = None
    """(n_frames, 3) dipole moments about the origin, e·Å; NaN where unknown."""
    sources: tuple[str, ...] = field(default=())
    """Files the frames came from, each with the SHA-256 of its bytes: "name sha256"."""

    def __len__(self) -> int:
        return len(self.n_atoms)

    @cached_property
    def frame_of_atom(self) -> NDArray[np.int64]:
        """(total,)."""
        return np.repeat(np.arange(len(self)), self.n_atoms)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(n_frames + 1,): where each frame's atoms begin."""
        return np.concatenate([[0], np.cumsum(self.n_atoms)]).astype(np.int64)

    def atoms_of(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the per-atom arrays that belong to these frames, in their order."""
        return ragged_rows(self.starts[indices], self.n_atoms[indices])

    def select(self, indices: NDArray[np.int64]) -> Frames:
        """The frames with these indices, in this order."""
        rows = self.atoms_of(indices)
        return replace(
            self,
            n_atoms=self.n_atoms[indices],
            atomic_numbers=self.atomic_numbers[rows],
            positions=self.positions[rows],
            energy=self.energy[indices],
            forces=None if self.forces is None else self.forces[rows],
            cell=self.cell[indices],
            pbc=self.pbc[indices],
            stress=None if self.stress is None else self.stress[indices],
            group=self.group[indices],
            tag=self.tag[indices],
            charge=None if self.charge is None else self.charge[indices],
            multiplicity=None if self.multiplicity is None else self.multiplicity[indices],
            charges=None if self.charges is None else self.charges[rows],
            dipole=None if self.dipole is None else self.dipole[indices],
        )

    def check_closed_shells(self, *, ions: bool = False) -> None:
        """Raise DataError if a frame has unpaired electrons or, unless the potential knows `ions`, a charge: without
        such inputs it would learn their energies as if they were those of neutral closed shells.
        """
        charged = np.zeros(len(self)) if self.charge is None else self.charge
        open_shell = np.ones(len(self)) if self.multiplicity is None else self.multiplicity
        allowed = np.isfinite(charged) if ions else np.abs(charged) <= NEUTRAL
        wrong = np.flatnonzero(~allowed | (open_shell != 1))
        if len(wrong):
            knows = "closed shells only" if ions else "neutral closed shells only (model.long_range = true: ions too)"
            raise DataError(
                f"{len(wrong)} of {len(self)} frames are charged or open shells (the first is frame {wrong[0]}: charge "
                f"{charged[wrong[0]]:g}, multiplicity {open_shell[wrong[0]]:g}): this potential knows {knows}; "
                "leave them out (initial magnetic moments that mean nothing: remove them)"
            )

    def composition(self, elements: Sequence[int]) -> NDArray[np.float64]:
        """(n_frames, n_elements): how many atoms of each element a frame has.

        Raises DataError if a frame has another element.
        """
        frame = np.repeat(np.arange(len(self)), self.n_atoms)
        position = np.full(256, -1)
        position[list(elements)] = np.arange(len(elements))
        column = position[self.atomic_numbers]
        if (column < 0).any():
            raise DataError(f"frames hold {symbols(np.unique(self.atomic_numbers[column < 0]))}, not among {elements}")
        counts = np.zeros((len(self), len(elements)))
        np.add.at(counts, (frame, column), 1.0)
        return counts


def ragged_rows(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Concatenation of range(start, start + length) for each pair."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)


def concatenate(parts: Sequence[Frames]) -> Frames:
    """Frames of several sources, one after another."""
    if len(parts) == 1:
        return parts[0]

    def join(name: str, *width: int, by_atom: bool = False) -> Array | None:
        values = [getattr(part, name) for part in parts]
        if all(value is None for value in values):
            return None
        filled = []
        for part, value in zip(parts, values, strict=True):
            shape = (len(part.positions) if by_atom else len(part), *width)
            filled.append(np.full(shape, np.nan, np.float32) if value is None else value)
        return np.concatenate(filled)

    plain = ("n_atoms", "atomic_numbers", "positions", "energy", "cell", "pbc", "group", "tag")
    return Frames(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in plain},
        forces=join("forces", 3, by_atom=True),
        stress=join("stress", 3, 3),
        charge=_per_frame(parts, "charge", 0.0),
        multiplicity=_per_frame(parts, "multiplicity", 1.0),
        charges=join("charges", by_atom=True),
        dipole=join("dipole", 3),
        sources=tuple(source for part in parts for source in part.sources),
    )


def _per_frame(parts: Sequence[Frames], name: str, missing: float) -> Array | None:
    values = [getattr(part, name) for part in parts]
    if all(value is None for value in values):
        return None
    return np.concatenate(
        [np.full(len(part), missing) if value is None else value for part, value in zip(parts, values, strict=True)]
    )
