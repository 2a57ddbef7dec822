"""Files as people have them: every verb reads the same, and what a file says of charge, spin and disorder is heard."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pytest
from ase.build import molecule

from egnn_md.chemistry.structures import charge_of, multiplicity_of
from egnn_md.data.reading import DataError
from egnn_md.data.stream import stream
from egnn_md.data.structure_files import as_atoms, read_structures
from egnn_md.jobs.source import holds_several, read_items

ATOM = "HETATM{:5d} {:<4}{}WAT A{:4d}{}   {:8.3f}{:8.3f}{:8.3f}{:6.2f}  0.00          {:>2}{}\n"


def pdb_atom(k: int, name: str, x: float, *, alt: str = " ", part: float = 1.0, element: str = "", q: str = "") -> str:
    return ATOM.format(k, f" {name}", alt, 1, " ", x, 0.0, 0.0, part, element, q)


WATER_PDB = pdb_atom(1, "O", 0.0) + pdb_atom(2, "H1", 0.96) + pdb_atom(3, "H2", -0.96)
SDF_WATER = """water
  made       3D

  3  2  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.1193 O   0  0  0  0  0  0  0  0  0  0  0  0
    0.0000    0.7632   -0.4770 H   0  0  0  0  0  0  0  0  0  0  0  0
    0.0000   -0.7632   -0.4770 H   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0
  1  3  1  0
{}M  END
$$$$
"""
MOL2_WATER = """@<TRIPOS>MOLECULE
water
3 2 1 0 0
SMALL
NO_CHARGES

