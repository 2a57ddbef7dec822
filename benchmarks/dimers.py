"""Do all pairs of elements repel at short range? Energy and force of every pair, in float64.

The smallest force that pushes two atoms apart, between 0.3 Å and 0.7 times the sum of the covalent radii: positive for
all pairs means that no simulation can fall into a hole there. A picture shows the curves from 0.3 to 5 Å.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
from _common import load_potential, make_parser, parse, print_table, write_json
from numpy.typing import NDArray

from egnn_md.chemistry.elements import COVALENT_RADII, symbol
from egnn_md.dynamics.batched import Batch
from egnn_md.models.potential import Potential

FloatArray = NDArray[np.float64]
START, END, CORE = 0.3, 5.0, 0.7  # Å, Å, times the sum of the covalent radii


def curve(model: Potential, pair: tuple[int, int], distances: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Energy (eV) beyond that of two atoms apart, and force (eV/Å, positive: apart), at each distance (Å)."""
    from ase import Atoms

    apart = 10.0 + 2.0 * model.config.cutoff
    places = [np.array([[0.0, 0.0, 0.0], [0.0, 0.0, d]]) for d in (*distances, apart)]
    batch = Batch(model, [Atoms(pair, place) for place in places])
    found = batch.evaluate(batch.positions)
    relative = (found.energy - found.energy[-1]).cpu().numpy()[:-1]
    return relative, found.forces.reshape(-1, 2, 3)[:-1, 1, 2].cpu().numpy()


def draw(curves: dict[str, tuple[FloatArray, FloatArray]], distances: FloatArray, path: Path) -> None:
    """One panel per pair: energy and force on symmetric logarithmic scales."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(5, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns, 2.4 * rows), squeeze=False, sharex=True)
    for axis, (name, (energy, force)) in zip(axes.flat, curves.items(), strict=False):
        axis.plot(distances, energy, label="energy, eV")
        axis.plot(distances, force, label="force, eV/Å", linewidth=0.8)
        axis.axhline(0.0, color="grey", linewidth=0.5)
        axis.set_yscale("symlog", linthresh=1.0)
        axis.set_title(name, fontsize=9)
    axes[0, 0].legend(fontsize=7)
    axes[-1, 0].set_xlabel("distance, Å")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__ or "", data=False)
    parser.add_argument("--points", type=int, default=471, help="distances from 0.3 to 5 Å")
    parser.add_argument("-o", "--output", type=Path, default=Path("dimers.png"), help="the picture")
    options = parse(parser, arguments)
    model = load_potential(options.model, "float64")
    distances = np.linspace(START, END, options.points)
    curves, rows = {}, []
    for pair in combinations_with_replacement(model.config.elements, 2):
        name = f"{symbol(pair[0])}-{symbol(pair[1])}"
        core = CORE * (COVALENT_RADII[pair[0]] + COVALENT_RADII[pair[1]])
        curves[name] = curve(model, pair, distances)
        energy, force = curves[name]
        inside = np.linspace(START, core, 200)
        smallest = curve(model, pair, inside)[1]
        rows.append(
            (name, core, float(smallest.min()), float(inside[smallest.argmin()]),
             float(distances[energy.argmin()]), float(energy.min()), float(np.abs(force[distances > 1.0]).max()))
        )  # fmt: skip
    print_table(
        f"Pairs of atoms; the smallest force between {START:g} Å and {CORE:g} of the sum of the covalent radii",
        ("pair", "to Å", "smallest force eV/Å", "at Å", "minimum at Å", "depth eV", "|force| beyond 1 Å"),
        rows,
    )
    draw(curves, distances, options.output)
    attractive = [row[0] for row in rows if not row[2] > 0]
    result = {
        "n_pairs": len(rows),
        "smallest_force": min(row[2] for row in rows),
        "attractive_pairs": attractive,
        "pairs": {row[0]: {"smallest_force": row[2], "at": row[3]} for row in rows},
    }
    print(f"\n{len(rows) - len(attractive)} of {len(rows)} pairs repel; picture: {options.output}")
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
