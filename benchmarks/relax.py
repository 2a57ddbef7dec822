"""Do relaxed geometries agree with GFN2-xTB's? Needs tblite.

Each molecule, not trained on, starts from its QM9 geometry rattled by Gaussian noise and is relaxed twice from that
same start, by the model (float64, through ase) and by GFN2-xTB. RMSD over all atoms after Kabsch's superposition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from _common import (
    calculator,
    gfn2,
    make_parser,
    model_elements,
    parse,
    print_table,
    split_fractions,
    untrained_molecules,
    write_json,
)
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ase import Atoms


def kabsch_rmsd(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Root mean square distance (Å) of two (n_atoms, 3) after the best translation and proper rotation."""
    a, b = first - first.mean(0), second - second.mean(0)
    u, _, vt = np.linalg.svd(a.T @ b)
    u[:, -1] *= np.sign(np.linalg.det(u @ vt))  # no reflection: a mirror image is another molecule
    return float(np.sqrt(((a @ u @ vt - b) ** 2).sum(1).mean()))


def relax(atoms: Atoms, engine: Any, fmax: float, max_steps: int) -> tuple[Atoms, int, bool]:
    """A relaxed copy, the steps it took, and whether the largest force fell below `fmax` (eV/Å)."""
    from ase.optimize import BFGS

    relaxed = atoms.copy()
    relaxed.calc = engine
    optimizer = BFGS(relaxed, logfile=None)
    converged = bool(optimizer.run(fmax=fmax, steps=max_steps))
    return relaxed, optimizer.nsteps, converged


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--molecules", type=int, default=50)
    parser.add_argument("--rattle", type=float, default=0.05, help="standard deviation of the start's noise, Å")
    parser.add_argument("--fmax", type=float, default=0.01, help="eV/Å")
    parser.add_argument("--max-steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parse(parser, arguments)
    molecules = untrained_molecules(
        options.data, split_fractions(options.model), model_elements(options.model), options.molecules, options.seed
    )
    rng, ours, rows = np.random.default_rng(options.seed), calculator(options.model, "float64"), []
    for molecule in molecules:
        start = molecule.atoms()
        start.positions += options.rattle * rng.normal(size=start.positions.shape)
        here, our_steps, our_end = relax(start, ours, options.fmax, options.max_steps)
        there, their_steps, their_end = relax(start, gfn2(), options.fmax, options.max_steps)
        distance = kabsch_rmsd(here.positions, there.positions)
        rows.append((molecule.index, len(start), distance, our_steps, their_steps, our_end and their_end))
    print_table(
        f"Relaxed to {options.fmax:g} eV/Å from the QM9 geometry rattled by {options.rattle:g} Å",
        ("gdb", "atoms", "RMSD Å", "steps, model", "steps, GFN2-xTB", "converged"),
        rows,
    )
    distances = np.array([row[2] for row in rows])
    result = {
        "n_molecules": len(rows),
        "median_rmsd": float(np.median(distances)),
        "rmsd_90_percent": float(np.quantile(distances, 0.9)),
        "max_rmsd": float(distances.max()),
        "not_converged": sum(not row[5] for row in rows),
        "gdb": [row[0] for row in rows],
        "rmsd": distances.tolist(),
    }
    print("\nRMSD median {median_rmsd:.4f}, 90 % below {rmsd_90_percent:.4f}, largest {max_rmsd:.4f} Å; "
          "{not_converged} not converged".format_map(result))  # fmt: skip
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
