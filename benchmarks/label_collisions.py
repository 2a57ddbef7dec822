"""Make close contacts between molecules, labelled with GFN2-xTB, so that a potential learns the walls between atoms.

    python benchmarks/label_collisions.py --qm9 qm9.npz -o collisions.npz      (1.5 minutes on one core; needs tblite)

Molecular dynamics near minima never shows a model two hydrogens at 0.8 Å or two fluorines at 1.2 Å. Here two small
molecules meet at one chosen pair of atoms, at 0.55-1.5 times the sum of the covalent radii, with every other contact
longer. Fluorine replaces hydrogens in two molecules of three, as QM9 has hardly any. The output has the layout of the
shared ragged npz (tag "K"; `gdb` is the first molecule's number; molecules that others evaluate on are left out).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from tblite.interface import Calculator

from egnn_md.elements import COVALENT_RADII
from egnn_md.units import ANGSTROM_PER_BOHR, EV_PER_HARTREE

Molecule = tuple[NDArray[np.int64], NDArray[np.float64]]
RADII = np.array(COVALENT_RADII)
MAX_FORCE = 60.0  # eV/Å; beyond it GFN2-xTB itself is of no use


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
    with np.load(options.qm9) as data:
        n_atoms, index = data["n_atoms"].astype(int), data["index"]
        starts = np.concatenate([[0], np.cumsum(n_atoms)])
        numbers, positions = data["atomic_numbers"].astype(int), data["positions"].astype(float)
    heavy = np.add.reduceat((numbers > 1).astype(int), starts[:-1])
    pool = np.flatnonzero((heavy <= 4) & (index % 20 != 7))

    def draw(row: int) -> Molecule:
        atoms = slice(starts[row], starts[row + 1])
        molecule = numbers[atoms], positions[atoms]
        return fluorinate(molecule, rng) if rng.random() < 0.67 else molecule

    frames = []
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
                frames.append((index[rows[0]], *pair, energy, forces))
                break
    gdb, numbers_, positions_, energies, forces_ = zip(*frames, strict=True)
    np.savez_compressed(
        options.output,
        tag=np.full(len(frames), "K"),
        gdb=np.array(gdb, np.int32),
        T=np.zeros(len(frames), np.float32),
        n_atoms=np.array([len(z) for z in numbers_], np.uint8),
        atomic_numbers=np.concatenate(numbers_).astype(np.uint8),
        positions=np.concatenate(positions_).astype(np.float32),
        forces=np.concatenate(forces_).astype(np.float32),
        energy=np.array(energies),
    )


if __name__ == "__main__":
    main()
