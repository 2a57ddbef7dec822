"""Relax a molecule, then its harmonic frequencies. Both want float64.

python examples/relax_and_vibrations.py CH3CH2OH --output ethanol.xyz
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from ase.optimize import BFGS
from ase.vibrations import Vibrations

from egnn_md.calculators import EGNNCalculator


def frequencies(atoms: Atoms) -> np.ndarray:
    """All 3N frequencies in 1/cm, sorted; imaginary ones negative. The six rigid motions lie near zero."""
    with tempfile.TemporaryDirectory() as folder:
        vibrations = Vibrations(atoms, name=str(Path(folder) / "vib"))
        vibrations.run()
        modes = vibrations.get_frequencies()
    return np.sort(modes.real - np.abs(modes.imag))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structure", nargs="?", default="CH3CH2OH", help="a file, or a name that ase.build knows")
    parser.add_argument("--model", default="organic-xtb", help="a shipped name, or a checkpoint")
    parser.add_argument("--fmax", type=float, default=1e-3, help="largest force left, eV/Å")
    parser.add_argument("--steps", type=int, default=500, help="of the relaxation, at most")
    parser.add_argument("--output", default="relaxed.xyz")
    options = parser.parse_args(arguments)

    atoms = read(options.structure) if Path(options.structure).exists() else molecule(options.structure)
    atoms.calc = EGNNCalculator(options.model, dtype="float64")
    start = atoms.get_potential_energy()
    optimizer = BFGS(atoms, logfile=None)
    converged = optimizer.run(fmax=options.fmax, steps=options.steps)
    write(options.output, atoms)
    state, change = "relaxed" if converged else "NOT converged", atoms.get_potential_energy() - start
    print(f"{state} after {optimizer.nsteps} steps, {change:+.4f} eV, in {options.output}")
    print("frequencies (1/cm):", " ".join(f"{value:.0f}" for value in frequencies(atoms)))


if __name__ == "__main__":
    main()
