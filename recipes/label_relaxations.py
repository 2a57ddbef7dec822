"""Relax molecules with GFN2-xTB and keep frames of the way down, so that a potential learns where minima lie.

    python recipes/label_relaxations.py --qm9 qm9.npz -o relaxations.npz      (25 minutes on one core; needs tblite)

Molecular dynamics puts a kT into every stiff bond, so that its frames say little about the soft torsions that decide
where a minimum is. A relaxation relaxes the stiff coordinates first: its later frames differ in the soft ones alone.
Each molecule starts from its QM9 geometry with Gaussian noise; kept are the frames after 6, 12 and 20 steps of BFGS and
the end. One process per core, each with its own --seed. The output has the layout of the shared ragged npz (tag "N";
molecules that others evaluate on are left out).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from ase.optimize import BFGS
from label_collisions import Frame, Molecule, fluorinate, read_qm9, write_frames
from numpy.typing import NDArray
from rich.progress import track
from tblite.ase import TBLite

KEPT_STEPS = (6, 12, 20)
FMAX = 0.02  # eV/Å
MAX_STEPS = 60
MAX_MOVE = 0.15  # Å, of one atom in one step


def way_down(molecule: Molecule) -> list[tuple[NDArray[np.float64], float, NDArray[np.float64]]]:
    """Positions, energy and forces of the kept frames of a BFGS relaxation; the last is the end."""
    atoms, kept = Atoms(*molecule, calculator=TBLite(method="GFN2-xTB", verbosity=0)), []
    optimizer = BFGS(atoms, logfile=None, maxstep=MAX_MOVE)
    for down in optimizer.irun(fmax=FMAX, steps=MAX_STEPS):
        if optimizer.nsteps and (down or optimizer.nsteps in (*KEPT_STEPS, MAX_STEPS)):
            kept.append((atoms.positions.copy(), float(atoms.get_potential_energy()), atoms.get_forces()))
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qm9", type=Path, required=True, help="npz with n_atoms, atomic_numbers, positions, index")
    parser.add_argument("-o", "--output", type=Path, default=Path("relaxations.npz"))
    parser.add_argument("--molecules", type=int, default=6000)
    parser.add_argument("--noise", type=float, default=0.1, help="largest standard deviation of the start's noise, Å")
    parser.add_argument("--seed", type=int, default=2)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    qm9 = read_qm9(options.qm9)
    pool = rng.permutation(np.flatnonzero(qm9.index % 20 != 7))
    frames: list[Frame] = []
    for row in track(pool[: options.molecules], description="GFN2-xTB relaxations"):
        numbers, positions = molecule = qm9.molecule(row)
        if rng.random() < 0.1:
            numbers, positions = molecule = fluorinate(molecule, rng)
        noise = rng.uniform(0.0, options.noise) * rng.normal(size=positions.shape)
        try:
            kept = way_down((numbers, positions + noise))
        except CalculationFailed:  # the self-consistent charges did not converge
            continue
        frames += [Frame(int(qm9.index[row]), numbers, *frame) for frame in kept]
    write_frames(options.output, frames, "N")


if __name__ == "__main__":
    main()
