"""Molecules from SMILES: which are for testing only, protonation states, conformers, force-field thermal motion."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from _gfn2 import Dropped, langevin, thermal_velocities
from ase.units import kcal, mol
from rdkit import Chem, RDLogger
from rdkit.Chem import AllChem, Descriptors, rdDetermineBonds

RDLogger.DisableLog("rdApp.*")

ELEMENTS = frozenset((1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 35, 53))
SPLIT = 20

# An atom that loses (-1) or takes (+1) a proton, and how often next to the others it is chosen.
PROTONATION_SITES = (
    ("[OX2H1]C=O", -1, 4.0),
    ("[OX2H1]c", -1, 2.0),
    ("[SX2H1]", -1, 2.0),
    ("[OX2H1][P,S]", -1, 3.0),
    ("[NX3;H1,H2]S(=O)(=O)", -1, 2.0),
    ("[nH]", -1, 1.5),
    ("[NX3;H1](C=O)C=O", -1, 1.5),
    ("[OX2H1]N", -1, 1.0),
    ("[OX2H1][CX4]", -1, 0.4),
    ("[NX3;!$(N-[C,S,N]=[O,N,S]);!$(N-c);!$(N-C=C);!$(N-[O,N])]", 1, 4.0),
    ("[nX2]", 1, 2.0),
    ("[NX2;!$(N-[O,N]);!$(N=[O,N])]=C", 1, 2.0),
    ("[NX3]c", 1, 0.5),
    ("[OX1]=[C,P,S]", 1, 0.3),
    ("[PX3]", 1, 1.0),
)
_SITES = [(Chem.MolFromSmarts(pattern), change, weight) for pattern, change, weight in PROTONATION_SITES]

SIDE_CHAINS = (
    *("C", "CC(C)C", "[C@@H](C)CC", "CCSC", "Cc1ccccc1", "Cc1ccc(O)cc1", "Cc1c[nH]c2ccccc12", "CO", "[C@H](C)O"),
    *("CS", "C[S-]", "CC(=O)N", "CCC(=O)N", "CC(=O)O", "CC(=O)[O-]", "CCC(=O)[O-]", "CCCCN", "CCCC[NH3+]"),
    *("CCCNC(=N)N", "CCCNC(=[NH2+])N", "Cc1c[nH]cn1", "Cc1c[nH]c[nH+]1", "C(C)C", "COP(=O)([O-])[O-]"),
)


@dataclass(frozen=True)
class Species:
    """A molecule to draw: SMILES with its charges, and the group whose side of the split it takes."""

    smiles: str
    group: str
    heavy: int
    charge: int
    elements: frozenset[int]


def species(molecule: Chem.Mol, group: str) -> Species:
    elements = frozenset(atom.GetAtomicNum() for atom in molecule.GetAtoms())
    smiles = Chem.MolToSmiles(molecule)
    return Species(smiles, group, molecule.GetNumHeavyAtoms(), Chem.GetFormalCharge(molecule), elements)


def canonical(molecule: Chem.Mol) -> str:
    """SMILES without stereo: the name of a group."""
    return str(Chem.MolToSmiles(molecule, isomericSmiles=False))


def for_testing(group: str) -> bool:
    """One molecule in twenty, by the CRC-32 of its canonical SMILES without stereo, is never trained on."""
    return zlib.crc32(group.encode()) % SPLIT == 0


def read_smiles(path: Path, excluded: frozenset[str], *, testing: bool) -> list[Species]:
    """The molecules of one side of the split; those whose skeleton is `excluded` are on neither."""
    chosen = []
    for line in path.read_text().splitlines():
        molecule = Chem.MolFromSmiles(line.split("\t")[0])
        if molecule is None or Descriptors.NumRadicalElectrons(molecule):
            continue
        group = canonical(molecule)
        candidate = species(molecule, group)
        if "." in group or for_testing(group) != testing or not candidate.elements <= ELEMENTS:
            continue
        if not excluded or _skeleton(Chem.AddHs(molecule)) not in excluded:
            chosen.append(candidate)
    return chosen


def skeletons(numbers: Iterable[np.ndarray], positions: Iterable[np.ndarray]) -> frozenset[str]:
    """Elements and bonds of structures without bond orders: equal for equal molecules."""
    found = set()
    for elements, points in zip(numbers, positions, strict=True):
        molecule = Chem.RWMol()
        conformer = Chem.Conformer(len(elements))
        for index, (number, point) in enumerate(zip(elements, points, strict=True)):
            molecule.AddAtom(Chem.Atom(int(number)))
            conformer.SetAtomPosition(index, np.asarray(point, float).tolist())
        molecule.AddConformer(conformer)
        rdDetermineBonds.DetermineConnectivity(molecule)
        found.add(_skeleton(molecule))
    return frozenset(found)


def _skeleton(molecule: Chem.Mol) -> str:
    bare = Chem.RWMol()
    for atom in molecule.GetAtoms():
        copy = Chem.Atom(atom.GetAtomicNum())
        copy.SetNoImplicit(True)
        bare.AddAtom(copy)
    for bond in molecule.GetBonds():
        bare.AddBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), Chem.BondType.SINGLE)
    return str(Chem.MolToSmiles(bare))


def protonation_state(parent: Species, rng: np.random.Generator) -> Species:
    """The parent with one to three protons added or taken away; zwitterions arise where both happen."""
    molecule = Chem.MolFromSmiles(parent.smiles)
    for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))):
        sites = [
            (match[0], change, weight)
            for pattern, change, weight in _SITES
            for match in molecule.GetSubstructMatches(pattern)
            if molecule.GetAtomWithIdx(match[0]).GetFormalCharge() == 0
        ]
        if not sites:
            break
        weights = np.array([weight for _, _, weight in sites])
        index, change, _ = sites[rng.choice(len(sites), p=weights / weights.sum())]
        atom = molecule.GetAtomWithIdx(int(index))
        hydrogens = atom.GetTotalNumHs() + change
        atom.SetFormalCharge(change)
        atom.SetNoImplicit(True)
        atom.SetNumExplicitHs(hydrogens)
        try:
            Chem.SanitizeMol(molecule)
        except Chem.MolSanitizeException as error:
            raise Dropped("no such protonation state") from error
    state = species(molecule, parent.group)
    if state.smiles == parent.smiles or abs(state.charge) > 2:
        raise Dropped("no protonation state")
    return state


def peptide(rng: np.random.Generator) -> Species:
    """One to three residues, capped or with free, charged or neutral ends."""
    chain = ""
    for _ in range(int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))):
        draw = rng.random()
        side = SIDE_CHAINS[rng.integers(len(SIDE_CHAINS))]
        chain += "NCC(=O)" if draw < 0.1 else "N1CCC[C@H]1C(=O)" if draw < 0.17 else f"N[C@@H]({side})C(=O)"
    start = rng.choice(["CC(=O)", "", "[NH3+]", "C(=O)"])
    if start == "[NH3+]":  # proline's nitrogen has no room for the third hydrogen
        chain = chain[1:]
        start = "[NH2+]" if chain[0] == "1" else start
    chain = start + chain
    molecule = Chem.MolFromSmiles(chain + rng.choice(["NC", "[O-]", "O", "N"]))
    group = canonical(molecule)
    if for_testing(group):
        raise Dropped("for testing")
    return species(molecule, group)


def conformer(smiles: str, rng: np.random.Generator) -> Chem.Mol:
    """The molecule with hydrogens and one random conformer."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    seed = int(rng.integers(2**31 - 1))
    if AllChem.EmbedMolecule(molecule, randomSeed=seed, maxAttempts=20) < 0 and (
        AllChem.EmbedMolecule(molecule, randomSeed=seed, useRandomCoords=True, maxAttempts=20) < 0
    ):
        raise Dropped("no conformer")
    return molecule


