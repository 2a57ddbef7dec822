"""Fragments put side by side: dimers and trimers along a distance, ions among ligands, droplets, collisions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from _gfn2 import Dropped
from _molecules import ForceField, Species, canonical, conformer, for_testing, species
from ase.data import vdw_radii
from rdkit import Chem

MONATOMIC = {"Li": 1, "Na": 1, "K": 1, "Mg": 2, "Ca": 2, "Zn": 2, "F": -1, "Cl": -1, "Br": -1, "I": -1}
# With a partner's van der Waals radius (1.5 A for oxygen) they give the usual distance of a ligand.
CATION_RADII = {3: 0.55, 11: 0.9, 19: 1.3, 12: 0.55, 20: 0.9, 30: 0.55}
ANION_RADII = {9: 1.5, 17: 1.9, 35: 2.05, 53: 2.3}
POLAR_HYDROGEN = 0.5  # A: a hydrogen bond is as long as this and the acceptor's radius
POLYATOMIC = (
    *("[NH4+]", "[OH3+]", "[OH-]", "CC(=O)[O-]", "[O-]C=O", "[O-][N+](=O)[O-]", "C[NH3+]", "NC(N)=[NH2+]"),
    *("c1c[nH]c[nH+]1", "OP(=O)([O-])O", "COP(=O)([O-])OC", "OS(=O)(=O)[O-]", "CS(=O)(=O)[O-]", "[C-]#N", "[S-]C#N"),
    *("[N-]=[N+]=[N-]", "OC(=O)[O-]", "[O-]c1ccccc1", "C[S-]", "C[N+](C)(C)C", "C[NH2+]C", "C[NH+](C)C", "C[O-]"),
    *("CC(C)=[OH+]", "CC(N)=[NH2+]", "c1cc[nH+]cc1", "FC(F)(F)C(=O)[O-]", "[O-]Cl(=O)(=O)=O", "F[B-](F)(F)F"),
    *("F[P-](F)(F)(F)(F)F", "C[S+](C)C", "C[P+](C)(C)C", "[SH-]", "O=S([O-])[O-]", "c1cn[n-]c1", "NC(=O)[NH-]"),
)

SMALL = (
    "[H][H] C N O F [SiH4] P S Cl Br I B FF ClCl BrBr II ClF BrCl N#N [C-]#[O+] O=C=O C#C C#N C=C C=O CO CF CCl CBr "
    "CI CS CP C[SiH3] CB C=S S=C=S O=C=S O=S=O O=S(=O)=O OO SS NN NO N=N N=O [N-]=[N+]=O OS OCl NCl FC(F)F FB(F)F "
    "ClB(Cl)Cl OB(O)O F[Si](F)(F)F [SiH3][SiH3] C[Si](C)(C)C PP FP(F)F ClP(Cl)Cl O=P(F)(F)F FS(F)(F)(F)(F)F "
    "O[N+](=O)[O-] OS(=O)(=O)O OP(O)(O)=O SC#N [SiH3]O [SiH3]F [SiH3]Cl [SiH3]N [SiH3]S [SiH3]P PO PF PCl PS PN SN SF "
    "SCl BO BN BF BCl BS [O-][O+]=O FN(F)F ClN(Cl)Cl ICl IBr OF OBr OI NBr "
).split()
"""Of each pair of elements that bind each other a molecule, the smallest. Ethane is for testing (7th of GDB)."""


@dataclass(frozen=True)
class Fragment:
    """A molecule or an ion as one piece of a cluster; `outward` (n, 3) are unit vectors away from its own bonds."""

    numbers: np.ndarray
    positions: np.ndarray
    charge: int
    group: str
    radii: np.ndarray
    outward: np.ndarray
    polarity: np.ndarray


def monatomic(symbol: str) -> Fragment:
    number = Chem.GetPeriodicTable().GetAtomicNumber(symbol)
    radius = {**CATION_RADII, **ANION_RADII}[number]
    sign = f"[{symbol}{MONATOMIC[symbol]:+d}]"
    return Fragment(
        np.array([number]), np.zeros((1, 3)), MONATOMIC[symbol], sign, np.array([radius]), np.zeros((1, 3)), np.ones(1)
    )


def fragments(piece: Species, count: int, rng: np.random.Generator) -> list[Fragment]:
    """Thermal geometries of a molecule."""
    molecule = conformer(piece.smiles, rng)
    field = ForceField(molecule)
    positions = field.minimum()
    made = []
    for _ in range(count):
        positions, _ = field.thermal(positions, 300.0, 80, rng)
        made.append(fragment(field.numbers, positions, piece.charge, piece.group))
    return made


def small_fragments(rng: np.random.Generator) -> list[Fragment]:
    """The molecules of `SMALL` and the ions, rattled."""
    made = [monatomic(symbol) for symbol in MONATOMIC]
    for smiles in (*SMALL, *POLYATOMIC):
        group = canonical(Chem.MolFromSmiles(smiles))
        if for_testing(group):
            continue
        molecule = conformer(smiles, rng)
        numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
        positions = molecule.GetConformer().GetPositions() + 0.03 * rng.normal(size=(len(numbers), 3))
        made.append(fragment(numbers, positions, Chem.GetFormalCharge(molecule), group))
    return made


def fragment(numbers: np.ndarray, positions: np.ndarray, charge: int, group: str) -> Fragment:
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    radii = vdw_radii[numbers].copy()
    polarity = np.where((numbers == 6) | (numbers == 1), 1.0, 4.0)
    outward = np.zeros_like(positions)
    for atom, number in enumerate(numbers):
        near = np.flatnonzero((distances[atom] < (1.5 if number == 1 else 1.9)) & (distances[atom] > 0))
        outward[atom] = positions[atom] - positions[near].mean(0) if len(near) else 0.0
        if number == 1 and len(near) and numbers[near[distances[atom, near].argmin()]] not in (1, 5, 6, 14):
            radii[atom], polarity[atom] = POLAR_HYDROGEN, 4.0
    outward /= np.linalg.norm(outward, axis=1, keepdims=True) + 1e-3
    return Fragment(numbers, positions, charge, group, radii, outward, polarity)


def polyatomic_ions() -> list[Species]:
    molecules = [Chem.MolFromSmiles(smiles) for smiles in POLYATOMIC]
    pieces = [species(molecule, Chem.MolToSmiles(molecule)) for molecule in molecules if molecule is not None]
    return [piece for piece in pieces if not for_testing(piece.group)]


def rotation(rng: np.random.Generator) -> np.ndarray:
    """A random proper rotation (3, 3)."""
    matrix, upper = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix *= np.sign(np.diag(upper))
    return np.asarray(matrix * np.linalg.det(matrix))


def _turn(source: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A rotation that brings unit vector `source` onto `target`, with a random turn about it."""
    first = np.linalg.qr(np.column_stack([source, rng.normal(size=(3, 2))]))[0]
    second = np.linalg.qr(np.column_stack([target, rng.normal(size=(3, 2))]))[0]
    first[:, 0], second[:, 0] = source, target
    for frame in (first, second):
        frame[:, 2] = np.cross(frame[:, 0], frame[:, 1])
    return np.asarray(second @ first.T)


