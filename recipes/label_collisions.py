"""Make close contacts between molecules, labelled with GFN2-xTB, so that a potential learns the walls between atoms.

    python recipes/label_collisions.py --qm9 qm9.npz -o collisions.npz      (1.5 minutes on one core; needs tblite)

Molecular dynamics near minima never shows a model two hydrogens at 0.8 Å or two fluorines at 1.2 Å. Here two small
molecules meet at one chosen pair of atoms, at 0.55-1.5 times the sum of the covalent radii, with every other contact
longer. Fluorine replaces hydrogens in two molecules of three, as QM9 has hardly any. The output has the layout of the
shared ragged npz (tag "K"; `gdb` is the first molecule's number; molecules that others evaluate on are left out).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from tblite.interface import Calculator

from egnn_md.chemistry.elements import COVALENT_RADII
from egnn_md.chemistry.units import ANGSTROM_PER_BOHR, EV_PER_HARTREE

Molecule = tuple[NDArray[np.int64], NDArray[np.float64]]
RADII = np.array(COVALENT_RADII)
MAX_FORCE = 60.0  # eV/Å; beyond it GFN2-xTB itself is of no use


@dataclass(frozen=True)
class QM9:
    """The molecules of a QM9 file in the shared ragged layout."""

    index: NDArray[np.int64]
    """(n_molecules,) gdb numbers."""
    starts: NDArray[np.int64]
    """(n_molecules + 1,) first atom of each molecule."""
    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]

    def molecule(self, row: int) -> Molecule:
        atoms = slice(self.starts[row], self.starts[row + 1])
        return self.numbers[atoms], self.positions[atoms]


class Frame(NamedTuple):
    """One labelled structure: Å, eV, eV/Å."""

    gdb: int
    numbers: NDArray[np.int64]
    positions: NDArray[np.float64]
    energy: float
    forces: NDArray[np.float64]


def read_qm9(path: Path) -> QM9:
    with np.load(path) as data:
        starts = np.concatenate([[0], np.cumsum(data["n_atoms"].astype(int))])
        return QM9(data["index"], starts, data["atomic_numbers"].astype(int), data["positions"].astype(float))


def write_frames(path: Path, frames: Sequence[Frame], tag: str) -> None:
    np.savez_compressed(
        path,
        tag=np.full(len(frames), tag),
        gdb=np.array([frame.gdb for frame in frames], np.int32),
        T=np.zeros(len(frames), np.float32),
        n_atoms=np.array([len(frame.numbers) for frame in frames], np.uint8),
        atomic_numbers=np.concatenate([frame.numbers for frame in frames]).astype(np.uint8),
        positions=np.concatenate([frame.positions for frame in frames]).astype(np.float32),
        forces=np.concatenate([frame.forces for frame in frames]).astype(np.float32),
        energy=np.array([frame.energy for frame in frames]),
    )


def label(molecule: Molecule) -> tuple[float, NDArray[np.float64]]:
    """GFN2-xTB energy (eV) and forces (eV/Å)."""
    numbers, positions = molecule
    engine = Calculator("GFN2-xTB", numbers, positions / ANGSTROM_PER_BOHR)
    engine.set("verbosity", 0)
    engine.set("max-iter", 120)
    result = engine.singlepoint()
    return result.get("energy") * EV_PER_HARTREE, -result.get("gradient") * EV_PER_HARTREE / ANGSTROM_PER_BOHR


def fluorinate(molecule: Molecule, rng: np.random.Generator) -> Molecule:
    """Replace one to three hydrogens by fluorine, at a C-F length of 1.36 Å."""
    numbers, positions = molecule[0].copy(), molecule[1].copy()
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1) + 10 * np.eye(len(numbers))
    hydrogens = [h for h in np.flatnonzero(numbers == 1) if numbers[distances[h].argmin()] == 6]
    for h in rng.permutation(hydrogens)[: rng.integers(1, 4)]:
        carbon = distances[h].argmin()
        bond = positions[h] - positions[carbon]
        positions[h] = positions[carbon] + bond / np.linalg.norm(bond) * 1.36
        numbers[h] = 9
    return numbers, positions


def collide(first: Molecule, second: Molecule, rng: np.random.Generator) -> Molecule | None:
    """The second molecule, turned at random, with one of its atoms placed close to one of the first's.

    None if another contact is as close: the pair would not be the one that was chosen.
    """
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    a, b = rng.integers(len(first[0])), rng.integers(len(second[0]))
    outwards = first[1][a] - first[1].mean(0) + 0.3 * rng.normal(size=3)
    bond = RADII[first[0][a]] + RADII[second[0][b]]
    contact = first[1][a] + outwards / np.linalg.norm(outwards) * bond * rng.uniform(0.55, 1.5)
    placed = (second[1] - second[1][b]) @ rotation.T + contact
    ratios = np.linalg.norm(first[1][:, None] - placed, axis=-1) / (RADII[first[0]][:, None] + RADII[second[0]])
    ratios[a, b] = np.inf
    if ratios.min() < 1.5:
        return None
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], placed])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qm9", type=Path, required=True, help="npz with n_atoms, atomic_numbers, positions, index")
    parser.add_argument("-o", "--output", type=Path, default=Path("collisions.npz"))
    parser.add_argument("--frames", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    qm9 = read_qm9(options.qm9)
    heavy = np.add.reduceat((qm9.numbers > 1).astype(int), qm9.starts[:-1])
    pool = np.flatnonzero((heavy <= 4) & (qm9.index % 20 != 7))

    def draw(row: int) -> Molecule:
        molecule = qm9.molecule(row)
        return fluorinate(molecule, rng) if rng.random() < 0.67 else molecule

    frames: list[Frame] = []
    for _ in track(range(options.frames), description="GFN2-xTB collisions"):
        while True:
            rows = rng.choice(pool, 2)
            pair = collide(draw(rows[0]), draw(rows[1]), rng)
            if pair is None:
                continue
            try:
                energy, forces = label(pair)
            except RuntimeError:  # the self-consistent charges did not converge: draw another pair
                continue
            if np.abs(forces).max() < MAX_FORCE:
                frames.append(Frame(int(qm9.index[rows[0]]), *pair, energy, forces))
                break
    write_frames(options.output, frames, "K")


if __name__ == "__main__":
    main()
