"""Property predictions away from QM9's minima: what is flagged, and how wrong it is.

Test molecules at their minima, with every atom moved by a given length in a random direction, and relaxed with a
potential. The labels stay those of the minimum: where atoms were moved, a flag is what is wanted.

    python benchmarks/property_geometries.py --data FOLDER
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from _common import RESERVED_INDEX, make_parser, parse, print_table, write_json

SHOWN = ("mu", "alpha", "homo", "gap", "u0")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__ or "", model="qm9")
    parser.add_argument("--count", type=int, default=500, help="test molecules")
    parser.add_argument("--moved", type=float, nargs="*", default=[0.01, 0.02, 0.05, 0.1], help="Å")
    parser.add_argument("--potential", default="organic-xtb", help="relaxes them")
    parser.add_argument("--relaxed", type=int, default=100, help="so many of the molecules (0: none)")
    options = parse(parser, arguments)
    import numpy as np
    from ase import Atoms
    from ase.optimize import BFGS

    from egnn_md import load
    from egnn_md.calculators import EGNNCalculator
    from egnn_md.data.qm9 import read_qm9
    from egnn_md.models.property import FAR

    model = load(options.model)
    data = read_qm9(Path(options.data) / "qm9.npz").side("test").having(np.array(model.config.elements))
    data = data.select(np.flatnonzero(data.index % 20 != RESERVED_INDEX))
    rng = np.random.default_rng(0)
    chosen = data.select(np.sort(rng.permutation(len(data))[: options.count]))
    ends = zip(chosen.starts[:-1], chosen.starts[1:], strict=True)
    minima = [Atoms(chosen.atomic_numbers[a:b], chosen.positions[a:b]) for a, b in ends]
    labels = dict(zip(model.config.targets, chosen.labels().T, strict=True))

    def moved(by: float) -> list[Atoms]:
        copies = [atoms.copy() for atoms in minima]
        for atoms in copies:
            direction = rng.standard_normal((len(atoms), 3))
            atoms.positions += by * direction / np.linalg.norm(direction, axis=1, keepdims=True)
        return copies

    def relaxed() -> list[Atoms]:
        calculator, copies = EGNNCalculator(options.potential), [a.copy() for a in minima[: options.relaxed]]
        for atoms in copies:
            atoms.calc = calculator
            BFGS(atoms, logfile=None).run(fmax=0.01, steps=500)
            atoms.calc = None
        return copies

    geometries = {"minima": minima} | {f"moved by {by:g} Å": moved(by) for by in options.moved}
    if options.relaxed:
        geometries[f"relaxed, {options.potential}"] = relaxed()
    rows, result = [], {}
    for name, structures in geometries.items():
        found = model.predict(structures, uncertainty=True)
        far = found["extrapolation"] > FAR
        kept = {t: np.abs(found[t] - labels[t][: len(far)])[~far] for t in SHOWN}
        errors = {t: float(np.nanmean(error)) if np.isfinite(error).any() else None for t, error in kept.items()}
        rows.append([name, len(far), 100 * far.mean(), *("-" if e is None else e for e in errors.values())])
        result[name] = {"n": len(far), "flagged": float(far.mean()), "mae_of_the_others": errors}
    units = [f"{t} ({model.units[t]})" for t in SHOWN]
    print_table("property predictions away from minima", ["geometry", "n", "flagged, %", *units], rows)
    print("\nlast columns: mean absolute error of those that are not flagged")
    write_json(options.json, result)


if __name__ == "__main__":
    main()
