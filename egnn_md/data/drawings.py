"""Molecules with bonds, perhaps without places: mol, mol2 and SMILES, read by RDKit (`pip install 'egnn-md[chem]'`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from egnn_md.data.reading import DataError, Plain, lines_of

SEED: Final = 7
"""Of the places that RDKit finds for a SMILES: the same each time."""


def molecules(path: Path) -> Iterator[Any]:
    """A `Plain` of each molecule, or a DataError for one that cannot be read. Raises DataError without RDKit."""
    try:
        from rdkit import Chem, rdBase
    except ImportError:
        raise DataError(
            f"{path}: this format needs RDKit (pip install 'egnn-md[chem]'); or convert it to sdf or xyz"
        ) from None
    silence = rdBase.BlockLogs()
    text = list(lines_of(path))
    if path.suffix.lower() in (".smi", ".smiles"):
        for line in text:
            if words := line.split():
                found = _item(lambda words=words: _placed(Chem.MolFromSmiles(words[0]), words[0]))
                plain = isinstance(found, Plain)
                yield found._replace(name=" ".join(words[1:]), smiles=words[0]) if plain else found
    elif path.suffix.lower() == ".mol2":
        for block in "".join(text).split("@<TRIPOS>MOLECULE")[1:]:
            whole = "@<TRIPOS>MOLECULE" + block
            yield _item(lambda whole=whole: Chem.MolFromMol2Block(whole, sanitize=False, removeHs=False))
    else:
        yield _item(lambda: Chem.MolFromMolBlock("".join(text), sanitize=False, removeHs=False))
    del silence


def from_smiles(text: str) -> Any:
    """A `Plain` of the molecule that a SMILES says, placed in space; None if it is no SMILES.

    Raises ImportError without RDKit, DataError if no places are found for its atoms.
    """
    from rdkit import Chem, rdBase

    silence = rdBase.BlockLogs()
    molecule = Chem.MolFromSmiles(text)
    if molecule is None or not molecule.GetNumAtoms():
        return None
    found = _item(lambda: _placed(molecule, text))
    del silence
    if isinstance(found, DataError):
        raise found
    return found


def _item(read: Any) -> Any:
    try:
        found = read()
        if found is None or found.GetNumConformers() == 0:
            raise ValueError("RDKit finds no molecule with coordinates in it")
        atoms = list(found.GetAtoms())
        numbers = np.array([atom.GetAtomicNum() for atom in atoms], np.int64)
        positions = np.array(found.GetConformer().GetPositions(), np.float64).reshape(-1, 3)
        if is_flat_drawing(numbers.tolist(), positions.tolist(), marked=not found.GetConformer().Is3D()):
            raise ValueError(DRAWING)
        unpaired = sum(atom.GetNumRadicalElectrons() for atom in atoms)
        charge = sum(atom.GetFormalCharge() for atom in atoms)
        name = found.GetProp("_Name") if found.HasProp("_Name") else ""
        return Plain(numbers, positions, charge, unpaired + 1, name)
    except Exception as error:  # RDKit has errors of its own
        return DataError(f"it cannot be read: {error or type(error).__name__}")


def _placed(molecule: Any, smiles: str) -> Any:
    """With hydrogens, at places that a force field finds good."""
    from rdkit.Chem import AddHs
    from rdkit.Chem.rdDistGeom import EmbedMolecule
    from rdkit.Chem.rdForceFieldHelpers import MMFFHasAllMoleculeParams, MMFFOptimizeMolecule

    if molecule is None:
        raise ValueError(f"{smiles[:60]!r} is no SMILES")
    whole = AddHs(molecule)
    if EmbedMolecule(whole, randomSeed=SEED, maxAttempts=20) != 0:
        raise ValueError(f"no places were found for the atoms of {smiles[:60]!r}")
    if MMFFHasAllMoleculeParams(whole):
        MMFFOptimizeMolecule(whole)
    return whole


DRAWING: Final = "it is a drawing in the plane, without hydrogens or places in space: give coordinates, or its SMILES"


def is_flat_drawing(numbers: list[int], positions: list[list[float]], marked: bool) -> bool:
    """Whether coordinates are a drawing's: all z are zero, and the file says 2D or a carbon has no hydrogen near it."""
    if len(numbers) < 3 or any(z for *_, z in positions):
        return False
    return marked or (6 in numbers and 1 not in numbers and len(numbers) > 4)