class ForceField:
    """MMFF94, or UFF where it lacks parameters, of one molecule: positions (A) in, `.forces` (eV/A) out."""

    def __init__(self, molecule: Chem.Mol, torsion: tuple[int, int, int, int, float] | None = None) -> None:
        self.numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
        properties = AllChem.MMFFGetMoleculeProperties(molecule)
        self.is_mmff = properties is not None
        if properties is not None:
            self._field = AllChem.MMFFGetMoleculeForceField(molecule, properties)
        elif AllChem.UFFHasAllMoleculeParams(molecule):
            self._field = AllChem.UFFGetMoleculeForceField(molecule)
        else:
            raise Dropped("no force field")
        if torsion is not None:
            *atoms, angle = torsion
            constrain = self._field.MMFFAddTorsionConstraint if self.is_mmff else self._field.UFFAddTorsionConstraint
            constrain(*atoms, False, angle, angle, 0.05)
        self._field.Initialize()

    def minimum(self) -> np.ndarray:
        self._field.Minimize(maxIts=300)
        return np.array(self._field.Positions()).reshape(-1, 3)

    def __call__(self, positions: np.ndarray) -> SimpleNamespace:
        flat = positions.ravel().tolist()
        self._field.CalcEnergy(flat)  # renews the distances that CalcGrad takes from a cache
        gradient = np.array(self._field.CalcGrad(flat)).reshape(-1, 3)
        return SimpleNamespace(forces=-gradient * (kcal / mol))

    def thermal(
        self, positions: np.ndarray, temperature: float, steps: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions and velocities after a Langevin run."""
        velocities = thermal_velocities(self.numbers, temperature, rng)
        run = langevin(self, self.numbers, positions, velocities, temperature, steps, rng, friction=0.02)
        for positions, velocities, _ in run:  # noqa: B007  (only the last counts)
            pass
        if not np.isfinite(positions).all() or np.abs(positions - positions.mean(0)).max() > 40:
            raise Dropped("force field")
        return positions - positions.mean(0), velocities
