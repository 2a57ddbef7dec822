"""Structures come from files and names; what cannot be simulated is refused with a reason."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write

from egnn_md.dynamics.starting_structures import StructureError, check_structure, read_structure, read_topology


def test_names_and_files(tmp_path: Path) -> None:
    assert read_structure("CH3CH2OH").get_chemical_formula() == "C2H6O"
    path = tmp_path / "two.extxyz"
    write(path, [molecule("H2O"), molecule("CH4")])
    assert read_structure(str(path)).get_chemical_formula() == "CH4"
    assert read_structure(f"{path}@0").get_chemical_formula() == "H2O"


def test_an_at_sign_in_a_path_is_part_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "me@home"
    folder.mkdir()
    path = folder / "two@300K.extxyz"
    write(path, [molecule("H2O"), molecule("CH4")])
    assert read_structure(str(path)).get_chemical_formula() == "CH4"
    assert read_structure(f"{path}@0").get_chemical_formula() == "H2O"
    with pytest.raises(StructureError, match="one structure is needed"):
        read_structure(f"{path}@:")
    pdb = folder / "w@ter.pdb"
    write(pdb, molecule("H2O"))
    assert read_topology(str(pdb), read_structure(str(pdb))) is not None


def test_smiles_are_placed_in_space() -> None:
    pytest.importorskip("rdkit")
    atoms = read_structure("CC(=O)Oc1ccccc1C(=O)O")
    assert atoms.get_chemical_formula() == "C9H8O4"
    assert np.ptp(atoms.positions, axis=0).min() > 1.0  # no drawing in the plane
    assert read_structure("F/C=C/F").get_chemical_formula() == "C2H2F2"
    assert read_structure("CO").get_chemical_formula() == "CO"  # a name that ase knows comes first
    assert (read_structure("CCO").positions == read_structure("CCO").positions).all()


def test_without_rdkit_a_smiles_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(StructureError, match=r"those need RDKit: pip install 'egnn-md\[chem\]'"):
        read_structure("CC(=O)N")


def test_a_file_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("H2O", molecule("CH4"), format="extxyz")
    assert read_structure("H2O").get_chemical_formula() == "CH4"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.xyz", None, "no such file"),
        ("some/where", None, "no such file"),
        ("CH3CH2OO", None, "neither a file nor a molecule.*CH3CH2O"),
        ("empty.xyz", "", "empty"),
        ("broken.xyz", "3\n\nH 0 0\n", "it has 1 atoms, not 3"),
        ("words.xyz", "hello\n", "structure 0 should begin with its number of atoms"),
        ("unknown.bin", "\x00\x01", "of no format that ase knows"),
        ("nan.xyz", "2\n\nH 0 0 0\nH nan 0 0\n", "atom 1 is NaN"),
        ("close.xyz", "2\n\nH 0 0 0\nO 0 0 0.05\n", "H0 and O1 are 0.050 Å apart|O1 and H0 are 0.050 Å apart"),
        ("same.xyz", "2\n\nH 0 0 0\nO 0 0 0\n", "0.000 Å apart"),
        ("dummy.xyz", "2\n\nH 0 0 0\nX 0 0 1\n", "unknown element 'X'"),
        ("flat.extxyz", '1\nLattice="1 0 0 2 0 0 0 0 1" pbc="T T T"\nH 0 0 0\n', "no volume"),
        ("image.extxyz", '1\nLattice="0.05 0 0 0 5 0 0 0 5" pbc="T T T"\nH 0 0 0\n', "0.050 Å apart"),
    ],
    ids=lambda value: str(value)[:14],
)
def test_bad_structures_are_refused(
    name: str, content: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_text(content)
    with pytest.raises(StructureError, match=message):
        read_structure(name)


def test_folders_and_empty_structures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match="folder"):
        read_structure(str(tmp_path))
    with pytest.raises(StructureError, match="no atoms"):
        check_structure(Atoms(), "nothing")


def test_close_pairs_are_found_among_many_atoms_and_across_the_boundary() -> None:
    crystal = bulk("Cu", cubic=True) * (4, 4, 4)
    check_structure(crystal, "copper")
    crystal += Atoms("H", [crystal.positions[0] - [0.06, 0, 0] + crystal.cell[0]])
    with pytest.raises(StructureError, match=r"0\.060 Å apart"):
        check_structure(crystal, "copper")


def test_velocities_that_are_nan_are_refused() -> None:
    atoms = molecule("H2O")
    atoms.set_momenta(np.full((3, 3), np.nan))
    with pytest.raises(StructureError, match="velocities"):
        check_structure(atoms, "water")


def test_topology_of_a_pdb_file_only_if_it_has_the_atoms() -> None:
    pdb = Path(__file__).parents[2] / "examples" / "alanine_dipeptide.pdb"
    atoms = read_structure(str(pdb))
    topology = read_topology(str(pdb), atoms)
    assert topology.n_residues == 3
    assert topology.n_bonds == 21
    assert read_topology(str(pdb), atoms[:-1]) is None
    assert read_topology("CH4", read_structure("CH4")) is None
