"""What the benchmarks share: options, tables and JSON, molecules that a model was not trained on, GFN2-xTB.

Importing this module asks OpenMP for one thread, unless OMP_NUM_THREADS says otherwise; tblite, imported later, reads
it. torch too is imported lazily, because a script that measures the memory of its children must be small itself.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ase import Atoms

    from egnn_md.models.potential import Potential

RESERVED_INDEX = 7
"""QM9 molecules with index % 20 == 7 are kept for others to judge the model on; no benchmark here reads them."""
MIN_HEAVY_ATOMS = 6
"""Clusters and collisions in the training data name their first molecule only; the others have at most 5 heavy atoms.
Molecules from 6 heavy atoms up therefore were in training under their own number or not at all."""
DEFAULT_SPLIT = {"valid": 0.05, "test": 0.05}


@dataclass(frozen=True)
class Molecule:
    """One molecule of a QM9 file."""

    index: int
    """Its gdb number."""
    numbers: NDArray[np.int64]
    """(n_atoms,)."""
    positions: NDArray[np.float64]
    """(n_atoms, 3) Å, the B3LYP minimum."""

    def atoms(self) -> Atoms:
        from ase import Atoms

        return Atoms(self.numbers, self.positions)


def make_parser(description: str, *, data: bool = True, model: str | None = "organic-xtb") -> argparse.ArgumentParser:
    """The options that all benchmarks have; no --model if `model` is None."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    if model is not None:
        parser.add_argument("--model", default=model, help="shipped name or path of a checkpoint")
    if data:
        parser.add_argument(
            "--data",
            type=Path,
            default=os.environ.get("EGNN_MD_DATA"),
            help="folder with xtb_frames.npz and qm9.npz; $EGNN_MD_DATA if not given",
        )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed options, with torch's threads set; a missing data folder ends the script with a message."""
    import torch

    from egnn_md.memory import keep_freed_memory

    keep_freed_memory()
    options = parser.parse_args(arguments)
    if "data" in options and (options.data is None or not options.data.is_dir()):
        parser.error(f"no data folder {options.data}: give --data FOLDER or set EGNN_MD_DATA")
    torch.set_num_threads(options.threads)
    return options


def load_potential(model: str, dtype: str, device: str = "cpu") -> Potential:
    """The potential in "float32" or "float64"."""
    import torch

    from egnn_md.checkpoint import load
    from egnn_md.models.potential import Potential

    potential = load(model, dtype=getattr(torch, dtype), device=device)
    if not isinstance(potential, Potential):
        raise SystemExit(f"{model} is a {type(potential).__name__}; this benchmark needs a potential")
    return potential


def calculator(model: str, dtype: str, *, compiled: bool = False) -> Any:
    """Our calculator for ase, as a user gets it."""
    from egnn_md.calculators.ase_calculator import EGNNCalculator

    return EGNNCalculator(model, dtype=dtype, compile=compiled)


def model_elements(model: str) -> tuple[int, ...]:
    """Atomic numbers that the model knows, from its header."""
    from egnn_md.checkpoint import read_header

    return tuple(read_header(model)["config"]["elements"])


def split_fractions(model: str) -> Mapping[str, float]:
    """Fractions of the molecules that the model's training kept for validation and test, from its header."""
    from egnn_md.checkpoint import read_header

    fractions: Mapping[str, float] = read_header(model).get("split", DEFAULT_SPLIT)
    return fractions


def untrained_molecules(
    data: Path, split: Mapping[str, float], elements: Iterable[int], count: int, seed: int = 0
) -> list[Molecule]:
    """`count` molecules of qm9.npz, drawn by `seed`, from the test side of the model's split.

    Only molecules of `elements` (atomic numbers); see `RESERVED_INDEX` and `MIN_HEAVY_ATOMS` for those left out.
    """
    from egnn_md.data.split import side_of_group

    with np.load(data / "qm9.npz") as archive:
        index, n_atoms = archive["index"], archive["n_atoms"].astype(np.int64)
        numbers, positions = archive["atomic_numbers"].astype(np.int64), archive["positions"].astype(np.float64)
    ends = np.cumsum(n_atoms)
    chosen: list[Molecule] = []
    for row in np.random.default_rng(seed).permutation(len(index)):
        if index[row] % 20 == RESERVED_INDEX or side_of_group(str(index[row]), split["valid"], split["test"]) != "test":
            continue
        atoms = slice(ends[row] - n_atoms[row], ends[row])
        if (numbers[atoms] > 1).sum() < MIN_HEAVY_ATOMS or not set(numbers[atoms].tolist()) <= set(elements):
            continue
        chosen.append(Molecule(int(index[row]), numbers[atoms], positions[atoms]))
        if len(chosen) == count:
            return chosen
    raise SystemExit(f"{data / 'qm9.npz'} has {len(chosen)} molecules on the test side of {dict(split)}, not {count}")


def gfn2(accuracy: float = 0.05) -> Any:
    """A GFN2-xTB calculator for ase; by default converged tightly enough for finite differences of its forces.

    tblite's own default is `accuracy` 1.
    """
    from tblite.ase import TBLite

    return TBLite(method="GFN2-xTB", accuracy=accuracy, verbosity=0)


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A plain table; floats with four significant digits."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    print(f"\n{title}")
    for number, row in enumerate(cells):
        print("  " + "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))
        if number == 0:
            print("  " + "  ".join("-" * width for width in widths))


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_json(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write `result` to `path`, if there is one."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2, default=float) + "\n")
        print(f"\nwritten: {path}")
