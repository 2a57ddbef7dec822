"""A trajectory of a molecule in water with mdtraj: RMSD, a dihedral's distribution, a radial distribution function.

Made for the output of openmm_ligand_in_water.py; any trajectory with a topology that mdtraj reads will do, also those
of `egnn-md md --format xtc` (their topology is topology.pdb in the run folder).

python examples/mdtraj_analysis.py ligand.dcd ligand.pdb --output analysis.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import matplotlib as mpl
import mdtraj
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trajectory", help="dcd, xtc or h5")
    parser.add_argument("topology", help="pdb")
    parser.add_argument("--output", default="analysis.png")
    options = parser.parse_args(arguments)

    trajectory = mdtraj.load(options.trajectory, top=options.topology)
    ligand = trajectory.topology.select("not water")
    oxygens = trajectory.topology.select("water and element O")
    solute = trajectory.atom_slice(ligand)
    heavy = solute.topology.select("not element H")
    rmsd = 10 * mdtraj.rmsd(solute, solute, 0, atom_indices=heavy)  # Å, superposed
    angles = np.degrees(mdtraj.compute_psi(solute)[1]).ravel()
    panels = 3 if len(oxygens) else 2
    figure, axes = plt.subplots(1, panels, figsize=(4 * panels, 3.5), layout="constrained")
    axes[0].plot(rmsd)
    axes[0].set(xlabel="frame", ylabel="RMSD to the first frame / Å")
    axes[1].hist(angles, bins=np.linspace(-180, 180, 37), density=True)
    axes[1].set(xlabel="ψ / °", ylabel="probability density")
    if len(oxygens):
        polar = trajectory.topology.select("not water and element O")
        pairs = trajectory.topology.select_pairs(polar, oxygens)
        reach = min(1.0, float(trajectory.unitcell_lengths.min()) / 2)
        r, g = mdtraj.compute_rdf(trajectory, pairs, r_range=(0.15, reach), bin_width=0.01)
        axes[2].plot(10 * r, g)
        axes[2].set(xlabel="r / Å", ylabel="g(r), O of the ligand to O of water")
    figure.savefig(options.output, dpi=120)
    plt.close(figure)
    print(f"{trajectory.n_frames} frames, RMSD up to {rmsd.max():.2f} Å, mean ψ {angles.mean():.0f}°; {options.output}")


if __name__ == "__main__":
    main()
