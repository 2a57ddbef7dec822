"""PDB files as people have them, read by mdtraj: its topology is that of the trajectories."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from egnn_md.chemistry.elements import MAX_ATOMIC_NUMBER, SYMBOLS
from egnn_md.chemistry.units import ANGSTROM_PER_NM
from egnn_md.data.reading import DataError, lines_of

DECIMALS: Final = 3
"""Of a coordinate in Å; mdtraj hands it over in nm and float32."""
_CHARGE: Final = re.compile(r"(\d)([+-])|([+-])(\d)")


def models(path: Path) -> Iterator[Any]:
    """An `ase.Atoms` of each model; of alternate locations the first, as mdtraj takes them.

    A cell of 1 Å is no cell. Charges of single atoms (columns 79-80) add up to info["charge"]. Raises DataError.
    """
    from ase import Atoms

    trajectory, charge = _load(path), _charge(path)
    atoms_of = list(trajectory.topology.atoms)
    for atom in atoms_of:
        if atom.element is None or not 1 <= atom.element.atomic_number <= MAX_ATOMIC_NUMBER:
            raise DataError(f"{path}: of which element is atom {atom}? Columns 77-78 must say one up to {SYMBOLS[-1]}")
    numbers = [atom.element.atomic_number for atom in atoms_of]
    periodic = trajectory.unitcell_lengths is not None and (trajectory.unitcell_lengths * ANGSTROM_PER_NM > 1.01).all()
    for frame in range(trajectory.n_frames):
        positions = np.round(trajectory.xyz[frame].astype(np.float64) * ANGSTROM_PER_NM, DECIMALS)
        atoms = Atoms(numbers, positions, info={"charge": charge} if charge else {})
        if periodic:
            lengths = np.round(trajectory.unitcell_lengths[frame].astype(np.float64) * ANGSTROM_PER_NM, DECIMALS)
            angles = np.round(trajectory.unitcell_angles[frame].astype(np.float64), 2)
            try:
                atoms.cell = [*lengths, *angles]
            except (AssertionError, ValueError) as error:
                raise DataError(f"{path}: no cell has the lengths {lengths} Å and the angles {angles}") from error
            atoms.pbc = True
        yield atoms


def _load(path: Path) -> Any:
    import mdtraj

    for _ in lines_of(path):  # no line without end
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trajectory = mdtraj.load_pdb(str(path), no_boxchk=True, standard_names=False)
    except Exception as error:  # mdtraj's reader raises whatever its parsing trips on
        raise DataError(f"mdtraj cannot read {path}: {error or type(error).__name__}") from error
    if trajectory.n_frames == 0 or trajectory.n_atoms == 0:
        raise DataError(f"{path} holds no atoms")
    return trajectory


def _charge(path: Path) -> int:
    """Sum over the atoms of the first model, the first of alternate locations."""
    total = 0
    for line in lines_of(path):
        if line.startswith("ENDMDL"):
            break
        match = _CHARGE.fullmatch(line[78:80])
        if match and line.startswith(("ATOM", "HETATM")) and line[16:17] in (" ", "A", "1"):
            size, sign, first_sign, last_size = match.groups()
            total += int(f"{sign or first_sign}{size or last_size}")
    return total
