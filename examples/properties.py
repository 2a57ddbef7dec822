"""From a structure to its properties: build a molecule, relax it with the shipped potential, predict.

    python properties.py CH3CONH2

The properties belong to minima: a rough structure is relaxed first. `organic-xtb` imitates GFN2-xTB, whose minima are
not those of QM9 (B3LYP); `qm9` has learned from both, and its card says what the difference costs. The last line says
how unlike its training data the model finds the geometry.
"""

from __future__ import annotations

import sys

from ase.build import molecule
from ase.optimize import BFGS

import egnn_md
from egnn_md.calculators import EGNNCalculator
from egnn_md.chemistry.targets import BY_NAME


def main(name: str = "CH3CONH2") -> None:
    atoms = molecule(name)
    atoms.calc = EGNNCalculator("organic-xtb")
    BFGS(atoms, logfile=None).run(fmax=0.01, steps=500)

    properties = egnn_md.load("qm9").predict(atoms, uncertainty=True)
    for target, about in BY_NAME.items():
        print(f"{target:5s} {properties[target]:12.4g} ± {properties[f'{target}_uncertainty']:.2g} {about.unit}")
    print(f"extrapolation {properties['extrapolation']:.2f} (above 1.5: unlike the molecules the model knows)")


if __name__ == "__main__":
    main(*sys.argv[1:])
