"""How far is a potential from reference energies, and from its teacher? Relative energies by set, kcal/mol.

FILE is an npz of structures and reactions: n_atoms, atomic_numbers, positions (Å), charge, unpaired, and rxn_ptr,
rxn_index, rxn_coef, reference (eV), rxn_group: Σ coef · E[index] of reaction k is compared with its reference.
Reactions with charges, open shells or elements that the model does not know are counted as refused, and so are those
with structures of which the model says another charge. --teacher adds GFN2-xTB (tblite) on the same structures, and the
distance between the two.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _common import make_parser, parse, print_table, write_json
from numpy.typing import NDArray

from egnn_md.chemistry.units import ANGSTROM_PER_BOHR, EV_PER_HARTREE, KJ_PER_MOL_PER_EV
from egnn_md.predict import ChargeError, ExtrapolationWarning, Geometry, PredictionError, Predictor, Result

KCAL = KJ_PER_MOL_PER_EV / 4.184
AT_ONCE = 64


@dataclass(frozen=True)
class References:
    """Structures, and reactions between them."""

    structures: list[Geometry]
    closed: NDArray[np.bool_]
    """(n_structures,) whether it is a closed shell."""
    reactions: list[tuple[NDArray[np.int64], NDArray[np.float64]]]
    """Structures and coefficients of each."""
    reference: NDArray[np.float64]
    """(n_reactions,) eV."""
    group: NDArray[np.str_]

    @staticmethod
    def read(file: Path) -> References:
        with np.load(file) as data:
            ends = np.cumsum(data["n_atoms"])[:-1]
            numbers = np.split(data["atomic_numbers"].astype(np.int64), ends)
            positions = np.split(data["positions"].astype(np.float64), ends)
            ends = data["rxn_ptr"][1:-1]
            parts = zip(np.split(data["rxn_index"], ends), np.split(data["rxn_coef"], ends), strict=True)
            structures = zip(positions, numbers, data["charge"].astype(float).tolist(), strict=True)
            return References(
                [Geometry(x, z, charge=charge) for x, z, charge in structures],
                data["unpaired"] == 0,
                list(parts),
                data["reference"],
                data["rxn_group"],
            )


def of_model(model: Predictor, references: References, wanted: NDArray[np.int64]) -> NDArray[np.float64]:
    """Energies (n_structures,) eV of the wanted structures; NaN for all others."""
    energies = np.full(len(references.structures), np.nan)
    wanted = wanted[np.argsort([len(references.structures[k].atomic_numbers) for k in wanted], kind="stable")]
    for start in range(0, len(wanted), AT_ONCE):
        chosen = wanted[start : start + AT_ONCE]
        results = _answers(model, [references.structures[k] for k in chosen])
        energies[chosen] = [np.nan if result is None else result.energy for result in results]
    return energies


def _answers(model: Predictor, structures: list[Geometry]) -> list[Result | None]:
    """None for a structure that the model refuses."""
    try:
        return [*model.many(structures)]
    except (PredictionError, ChargeError):
        if len(structures) == 1:
            return [None]
        return [answer for one in structures for answer in _answers(model, [one])]


def of_teacher(references: References, wanted: NDArray[np.int64]) -> NDArray[np.float64]:
    """GFN2-xTB's, the same; NaN where it does not converge."""
    from tblite.interface import Calculator

    energies = np.full(len(references.structures), np.nan)
    for k in wanted:
        structure = references.structures[k]
        calculator = Calculator(
            "GFN2-xTB", structure.atomic_numbers, structure.positions / ANGSTROM_PER_BOHR, charge=structure.charge
        )
        calculator.set("verbosity", 0)
        try:
            energies[k] = calculator.singlepoint().get("energy") * EV_PER_HARTREE
        except RuntimeError:
            continue
    return energies


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, data=False)
    parser.add_argument("file", type=Path, help="npz of structures and reactions")
    parser.add_argument("--groups", nargs="+", help="only these groups of reactions; all if not given")
    parser.add_argument("--teacher", action="store_true", help="beside GFN2-xTB (tblite)")
    options = parse(parser, arguments)
    warnings.simplefilter("ignore", ExtrapolationWarning)
    references, model = References.read(options.file), Predictor(options.model, dtype="float32")
    known = [bool(np.isin(s.atomic_numbers, model.elements).all()) for s in references.structures]
    neutral = np.array([not structure.charge for structure in references.structures])
    fits = np.array(known) & references.closed & (neutral | model.ions)
    groups = [g for g in np.unique(references.group) if options.groups is None or g in options.groups]
    rows, figures = [], {}
    for group in groups:
        mine = np.flatnonzero(references.group == group)
        taken = [k for k in mine if fits[references.reactions[k][0]].all()]
        wanted = np.unique(np.concatenate([references.reactions[k][0] for k in taken])) if taken else np.array([], int)
        energies = {"model": of_model(model, references, wanted)}
        if options.teacher:
            energies["teacher"] = of_teacher(references, wanted)
        errors = {
            name: np.array([coef @ e[index] for index, coef in (references.reactions[k] for k in taken)])
            for name, e in energies.items()
        }
        answered = ~np.isnan(errors["model"])
        taken, errors = (
            [k for k, answer in zip(taken, answered, strict=True) if answer],
            {name: values[answered] for name, values in errors.items()},
        )
        truth = references.reference[taken] if taken else np.array([])
        row = {name: float(KCAL * np.nanmean(np.abs(found - truth))) for name, found in errors.items() if taken}
        if options.teacher and taken:
            row["model - teacher"] = float(KCAL * np.nanmean(np.abs(errors["model"] - errors["teacher"])))
        figures[str(group)] = {"reactions": len(taken), "refused": len(mine) - len(taken), **row}
        rows.append([str(group), len(taken), len(mine) - len(taken), *(f"{value:.2f}" for value in row.values())])
    columns = ["set", "reactions", "refused", "model", *(["GFN2-xTB", "distance"] if options.teacher else [])]
    rows = [[*row, *["-"] * (len(columns) - len(row))] for row in rows]
    print_table(f"{options.model}: mean absolute errors, kcal/mol", columns, rows)
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
