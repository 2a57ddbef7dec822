"""Molecular dynamics in your own ASE script: the calculator is all you add.

python examples/ase_md.py CH3CH2OH --temperature 300 --picoseconds 2 --output ethanol.traj
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.constraints import FixCom
from ase.io import read
from ase.md.langevin import Langevin

from egnn_md.calculators import EGNNCalculator

TIMESTEP = 0.5  # fs: C-H bonds vibrate with a period of 11 fs


def run(atoms: Atoms, temperature: float, picoseconds: float, output: str) -> list[float]:
    """Langevin dynamics at `temperature` (K); returns the temperature at every tenth step."""
    rng = np.random.default_rng(0)
    atoms.set_constraint(FixCom())
    spread = np.sqrt(units.kB * temperature * atoms.get_masses())[:, None]  # Maxwell-Boltzmann
    atoms.set_momenta(spread * rng.standard_normal((len(atoms), 3)))
    dynamics = Langevin(
        atoms,
        TIMESTEP * units.fs,
        temperature_K=temperature,
        friction=0.01 / units.fs,
        fixcm=False,  # ase's own way of holding the centre of mass is not quite the canonical ensemble
        rng=rng,
        trajectory=output,
    )
    temperatures: list[float] = []
    dynamics.attach(lambda: temperatures.append(atoms.get_temperature()), interval=10)
    dynamics.run(round(picoseconds * 1000 / TIMESTEP))
    return temperatures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structure", nargs="?", default="CH3CH2OH", help="a file, or a name that ase.build knows")
    parser.add_argument("--model", default="organic-xtb", help="a shipped name, or a checkpoint")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--picoseconds", type=float, default=2.0)
    parser.add_argument("--output", default="md.traj")
    options = parser.parse_args(arguments)

    atoms = read(options.structure) if Path(options.structure).exists() else molecule(options.structure)
    atoms.calc = EGNNCalculator(options.model, dtype="float32")
    temperatures = run(atoms, options.temperature, options.picoseconds, options.output)
    later = temperatures[len(temperatures) // 2 :]
    print(f"{atoms.get_chemical_formula()}: {options.picoseconds:g} ps in {options.output}")
    print(f"temperature over the second half: {np.mean(later):.0f} K (asked for {options.temperature:.0f} K)")


if __name__ == "__main__":
    main()
