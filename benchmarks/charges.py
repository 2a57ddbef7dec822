"""How far are a potential's charges and dipole moments from the labels of structures?

FILE is an npz of labelled structures with `charge`, `charges` and `dipole` (recipes/label_organics.py makes them).
Dipole moments are those of neutral, isolated structures.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import make_parser, parse, print_table, write_json
from ase.units import Debye

from egnn_md.data.frame_files import read_frames
from egnn_md.predict import ExtrapolationWarning, Geometry, Predictor

AT_ONCE = 64


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__, data=False, model="egnn-xtb")
    parser.add_argument("file", type=Path, help="npz of labelled structures")
    options = parse(parser, arguments)
    warnings.simplefilter("ignore", ExtrapolationWarning)
    frames, model = read_frames(options.file), Predictor(options.model, dtype="float32")
    if not model.ions or frames.charges is None or frames.dipole is None:
        parser.error("a model with charges and a file with charges and dipole moments are needed")
    total = np.zeros(len(frames)) if frames.charge is None else frames.charge
    parts = [slice(start, end) for start, end in zip(frames.starts[:-1], frames.starts[1:], strict=True)]
    structures = [
        Geometry(frames.positions[part].astype(np.float64), frames.atomic_numbers[part], frames.cell[k], frames.pbc[k])
        for k, part in enumerate(parts)
    ]
    results = [
        result
        for start in range(0, len(structures), AT_ONCE)
        for result in model.many(structures[start : start + AT_ONCE])
    ]
    atoms = np.concatenate([np.abs(r.charges - frames.charges[part]) for r, part in zip(results, parts, strict=True)])
    totals = np.abs(np.array([result.charge for result in results]) - total)
    dipoles = np.array(
        [
            np.linalg.norm(result.dipole - frames.dipole[k]) / Debye
            for k, result in enumerate(results)
            if result.dipole is not None and total[k] == 0
        ]
    )
    found = {
        "structures": len(results),
        "charge_of_an_atom_mae_e": float(np.nanmean(atoms)),
        "charge_of_a_structure_mae_e": float(totals.mean()),
        "charge_of_a_structure_largest_e": float(totals.max()),
        "dipole_mean_D": float(np.nanmean(dipoles)),
        "dipole_median_D": float(np.nanmedian(dipoles)),
    }
    print_table(f"{options.model}: charges and dipole moments", ("", ""), list(found.items()))
    write_json(options.json, found)
    return found


if __name__ == "__main__":
    main()
