"""What a distillation begins with: structures of files, or conformers of SMILES, and frames around them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from egnn_md.chemistry.structures import NEUTRAL, charge_of, multiplicity_of
from egnn_md.data.frame_files import sound
from egnn_md.data.reading import DataError
from egnn_md.data.structure_files import as_atoms, read_structures
from egnn_md.distill.settings import DistillError
from egnn_md.storage import read_json

if TYPE_CHECKING:
    from ase import Atoms

CONFORMERS: Final = 8
"""Of each SMILES, at most."""
RATTLES: Final = (0.01, 0.02, 0.04, 0.06)
"""Å: standard deviations of the displacements of the first frames."""
MOST_OF_A_FILE: Final = 2000
"""Structures, evenly over it."""


def read_molecules(words: list[str], seed: int) -> list[Atoms]:
    """Structures to begin with; info["molecule"] names what each is a structure of.

    A word is a file that ase reads (all its structures), a .smi file, or a SMILES. Raises DistillError.
    """
    found: list[Atoms] = []
    for word in words:
        path = Path(word)
        if path.suffix == ".smi":
            for line in path.read_text().splitlines():
                if line.split():
                    found += conformers(line.split()[0], seed)
        elif path.exists():
            found += _of_file(path)
        else:
            found += conformers(word, seed)
    for atoms in found:
        if multiplicity_of(atoms) != 1:
            raise DistillError(f"{atoms.info['molecule']} is a radical: potentials here know closed shells only")
    return found


def is_charged(atoms: Atoms) -> bool:
    """Whether a structure says that it is charged."""
    return abs(charge_of(atoms)) > NEUTRAL


def _of_file(path: Path) -> list[Atoms]:
    from egnn_md.chemistry.molecules import bond_pattern

    try:
        frames = [as_atoms(sound(item, index, path)) for index, item in read_structures(path)]
    except DataError as error:
        raise DistillError(str(error)) from error
    chosen = [frames[k] for k in np.unique(np.linspace(0, len(frames) - 1, MOST_OF_A_FILE).astype(int))]
    for atoms in chosen:
        atoms.calc = None
        periodic = atoms.pbc.any() or len(atoms) > 200
        name = atoms.get_chemical_formula() if periodic else bond_pattern(atoms.numbers, atoms.positions)
        atoms.info = {**{key: atoms.info[key] for key in ("charge", "spin") if key in atoms.info}, "molecule": name}
    return chosen


def read_own(path: Path) -> list[Atoms]:
    """Frames that a distillation has written. Raises DistillError if they are damaged."""
    import ase.io

    try:
        frames: list[Atoms] = ase.io.read(path, ":", format="extxyz", do_not_split_by_at_sign=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # ase's readers raise whatever their parsing trips on
        raise DistillError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    if not frames:
        raise DistillError(f"{path} is damaged: it holds no frames")
    return frames


def numbers_of(path: Path, *names: str) -> dict[str, Any]:
    """What a distillation has noted. Raises DistillError if it lacks these numbers, StorageError if it is damaged."""
    found = read_json(path)
    if not isinstance(found, dict) or not all(type(found.get(name)) in (int, float) for name in names):
        raise DistillError(f"{path} is damaged: it has no number {', '.join(names)}")
    return found


def conformers(smiles: str, seed: int) -> list[Atoms]:
    """Conformers by ETKDG and MMFF94, those of high energy and duplicates left out. Raises DistillError."""
    from ase import Atoms

    try:
        chem: Any = importlib.import_module("rdkit.Chem")
        all_chem: Any = importlib.import_module("rdkit.Chem.AllChem")
    except ImportError:
        raise DistillError("SMILES need rdkit: pip install 'egnn-md[distill]'") from None
    molecule = chem.MolFromSmiles(smiles)
    if molecule is None:
        raise DistillError(f"{smiles!r} is neither a file nor a SMILES that rdkit reads")
    molecule = chem.AddHs(molecule)
    options = all_chem.ETKDGv3()
    options.randomSeed, options.pruneRmsThresh = seed % 2**31, 0.3
    found = list(all_chem.EmbedMultipleConfs(molecule, CONFORMERS, options))
    if not found:
        raise DistillError(f"rdkit found no conformer of {smiles!r}: give a file with a structure")
    if all_chem.MMFFHasAllMoleculeParams(molecule):
        all_chem.MMFFOptimizeMoleculeConfs(molecule, maxIters=500)
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    info: dict[str, Any] = {"molecule": chem.MolToSmiles(chem.RemoveHs(molecule))}
    if charge := chem.GetFormalCharge(molecule):
        info["charge"] = charge
    if unpaired := sum(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms()):
        info["spin"] = unpaired + 1
    return [Atoms(numbers, molecule.GetConformer(k).GetPositions(), info=dict(info)) for k in found]


def first_frames(starts: list[Atoms], count: int, seed: int) -> list[Atoms]:
    """`count` rattled frames of the starts in turn, for a student that knows nothing yet."""
    rng, frames = np.random.default_rng([seed, 0]), []
    for k in range(count):
        atoms = starts[k % len(starts)].copy()
        width = RATTLES[(k // len(starts)) % len(RATTLES)]
        atoms.positions += width * rng.normal(size=atoms.positions.shape)
        atoms.info |= {"tag": "rattled", "draw": "first", "group": f"{atoms.info['molecule']} first {k}"}
        frames.append(atoms)
    return frames
