"""Which of these structures does a committee of models disagree on? Label those next.

A committee is the same training run with several seeds. The standard deviation of its forces tells where they are
not yet determined by the data; the structures with the largest one are written out, most uncertain first.

python examples/committee.py frames.extxyz run-0/best.safetensors run-1/best.safetensors -n 20 -o to_label.extxyz
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.io import read, write

from egnn_md.calculators import EGNNCalculator


def uncertainty(atoms: Atoms, calculator: EGNNCalculator) -> float:
    """The largest standard deviation of a force component, eV/Å."""
    calculator.get_forces(atoms)
    return float(np.max(calculator.results["forces_std"]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", help="structures, in anything ase reads")
    parser.add_argument("models", nargs="+", help="two or more checkpoints")
    parser.add_argument("-n", type=int, default=20, help="how many structures to choose")
    parser.add_argument("-o", "--output", default="to_label.extxyz")
    options = parser.parse_args(arguments)
    if len(options.models) < 2:
        parser.error("a committee needs two or more checkpoints")

    frames = read(options.frames, index=":")
    calculator = EGNNCalculator(options.models)
    spread = np.array([uncertainty(atoms, calculator) for atoms in frames])
    chosen = np.argsort(-spread)[: options.n]
    for i in chosen:
        frames[i].calc = None
        frames[i].info["forces_std_max"] = spread[i]
    write(options.output, [frames[i] for i in chosen])
    print(f"{len(frames)} structures: largest force deviation {np.median(spread):.3f} eV/Å in the median")
    print(f"{len(chosen)} from {spread[chosen[0]]:.3f} down to {spread[chosen[-1]]:.3f} eV/Å in {options.output}")


if __name__ == "__main__":
    main()
