"""QM9's training molecules at the minima of a potential, with the labels of their own: what examples/qm9-continue.toml
learns from beside QM9 itself, so that predictions at such geometries are right too.

    python recipes/relax_qm9.py --data FOLDER -o FOLDER/qm9-relaxed.npz      (a quarter of an hour on one core)

Molecules with all twelve labels, drawn at random from the training side and relaxed side by side. Those that do not get
to a minimum, or whose bonds change on the way, are left out. So is the label of <R^2>: it belongs to a geometry.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from egnn_md.dynamics.batched_relax import relax_batched

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # what both share
from _common import RESERVED_INDEX, load_potential, make_parser, parse

FMAX, MAX_STEPS = 0.01, 150  # eV/Å
AT_ONCE = 512


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--count", type=int, default=6000, help="molecules")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="NPZ")
    parser.add_argument("--seed", type=int, default=0)
    options = parse(parser, arguments)
    from ase import Atoms
    from rich.progress import track

    from egnn_md.chemistry.molecules import environments
    from egnn_md.chemistry.targets import NAMES
    from egnn_md.data.qm9 import read_qm9, write_qm9

    data = read_qm9(Path(options.data) / "qm9.npz").side("train")
    usable = (data.index % 20 != RESERVED_INDEX) & np.isfinite(data.targets).all(1)
    data = data.select(np.flatnonzero(usable)).having([1, 6, 7, 8])
    chosen = data.select(np.sort(np.random.default_rng(options.seed).permutation(len(data))[: options.count]))
    n = len(chosen)
    numbers = np.split(chosen.atomic_numbers, chosen.starts[1:-1])
    minima = np.split(chosen.positions.astype(np.float64), chosen.starts[1:-1])
    model = load_potential(options.model, "float32")
    kept, relaxed = [], []
    for first in track(range(0, len(chosen), AT_ONCE), "relaxing"):
        part = range(first, min(first + AT_ONCE, len(chosen)))
        ends = relax_batched(model, [Atoms(numbers[k], minima[k]) for k in part], FMAX, MAX_STEPS)
        for place, end in sorted(ends):
            k = part[place]
            if end.converged and environments(numbers[k], end.positions) == environments(numbers[k], minima[k]):
                kept.append(k)
                relaxed.append(end.positions)
    chosen = replace(chosen.select(np.array(kept)), positions=np.concatenate(relaxed))
    chosen.targets[:, NAMES.index("r2")] = np.nan
    write_qm9(chosen, options.output)
    print(f"{options.output}: {len(kept)} of {n} molecules")


if __name__ == "__main__":
    main()