@<TRIPOS>ATOM
1 O 0.0000 0.0000 0.1193 O.3 1 WAT 0.0
2 H1 0.0000 0.7632 -0.4770 H 1 WAT 0.0
3 H2 0.0000 -0.7632 -0.4770 H 1 WAT 0.0
@<TRIPOS>BOND
1 1 2 1
2 1 3 1
"""
CELL_OF_ONE = "CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1           1\n"
IMPOSSIBLE_CELL = CELL_OF_ONE.replace("1.000", "9.000").replace("90.00", "10.00", 2)
XYZ_WATER = "3\n\nO 0 0 0.1\nH 0 0.76 -0.5\nH 0 -0.76 -0.5\n"


def read(path: Path) -> list[Any]:
    return [item if isinstance(item, DataError) else as_atoms(item) for _, item in read_structures(path)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.xyz", XYZ_WATER),
        ("numbers.xyz", XYZ_WATER.replace("O", "8").replace("H", "1")),
        ("tabs.xyz", XYZ_WATER.replace(" ", "\t")),
        ("bom.xyz", "\ufeff" + XYZ_WATER),
        ("blank.xyz", "\n" + XYZ_WATER),
        ("windows.xyz", XYZ_WATER.replace("\n", "\r\n")),
        ("heavy.xyz", XYZ_WATER.replace("H", "D")),
        ("bare.pdb", WATER_PDB),
        (
            "one-angstrom-cell.pdb",
            CELL_OF_ONE + WATER_PDB,
        ),
        ("ended.pdb", f"MODEL        1\n{WATER_PDB}ENDMDL\nEND\n"),
        ("water.sdf", SDF_WATER.format("")),
        ("water.mol", SDF_WATER.format("").replace("$$$$\n", "")),
        ("water.mol2", MOL2_WATER),
        ("water.smi", "O water\n"),
    ],
)
def test_water_is_water(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    (atoms,) = read(path)
    assert atoms.get_chemical_formula() == "H2O"
    assert not atoms.pbc.any()
    assert charge_of(atoms) == 0
    assert multiplicity_of(atoms) == 1
    assert 0.9 < atoms.get_distance(0, 1) < 1.05
    if name == "heavy.xyz":
        assert atoms.get_masses()[1:].tolist() == [2.014] * 2
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert read(packed)[0].positions.tolist() == atoms.positions.tolist()
    ((_, structure),) = stream(path)
    assert not isinstance(structure, DataError)
    assert structure.positions.tolist() == atoms.positions.tolist()


def test_a_comment_in_another_encoding_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_bytes(XYZ_WATER.replace("3\n\n", "3\nBjörn\n").encode("latin-1"))
    assert len(read(tmp_path / "a.xyz")[0]) == 3


@pytest.mark.parametrize(
    ("name", "text", "charge", "multiplicity"),
    [
        ("a.sdf", SDF_WATER.format("M  CHG  1   1   1\n"), 1, 1),
        ("a.sdf", SDF_WATER.format("M  CHG  2   1  -1   2   1\n"), 0, 1),
        ("a.sdf", SDF_WATER.format("M  RAD  1   1   3\n"), 0, 3),
        ("a.mol", SDF_WATER.format("M  CHG  1   1   1\n"), 1, 1),
        ("a.pdb", WATER_PDB.replace("\n", "1+\n", 1), 1, 1),
        ("a.xyz", XYZ_WATER.replace("3\n\n", "3\ncharge=-1\n"), -1, 1),
        ("a.xyz", XYZ_WATER.replace("3\n\n", "3\nspin=3\n"), 0, 3),
        ("a.smi", "[NH4+]\n", 1, 1),
        ("a.xyz", XYZ_WATER.replace("3\n\n", "3\ncharge: 1 multiplicity: 2\n"), 1, 2),
        ("a.xyz", XYZ_WATER.replace("3\n\n", "3\nnet_charge=-1 mult=3\n"), -1, 3),
        ("a.extxyz", XYZ_WATER.replace("3\n\n", "3\nenergy=-1.0 total_charge=1 spin_multiplicity=2\n"), 1, 2),
        ("a.gjf", "#p hf/sto-3g\n\nwater\n\n-1 2\nO 0.0 0.0 0.0\nH 0.8 0.6 0.0\nH -0.8 0.6 0.0\n\n", -1, 2),
    ],
)
def test_charge_and_spin_are_heard(name: str, text: str, charge: int, multiplicity: int, tmp_path: Path) -> None:
    text = text.replace("          ", "          ", 1)
    (tmp_path / name).write_text(text)
    (atoms,) = read(tmp_path / name)
    assert (charge_of(atoms), multiplicity_of(atoms)) == (charge, multiplicity)
    atoms.info = {"charge": 10**400, "spin": 10**400}
    assert np.isnan([charge_of(atoms), multiplicity_of(atoms)]).all()
    ((_, structure),) = stream(tmp_path / name)
    assert not isinstance(structure, DataError)
    assert bool(structure.unfit) == (charge != 0 or multiplicity != 1)


@pytest.mark.parametrize("suffix", ["extxyz", "traj", "json"])
def test_magnetic_moments_are_an_open_shell(suffix: str, tmp_path: Path) -> None:
    ase.io.write(tmp_path / f"a.{suffix}", molecule("O2"))  # of which ase says that it is a triplet
    ((_, structure),) = stream(tmp_path / f"a.{suffix}")
    assert "multiplicity is 3" in structure.unfit  # type: ignore[union-attr]


def test_what_files_call_a_charge_is_called_charge(tmp_path: Path) -> None:
    with ase.db.connect(tmp_path / "a.db") as rows:
        rows.write(molecule("CH4"))
        rows.write(molecule("NH3"), net_charge=1, multiplicity=2)
    neutral, ion = read(tmp_path / "a.db")
    assert not neutral.info
    assert (ion.info["charge"], ion.info["spin"]) == (1, 2)
    assert len(list(read_structures(tmp_path / "a.db", 1))) == 1
    numbers = {"n_atoms": [1, 1], "atomic_numbers": [2, 8], "positions": np.zeros((2, 3))}
    np.savez(tmp_path / "a.npz", **numbers, total_charge=[0, -2], mult=[1, 3])
    first, second = read(tmp_path / "a.npz")
    assert (first.info, second.info) == ({}, {"charge": -2, "spin": 3})
    (tmp_path / "b.db").write_text("no database")
    with pytest.raises(DataError, match=r"b\.db"):
        read(tmp_path / "b.db")


def test_of_alternate_locations_one_is_taken(tmp_path: Path) -> None:
    text = pdb_atom(1, "O", 0.0, alt="A", part=0.6, element="O") + pdb_atom(2, "O", 0.4, alt="B", part=0.4, element="O")
    (tmp_path / "a.pdb").write_text(text + pdb_atom(3, "H1", 0.96, element="H") + pdb_atom(4, "H2", -0.96, element="H"))
    (atoms,) = read(tmp_path / "a.pdb")
    assert atoms.get_chemical_formula() == "H2O"
    assert atoms.positions[0, 0] == 0.0


def test_every_model_of_a_pdb_is_a_structure(tmp_path: Path) -> None:
    models = "".join(f"MODEL     {k:4d}\n{WATER_PDB}ENDMDL\n" for k in (1, 2, 3))
    (tmp_path / "a.pdb").write_text(models)
    assert [len(atoms) for atoms in read(tmp_path / "a.pdb")] == [3, 3, 3]


def test_half_an_atom_is_no_atom(tmp_path: Path) -> None:
    from ase import Atoms
    from ase.io import write

    crystal = Atoms("OHH", molecule("H2O").positions + 3.0, cell=[6, 6, 6], pbc=True)
    write(tmp_path / "whole.cif", crystal)
    assert len(read(tmp_path / "whole.cif")[0]) == 3
    text = (tmp_path / "whole.cif").read_text()
    half = [line.replace("1.0000", "0.5000") if line.split()[:1] == ["H"] else line for line in text.splitlines()]
    (tmp_path / "half.cif").write_text("\n".join(half) + "\n")
    (found,) = read(tmp_path / "half.cif")
    assert isinstance(found, DataError)
    assert "occupancy H 0.5" in str(found)
    (item,) = read_items(tmp_path / "half.cif")
    assert isinstance(item, DataError)
    assert not holds_several(tmp_path / "half.cif")


FLAT = """benzene
  made       2D

  6  6  0  0  0  0  0  0  0  0999 V2000
{}  1  2  2  0
  2  3  1  0
  3  4  2  0
  4  5  1  0
  5  6  2  0
  1  6  1  0
