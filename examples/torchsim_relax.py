"""Several molecules relaxed as one batch by TorchSim.

python examples/torchsim_relax.py H2O CH4 CH3CH2OH        # pip install 'egnn-md[torchsim]', Python 3.12 or newer
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch_sim as ts
from ase.build import molecule
from ase.io import write

from egnn_md.calculators.torchsim_model import EGNNModel


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["H2O", "CH4", "CH3CH2OH"], help="names that ase.build knows")
    parser.add_argument("--model", default="organic-xtb", help="a shipped name, or a checkpoint")
    parser.add_argument("--fmax", type=float, default=0.01, help="largest force left, eV/Å")
    parser.add_argument("--steps", type=int, default=500, help="at most")
    parser.add_argument("--output", default="relaxed.extxyz")
    options = parser.parse_args(arguments)

    model = EGNNModel(options.model, compute_stress=False)
    state = ts.optimize(
        system=[molecule(name) for name in options.names],
        model=model,
        optimizer=ts.Optimizer.fire,
        convergence_fn=ts.generate_force_convergence_fn(force_tol=options.fmax, include_cell_forces=False),
        max_steps=options.steps,
    )
    write(options.output, ts.io.state_to_atoms(state))
    for name, energy in zip(options.names, state.energy.tolist(), strict=True):
        print(f"{name}: {energy:.4f} eV")


if __name__ == "__main__":
    main()