def _unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / np.linalg.norm(vector))


@dataclass(frozen=True)
class Docking:
    """Two fragments and a line along which the second one moves."""

    first: Fragment
    second: Fragment
    line: np.ndarray

    def at(self, contact: float) -> Fragment:
        """Joined, the closest pair at `contact` times the sum of its two radii."""
        sums = self.first.radii[:, None] + self.second.radii
        for shift in np.arange(0.0, 40.0, 0.04):
            moved = self.second.positions + shift * self.line
            distances = np.linalg.norm(self.first.positions[:, None] - moved, axis=-1)
            if (distances >= contact * sums).all():
                return join(self.first, self.second, moved)
        raise Dropped("no room")


def join(first: Fragment, second: Fragment, moved: np.ndarray) -> Fragment:
    return Fragment(
        np.concatenate([first.numbers, second.numbers]),
        np.concatenate([first.positions, moved]),
        first.charge + second.charge,
        f"{first.group}.{second.group}",
        np.concatenate([first.radii, second.radii]),
        np.concatenate([first.outward, second.outward]),
        np.concatenate([first.polarity, second.polarity]),
    )


def dock(first: Fragment, second: Fragment, rng: np.random.Generator) -> Docking:
    """One atom of each, polar ones rather, face each other, more or less in line with their bonds."""
    site = rng.choice(len(first.numbers), p=first.polarity / first.polarity.sum())
    other = rng.choice(len(second.numbers), p=second.polarity / second.polarity.sum())
    line = _unit(first.outward[site] + rng.normal(scale=0.35, size=3))
    facing = _unit(second.outward[other] + rng.normal(scale=0.35, size=3))
    turn = _turn(facing, -line, rng)
    positions = (second.positions - second.positions[other]) @ turn.T + first.positions[site]
    turned = Fragment(
        second.numbers, positions, second.charge, second.group, second.radii, second.outward @ turn.T, second.polarity
    )
    return Docking(first, turned, line)


def stack(first: Fragment, second: Fragment, rng: np.random.Generator) -> Docking:
    """The planes of two fragments face each other, turned and shifted at random."""
    normal, facing = _plane(first), _plane(second)
    turn = _turn(_unit(facing + rng.normal(scale=0.1, size=3)), normal, rng)
    across = rng.normal(scale=1.0, size=3)
    across -= normal * (across @ normal)
    positions = (second.positions - second.positions.mean(0)) @ turn.T + first.positions.mean(0) + across
    turned = Fragment(
        second.numbers, positions, second.charge, second.group, second.radii, second.outward @ turn.T, second.polarity
    )
    return Docking(first, turned, normal)


def _plane(piece: Fragment) -> np.ndarray:
    """The normal of the plane nearest to all atoms."""
    return np.asarray(np.linalg.svd(piece.positions - piece.positions.mean(0))[2][-1])


def surround(center: Fragment, ligands: list[Fragment], rng: np.random.Generator) -> Fragment:
    """Ligands about a central fragment, each near its contact with it, none into another."""
    cluster, size = center, len(center.numbers)
    for ligand in ligands:
        for _ in range(12):
            joined = dock(center, ligand, rng).at(rng.uniform(0.9, 1.15))
            moved = joined.positions[size:]
            distances = np.linalg.norm(cluster.positions[:, None] - moved, axis=-1)
            if (distances >= 0.8 * (cluster.radii[:, None] + ligand.radii)).all():
                cluster = join(cluster, ligand, moved)
                break
    if cluster is center:
        raise Dropped("no room")
    return cluster
