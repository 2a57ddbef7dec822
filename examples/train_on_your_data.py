"""Train a potential on your own structures, and use it.

Replace `label` by your reference method, or skip it and bring a file: anything ase reads that carries energies (eV)
and forces (eV/Å). Stand-in here: ase's EMT, which is quick and no chemistry.

python examples/train_on_your_data.py --output mine-run
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.collections import g2
from ase.io import write

from egnn_md.calculators import EGNNCalculator
from egnn_md.checkpoint import read_header
from egnn_md.training.loop import train

ELEMENTS = set("HCNO")
MOLECULES = [
    name
    for name in g2.names
    if set(g2[name].symbols) <= ELEMENTS and len(g2[name]) > 2 and not g2[name].get_initial_magnetic_moments().any()
]
"""Closed shells: a potential knows no others."""


def label(atoms: Atoms) -> Atoms:
    """The same structure with energy and forces of the reference method."""
    atoms.calc = EMT()
    atoms.calc = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
    return atoms


def make_frames(per_molecule: int) -> list[Atoms]:
    """Labelled displacements of small molecules. `group` keeps frames of one molecule on one side of the split."""
    rng = np.random.default_rng(0)
    frames = []
    for name in MOLECULES:
        for _ in range(per_molecule):
            atoms = g2[name].copy()
            atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
            atoms.info["group"] = name
            frames.append(label(atoms))
    return frames


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(Path(__file__).with_suffix(".toml")))
    parser.add_argument("--frames", type=int, default=20, help="per molecule")
    parser.add_argument("--output", default="mine-run")
    options = parser.parse_args(arguments)

    frames = make_frames(options.frames)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "frames.extxyz", frames)
        model = train(options.config, data_folder=folder, output=options.output)
    errors = read_header(model)["held_out"]["valid"]
    size = 1000 * np.mean([np.abs(atoms.get_forces()).mean() for atoms in frames])
    print(f"{model}: force MAE {errors['force_mae']:.0f} meV/Å on molecules left out; mean force {size:.0f}")

    ethanol = g2["CH3CH2OH"].copy()
    ethanol.calc = EGNNCalculator(model)
    print(f"largest force on ethanol: {np.abs(ethanol.get_forces()).max():.2f} eV/Å")


if __name__ == "__main__":
    main()