M  END
$$$$
"""


@pytest.mark.parametrize("name", ["a.sdf", "a.mol"])
def test_a_drawing_is_no_structure(name: str, tmp_path: Path) -> None:
    angles = np.arange(6) * np.pi / 3
    atoms = "".join(f"{1.4 * np.cos(a):10.4f}{1.4 * np.sin(a):10.4f}{0:10.4f} C   0  0\n" for a in angles)
    (tmp_path / name).write_text(FLAT.format(atoms))
    (found,) = read(tmp_path / name)
    assert isinstance(found, DataError)
    assert "drawing" in str(found)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 * 10**9)


def bomb(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"100000000\n\n")
        for _ in range(40):
            file.write(b"H 0 0 0\n" * 10**6)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("sparse.xyz", sparse, "line of more than"),
        ("sparse.cif", sparse, "too large for this format"),
        ("bomb.xyz.gz", bomb, "unpacks to more than"),
        ("cut.xyz.gz", lambda path: path.write_bytes(gzip.compress(XYZ_WATER.encode())[:-9]), "cannot be unpacked"),
        ("many.xyz", lambda path: path.write_text("999999999\n\nH 0 0 0\n"), "should begin with its number of atoms"),
        (
            "columns.extxyz",
            lambda path: path.write_text("1\nProperties=species:S:2147483648:pos:R:3 energy=1\nH 0 0 0\n"),
            "more columns than the 4",
        ),
        (
            "angles.pdb",
            lambda path: path.write_text(IMPOSSIBLE_CELL + WATER_PDB),
            "no cell has the lengths",
        ),
        ("digits.xyz", lambda path: path.write_text("1" * 5000 + "\n"), "should begin with its number of atoms"),
        (
            "nobelium.pdb",
            lambda path: path.write_text(WATER_PDB + pdb_atom(4, "NO", 3.0, element="NO")),
            "of which element is atom",
        ),
        ("empty.pdb", lambda path: path.write_text("MODEL        1\nENDMDL\n"), "empty.pdb"),
    ],
)
def test_files_that_would_eat_the_machine_are_refused(
    name: str, write: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        raise read(tmp_path / name)[0]
