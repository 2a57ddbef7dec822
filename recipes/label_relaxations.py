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
from label_collisions import Frame, Molecule, fluorinate, read_qm9, write_frames
from numpy.typing import NDArray
from rich.progress import track
from tblite.interface import Calculator, Result

from egnn_md.chemistry.units import ANGSTROM_PER_BOHR, EV_PER_HARTREE

KEPT_STEPS = (6, 12, 20)
FMAX = 0.02  # eV/Å
MAX_STEPS = 60
MAX_MOVE = 0.15  # Å, of one atom in one step


class Surface:
    """GFN2-xTB for one molecule; each call starts from the charges of the last."""

    def __init__(self, molecule: Molecule) -> None:
        numbers, positions = molecule
        self.engine = Calculator("GFN2-xTB", numbers, positions / ANGSTROM_PER_BOHR)
        self.engine.set("verbosity", 0)
        self.result: Result | None = None

    def __call__(self, positions: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """(n_atoms, 3) Å -> eV, eV/Å."""
        self.engine.update(positions / ANGSTROM_PER_BOHR)
        self.result = self.engine.singlepoint(self.result)
        energy, gradient = self.result.get("energy"), self.result.get("gradient")
        return float(energy) * EV_PER_HARTREE, -gradient * EV_PER_HARTREE / ANGSTROM_PER_BOHR


def way_down(molecule: Molecule) -> list[tuple[NDArray[np.float64], float, NDArray[np.float64]]]:
    """Positions, energy and forces of the kept frames of a BFGS relaxation; the last is the end."""
    surface, positions = Surface(molecule), molecule[1]
    energy, forces = surface(positions)
    hessian = 70.0 * np.eye(positions.size)  # eV/Å², as ase's BFGS starts
    kept = []
    for step in range(1, MAX_STEPS + 1):
        curvatures, axes = np.linalg.eigh(hessian)
        move = (axes @ ((forces.ravel() @ axes) / np.abs(curvatures))).reshape(-1, 3)
        move *= min(1.0, MAX_MOVE / np.linalg.norm(move, axis=1).max())
        positions, before = positions + move, forces
        energy, forces = surface(positions)
        flat, change, bent = move.ravel(), (before - forces).ravel(), hessian @ move.ravel()
        hessian += np.outer(change, change) / (flat @ change) - np.outer(bent, bent) / (flat @ bent)
        down = np.linalg.norm(forces, axis=1).max() < FMAX
        if down or step in KEPT_STEPS or step == MAX_STEPS:
            kept.append((positions, energy, forces))
        if down:
            break
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
        except RuntimeError:  # the self-consistent charges did not converge
            continue
        frames += [Frame(int(qm9.index[row]), numbers, *frame) for frame in kept]
    write_frames(options.output, frames, "N")


if __name__ == "__main__":
    main()
