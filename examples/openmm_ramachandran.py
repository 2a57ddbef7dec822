"""Alanine dipeptide in vacuum, and where its backbone has been: a Ramachandran plot.

The minima are few and the barriers low against 500 K; an hour of it says more than the default minute or two.

python examples/openmm_ramachandran.py --picoseconds 20 --temperature 500 --output ramachandran.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import mdtraj
import numpy as np
import openmm
from openmm import app, unit

from egnn_md.calculators import create_system

mpl.use("Agg")
from matplotlib import pyplot as plt

DIPEPTIDE = Path(__file__).with_name("alanine_dipeptide.pdb")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="organic-xtb", help="a shipped name, or a checkpoint")
    parser.add_argument("--picoseconds", type=float, default=20.0)
    parser.add_argument("--temperature", type=float, default=500.0, help="K")
    parser.add_argument("--output", default="ramachandran.png")
    options = parser.parse_args(arguments)

    start = mdtraj.load(str(DIPEPTIDE))
    system = create_system(start.topology, options.model, dtype="float32")  # mdtraj's topologies do too
    integrator = openmm.LangevinMiddleIntegrator(options.temperature, 1 / unit.picosecond, 0.5 * unit.femtosecond)
    simulation = app.Simulation(start.topology.to_openmm(), system, integrator)
    simulation.context.setPositions(start.xyz[0])
    simulation.context.setVelocitiesToTemperature(options.temperature, 1)
    frames = []
    for _ in range(round(options.picoseconds * 2000) // 20):
        simulation.step(20)
        frames.append(simulation.context.getState(positions=True).getPositions(asNumpy=True)._value)

    trajectory = mdtraj.Trajectory(np.array(frames), start.topology)
    phi, psi = (np.degrees(f(trajectory)[1][:, 0]) for f in (mdtraj.compute_phi, mdtraj.compute_psi))
    figure, axis = plt.subplots(figsize=(5, 5), layout="constrained")
    axis.scatter(phi, psi, s=3, c=np.arange(len(phi)), cmap="viridis")
    axis.set(xlim=(-180, 180), ylim=(-180, 180), xlabel="φ / °", ylabel="ψ / °")
    axis.set_title(f"alanine dipeptide, {options.model}, {options.temperature:g} K")
    figure.savefig(options.output, dpi=120)
    plt.close(figure)
    print(f"{len(phi)} frames; mean φ {phi.mean():.0f}°, ψ {psi.mean():.0f}°; {options.output}")


if __name__ == "__main__":
    main()
