"""How large are the errors on molecules that training never saw?

The test side of the model's split of xtb_frames.npz. Kinds of frames: M dynamics of a molecule, F with fluorine, C
clusters (divided by their first molecule only), E minima, all together; R, violent random displacements, beside. Then
M, F and C by the temperature of their dynamics.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from _common import load_potential, make_parser, parse, print_table, split_fractions, write_json

from egnn_md.data.frame_files import read_frames
from egnn_md.data.frames import Frames
from egnn_md.data.split import assign_split
from egnn_md.evaluation.potential import Metrics, evaluate
from egnn_md.models.potential import Potential

TOGETHER = ("M", "F", "C", "E")
HEATED = ("M", "F", "C")


def by_kind(model: Potential, frames: Frames) -> dict[str, Metrics]:
    """Errors of the kinds that count together, of each, and of R."""
    together = frames.select(np.flatnonzero(np.isin(frames.tag, TOGETHER)))
    beside = frames.select(np.flatnonzero(frames.tag == "R"))
    errors = evaluate(model, together)
    rows = {"+".join(TOGETHER): errors, **errors.by_tag}
    return rows | ({"R": evaluate(model, beside)} if len(beside) else {})


def by_temperature(model: Potential, frames: Frames, temperatures: np.ndarray) -> dict[str, Metrics]:
    """Errors of each kind of dynamics at each temperature (n_frames,) K; keys such as "M 300 K"."""
    chosen = np.flatnonzero(np.isin(frames.tag, HEATED))
    labels = np.array([f"{frames.tag[k]} {temperatures[k]:g} K" for k in chosen])
    errors = evaluate(model, replace(frames.select(chosen), tag=labels))
    rows = errors.by_tag or {str(labels[0]): errors}
    return dict(sorted(rows.items(), key=lambda row: (row[0][0], float(row[0].split()[1]))))


def show(title: str, rows: dict[str, Metrics]) -> None:
    print_table(
        title,
        ("frames", "number", "force MAE meV/Å", "force RMSE", "energy MAE meV/atom", "energy RMSE"),
        [(name, m.n_structures, m.force_mae, m.force_rmse, m.energy_mae, m.energy_rmse) for name, m in rows.items()],
    )


def make_options() -> ArgumentParser:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--frames", type=int, metavar="N", help="only the first N frames of the test side")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--device", default="cpu")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(make_options(), arguments)
    model = load_potential(options.model, options.dtype, options.device)
    path = options.data / "xtb_frames.npz"
    frames, split = read_frames(path), split_fractions(options.model)
    held_out = np.flatnonzero(assign_split(frames, split["valid"], split["test"]) == "test")[: options.frames]
    if not np.isin(frames.tag[held_out], HEATED).any():
        raise SystemExit(f"{path} has no frames of kinds {', '.join(HEATED)} on the test side of {dict(split)}")
    with np.load(path) as archive:
        temperatures = archive["T"][held_out]
    frames = frames.select(held_out)
    kinds, heated = by_kind(model, frames), by_temperature(model, frames, temperatures)
    show("Held-out frames by kind", kinds)
    show("By temperature", heated)
    result = {
        "n_structures": len(frames),
        "n_molecules": len(np.unique(frames.group)),
        "by_kind": {name: metrics.to_dict() for name, metrics in kinds.items()},
        "by_temperature": {name: metrics.to_dict() for name, metrics in heated.items()},
    }
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
