"""`make demo`: 5 ps of aspirin at 300 K through the command line, and what came of it in four lines."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.io import read

ASPIRIN = Path(__file__).with_name("aspirin.xyz")


def bonds(atoms: Atoms) -> set[tuple[int, int]]:
    """Pairs of atoms closer than 1.25 times the sum of their covalent radii."""
    radii = covalent_radii[atoms.numbers]
    close = atoms.get_all_distances() < 1.25 * (radii[:, None] + radii[None, :])
    return {(int(i), int(j)) for i, j in np.argwhere(np.triu(close, k=1))}


def simulate(model: str, steps: int, interval: int, output: Path) -> dict[str, Any]:
    """Run `egnn-md md`; returns its summary. Exits if it fails: it has said why."""
    settings = {
        "--model": model,
        "--ensemble": "nvt",
        "--temperature": "300",
        "--timestep": "1",
        "--steps": str(steps),
        "--interval": str(interval),
        "--seed": "0",
        "--format": "traj",
        "--threads": "1",  # 21 atoms give no work to a second one
        "--output": str(output),
    }
    words = ["md", str(ASPIRIN), *(word for pair in settings.items() for word in pair), "--overwrite", "--json"]
    done = subprocess.run([sys.executable, "-m", "egnn_md.cli", *words], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def report(model: str, summary: dict[str, Any], output: Path) -> list[str]:
    """Four lines on a finished run."""
    frames = read(output / "trajectory.traj", index=":")
    expected = bonds(frames[0])
    intact = sum(bonds(frame) == expected for frame in frames)
    time_ps, seconds, speed = summary["time_ps"], summary["wall_s"], summary["ns_per_day"]
    temperature, signal = summary["mean_temperature_K"], summary["max_extrapolation"]
    unlike = "unknown" if signal is None else f"at most {signal:.2f}"
    return [
        f"{model}: {time_ps:g} ps of aspirin ({len(frames[0])} atoms) in {seconds:.0f} s, {speed:.1f} ns/day",
        f"{temperature:.0f} K in the mean (300 K set); extrapolation {unlike} (up to 1: as the training data)",
        f"the {len(expected)} bonds of the start are those of {intact} of the {len(frames)} frames saved",
        f"open {output}/report.html: it turns and plays (beside it plot.png, log.csv, trajectory.traj)",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="organic-xtb")
    parser.add_argument("--steps", type=int, default=5_000, help="of 1 fs")
    parser.add_argument("--interval", type=int, default=10, help="steps between frames")
    parser.add_argument("--output", type=Path, default=Path("demo"))
    options = parser.parse_args(arguments)
    summary = simulate(options.model, options.steps, options.interval, options.output)
    print("\n".join(report(options.model, summary, options.output)))


if __name__ == "__main__":
    main()
