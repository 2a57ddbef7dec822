"""Do harmonic frequencies agree with GFN2-xTB's? Needs tblite.

Each molecule, not trained on, is relaxed to its own minimum by the model (float64) and by GFN2-xTB; Hessians by central
differences of the forces; translations and rotations projected out; the 3N-6 sorted frequencies compared one by one.
"""

from __future__ import annotations

import math
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
from relax import relax

from egnn_md.chemistry.units import FS_PER_TIME_UNIT

if TYPE_CHECKING:
    from ase import Atoms

FloatArray = NDArray[np.float64]
LIGHT_CM_PER_FS = 2.99792458e-5


def hessian(atoms: Atoms, displacement: float) -> FloatArray:
    """Symmetrised second derivatives of the energy, (3 n_atoms, 3 n_atoms) eV/Å², by central differences (Å)."""
    shifted, columns = atoms.copy(), []
    shifted.calc = atoms.calc
    for row in range(3 * len(atoms)):
        forces = []
        for sign in (1.0, -1.0):
            shifted.positions = atoms.positions
            shifted.positions[divmod(row, 3)] += sign * displacement
            forces.append(shifted.get_forces().ravel())
        columns.append((forces[1] - forces[0]) / (2.0 * displacement))
    matrix = np.array(columns)
    symmetric: FloatArray = 0.5 * (matrix + matrix.T)
    return symmetric


def frequencies(atoms: Atoms, displacement: float) -> FloatArray:
    """Sorted harmonic frequencies in cm⁻¹ without translations and rotations; imaginary ones are negative."""
    root = np.sqrt(np.repeat(atoms.get_masses(), 3))
    offsets = atoms.positions - atoms.get_center_of_mass()
    rigid = [np.tile(axis, len(atoms)) for axis in np.eye(3)]
    rigid += [np.cross(axis, offsets).ravel() for axis in np.eye(3)]
    u, sizes, _ = np.linalg.svd((np.array(rigid) * root).T, full_matrices=True)
    rank = int((sizes > 1e-6 * sizes[0]).sum())  # 5 for linear molecules
    internal = u[:, rank:]
    eigenvalues = np.linalg.eigvalsh(internal.T @ (hessian(atoms, displacement) / np.outer(root, root)) @ internal)
    angular = np.sign(eigenvalues) * np.sqrt(np.abs(eigenvalues)) / FS_PER_TIME_UNIT  # rad/fs
    wavenumbers: FloatArray = angular / (2.0 * math.pi * LIGHT_CM_PER_FS)
    return wavenumbers


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--molecules", type=int, default=10)
    parser.add_argument("--fmax", type=float, default=0.001, help="eV/Å, of the minima")
    parser.add_argument("--max-steps", type=int, default=1000)
    parser.add_argument("--displacement", type=float, default=0.005, help="Å")
    parser.add_argument("--seed", type=int, default=0)
    options = parse(parser, arguments)
    molecules = untrained_molecules(
        options.data, split_fractions(options.model), model_elements(options.model), options.molecules, options.seed
    )
    ours, rows, all_errors = calculator(options.model, "float64"), [], []
    for molecule in molecules:
        spectra, converged = [], True
        for engine in (ours, gfn2()):
            minimum, _, end = relax(molecule.atoms(), engine, options.fmax, options.max_steps)
            spectra.append(frequencies(minimum, options.displacement))
            converged &= end
        errors = spectra[0] - spectra[1]
        imaginary = int((spectra[0] < 0).sum())
        all_errors.append(errors)
        rows.append(
            (molecule.index, len(errors), float(np.abs(errors).mean()), float(np.abs(errors).max()),
             float(errors.mean()), imaginary, converged)
        )  # fmt: skip
    print_table(
        "Harmonic frequencies beside GFN2-xTB's, each at its own minimum, cm⁻¹",
        ("gdb", "modes", "MAE", "largest", "mean", "imaginary", "converged"),
        rows,
    )
    result = {
        "n_molecules": len(rows),
        "mae": float(np.abs(np.concatenate(all_errors)).mean()),
        "largest": float(np.abs(np.concatenate(all_errors)).max()),
        "not_converged": sum(not row[6] for row in rows),
        "imaginary": sum(row[5] for row in rows),
        "gdb": [row[0] for row in rows],
        "mae_of_each": [row[2] for row in rows],
    }
    print("\nMAE {mae:.2f} cm⁻¹ over all modes, largest error {largest:.1f}".format_map(result))
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
