"""What structures are made of: SMILES of both sides of the split, and files of structures."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
from _contacts import polyatomic_ions
from _molecules import Species, read_smiles, skeletons
from rdkit import Chem

# Elements that are rare among the molecules are drawn so many times as often.
RARE = {5: 40.0, 14: 40.0, 53: 8.0, 15: 8.0, 35: 2.0, 9: 1.5, 16: 1.2}
# Disulfides, thiocarbonyls, sulfonamides, hydrazines, peroxides, oximes, hydrazones, sulfoxides, alkylated rings'
# cations, thioesters: groups that few molecules have.
RARE_GROUPS = (
    *("[SX2]-[SX2]", "[#6]=[SX1]", "[SX4](=O)(=O)-[NX3]", "[NX3]-[NX3]", "[OX2]-[OX2]", "[#6]=[NX2]-[OX2]"),
    *("[#6]=[NX2]-[NX3]", "[SX3](=O)", "[nX3+]-[#6]", "[#6](=O)-[SX2]"),
)


class Ragged:
    """A ragged npz of structures."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self.arrays = dict(arrays)
        self.offsets = np.concatenate([[0], np.cumsum(self.arrays["n_atoms"], dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.arrays["n_atoms"])

    def structure(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.arrays["atomic_numbers"][part].astype(int), self.arrays["positions"][part].astype(float)


class Source:
    """What the structures are made of; `train` and `test` are the molecules of the two sides of the split."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.conformations = Ragged(options.conformations)
        self.frames = Ragged(options.frames)
        self.train, self.test = read_molecules(options)
        self.ions = polyatomic_ions()
        self.small = [piece for piece in self.train if piece.heavy <= (8 if piece.charge else 6)]
        self._weights = {limit: _weights(self.train, limit) for limit in (16, 99)}
        self.water = [piece for piece in self.small if piece.smiles == "O"] or [_water()]

    @cached_property
    def rare(self) -> list[list[Species]]:
        """Of each of `RARE_GROUPS` that there is, the molecules that have it, of at most 20 heavy atoms."""
        patterns = [Chem.MolFromSmarts(pattern) for pattern in RARE_GROUPS]
        molecules = [(piece, Chem.MolFromSmiles(piece.smiles)) for piece in self.train if piece.heavy <= 20]
        members = ([piece for piece, molecule in molecules if molecule.HasSubstructMatch(p)] for p in patterns)
        return [found for found in members if found]

    def draw_rare(self, rng: np.random.Generator) -> Species:
        """A molecule with a rare group, each group as often as any other."""
        members = self.rare[rng.integers(len(self.rare))]
        return members[rng.integers(len(members))]

    def draw(self, rng: np.random.Generator, largest: int = 99) -> Species:
        """A molecule with at most `largest` (16 or 99) heavy atoms."""
        return self.train[rng.choice(len(self.train), p=self._weights[largest])]


def _water() -> Species:
    return Species("O", "O", 1, 0, frozenset((1, 8)))


def _weights(pieces: list[Species], largest: int) -> np.ndarray:
    """Small molecules, rare elements and ions more often: a label costs as the square of the size."""
    heavy = np.array([piece.heavy for piece in pieces])
    size = np.where(heavy <= largest, np.interp(heavy, [8, 12, 16, 20, 24], [4.0, 3.0, 1.2, 0.35, 0.12]), 0.0)
    rare = np.array([max(RARE.get(element, 1.0) for element in piece.elements) for piece in pieces])
    charged = np.array([5.0 if piece.charge else 1.0 for piece in pieces])
    weights = size * rare * charged
    return np.asarray(weights / weights.sum())


def read_molecules(options: argparse.Namespace) -> tuple[list[Species], list[Species]]:
    """From the SMILES, half a minute, once; then from a copy beside the parts."""
    copy = options.out / "species.json"
    if not copy.exists():
        excluded: frozenset[str] = frozenset()
        if options.exclude is not None:
            known = Ragged(options.exclude)
            names = [str(name).split("/")[0] for name in known.arrays["name"]]
            firsts = [index for index, name in enumerate(names) if index == 0 or name != names[index - 1]]
            excluded = skeletons(*zip(*[known.structure(index) for index in firsts], strict=True))
        sides = [read_smiles(options.molecules, excluded, testing=testing) for testing in (False, True)]
        text = json.dumps([[{**asdict(p), "elements": sorted(p.elements)} for p in side] for side in sides])
        partial_copy = copy.with_suffix(".partial")
        partial_copy.write_text(text)
        partial_copy.replace(copy)
    sides = [[Species(**{**p, "elements": frozenset(p["elements"])}) for p in s] for s in json.loads(copy.read_text())]
    return sides[0], sides[1]
