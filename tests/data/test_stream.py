"""Structures one after another, whatever the file; tables that survive a kill."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from egnn_md.chemistry.structures import Structure
from egnn_md.data.frames import DataError
from egnn_md.data.stream import stream
from egnn_md.data.tables import FORMATS, head_of

NAMES = ("CH3CH2OH", "CH4", "H2O", "C6H6", "NH3")


@pytest.fixture
def atoms() -> list[Atoms]:
    return [molecule(name) for name in NAMES]


def write(path: Path, atoms: list[Atoms]) -> Path:
    if path.suffix == ".npz":
        np.savez(
            path,
            n_atoms=[len(a) for a in atoms],
            atomic_numbers=np.concatenate([a.numbers for a in atoms]).astype(np.uint8),
            positions=np.concatenate([a.positions for a in atoms]),
        )
    elif path.suffix == ".sdf":
        records = []
        for a in atoms:
            lines = [
                "".join(f"{c:10.4f}" for c in x) + f" {s:<3} 0" for s, x in zip(a.symbols, a.positions, strict=True)
            ]
            records.append("\n".join(["name", "", "", f"{len(a):3d}  0 V2000", *lines, "M  END", "$$$$\n"]))
        path.write_text("".join(records))
    else:
        ase.io.write(path, atoms)
    return path


@pytest.mark.parametrize("name", ["a.xyz", "a.extxyz", "a.npz", "a.sdf", "a.traj"])
@pytest.mark.parametrize("start", [0, 3])
def test_every_form_streams_the_same(name: str, start: int, atoms: list[Atoms], tmp_path: Path) -> None:
    items = list(stream(write(tmp_path / name, atoms), start))
    assert [index for index, _ in items] == list(range(start, len(atoms)))
    for (_, item), expected in zip(items, atoms[start:], strict=True):
        assert isinstance(item, Structure)
        assert item.atomic_numbers.tolist() == expected.numbers.tolist()
        assert item.positions == pytest.approx(expected.positions, abs=1e-4)
        assert item.formula() == expected.get_chemical_formula("hill")


def test_what_the_comment_says_is_heard(tmp_path: Path) -> None:
    ion = molecule("NH3")
    ion.info["charge"] = 1
    ase.io.write(tmp_path / "a.extxyz", [ion, bulk("Cu"), molecule("CH4")])
    (_, charged), (_, crystal), (_, sound) = stream(tmp_path / "a.extxyz")
    assert isinstance(charged, Structure)
    assert isinstance(crystal, Structure)
    assert isinstance(sound, Structure)
    assert "charged" in charged.unfit
    assert "periodic" in crystal.unfit
    assert not sound.unfit


def test_original_files_of_qm9_one_after_another(tmp_path: Path) -> None:
    """Their `*^` exponents, their charges in the last column, the three lines below the atoms."""
    water = "3\ngdb 3\t799.58812\t437.90386\t282.94545\t1.8511\t6.31\t-0.2928\t0.0687\t0.3615\t19.0\t0.021\t-76.4\n"
    water += "O\t-0.03\t0.97\t7.6*^-3\t-0.58\nH\t0.06\t0.02\t0.0015\t0.29\nH\t0.87\t1.3\t0.0006\t0.29\n"
    water += "1671.4222\t3803.6305\t3907.698\nO\tO\t\nInChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2\n"
    (tmp_path / "qm9.xyz").write_text(water + water.replace("gdb 3", "gdb 4"))
    found = list(stream(tmp_path / "qm9.xyz"))
    assert [index for index, _ in found] == [0, 1]
    for _, structure in found:
        assert isinstance(structure, Structure)
        assert structure.positions[0].tolist() == [-0.03, 0.97, 7.6e-3]
        assert structure.problem((1, 8)) is None


def test_bad_structures_do_not_hide_the_others(tmp_path: Path) -> None:
    methane = "C 0 0 0\nH 0 0 1.1\n"
    bad = ("C 0 0 0\nH 0 zero 1.1\n", "C 0 0 0\nQq 0 0 1.1\n", "C 0 0\nH 0 0 1.1\n")
    text = "".join(f"2\n\n{block}" for block in (methane, *bad, methane.replace("1.1", "1.1*^0"), "C 0 0 0\n"))
    (tmp_path / "a.xyz").write_text(text)
    items = [item for _, item in stream(tmp_path / "a.xyz")]
    assert [isinstance(item, DataError) for item in items] == [False, True, True, True, False, True]
    assert "it has 1 atoms, not 2" in str(items[-1])


@pytest.mark.parametrize(
    ("text", "message"), [("", "empty"), ("\n\n", "no structures"), ("1\n\nH 0 0 0\nrubbish\n", "structure 1 should")]
)
def test_files_that_lead_nowhere_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text(text)
    with pytest.raises(DataError, match=message):
        list(stream(tmp_path / "a.xyz"))
    with pytest.raises(DataError, match="no such file"):
        list(stream(tmp_path / "b.xyz"))


def test_a_cut_npz_is_refused(atoms: list[Atoms], tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", atoms)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cut off"):
        list(stream(path))


def test_tables_can_be_read_back(atoms: list[Atoms], tmp_path: Path) -> None:
    structures = [item for _, item in stream(write(tmp_path / "a.npz", atoms)) if isinstance(item, Structure)]
    columns = ["index", "formula", "alpha", "flag"]
    for suffix, record in FORMATS.items():
        rows = [
            {"index": k, "formula": s.formula(), "alpha": 1.5 * k, "flag": "far, away" if k % 2 else ""}
            for k, s in enumerate(structures)
        ]
        texts = [record(columns, row, structure) for row, structure in zip(rows, structures, strict=True)]
        (tmp_path / f"out{suffix}").write_text(head_of(suffix, columns) + "".join(texts))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    frames = ase.io.read(tmp_path / "out.extxyz", ":")
    with (tmp_path / "out.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    expected = [0, 1.5, 3.0, 4.5, 6.0]
    assert [line["alpha"] for line in lines] == [frame.info["alpha"] for frame in frames] == expected
    assert [float(row["alpha"]) for row in table] == expected
    assert frames[1].info["flag"] == table[1]["flag"] == "far, away"
    assert frames[0].positions == pytest.approx(atoms[0].positions)


SDF = """


{counts}  0  0  0  0  0  0  0  0999 V2000
{lines}{rest}M  END
$$$$
"""
ATOM = "    0.0000    0.0000    {z:6.4f} {symbol:<3s} 0  0  0  0  0  0  0  0  0  0  0  0\n"


def record(*symbols: str, counts: str = "", rest: str = "") -> str:
    atoms = "".join(ATOM.format(z=float(k), symbol=symbol) for k, symbol in enumerate(symbols))
    return "name" + SDF.format(counts=counts or f"{len(symbols):3d}  0", lines=atoms, rest=rest)


def test_a_bad_sdf_record_costs_itself_alone(tmp_path: Path) -> None:
    """Unknown elements, counts that are too high or too low, charges and radicals; the others keep their place."""
    bad = (
        record("C", "D"),
        record("O", "H", "H", counts="  9  0"),
        record("O", "H", "H", counts="  2  0"),
        record("N", "H", rest="M  CHG  1   1   1\n"),
        record("O", "H", rest="M  RAD  1   1   2\n"),
    )
    (tmp_path / "a.sdf").write_text("".join(record("C", "O") + each for each in bad) + record("H", "H")[:-5])
    items = dict(stream(tmp_path / "a.sdf"))
    assert list(items) == list(range(11))
    sound = [k for k, item in items.items() if isinstance(item, Structure) and item.problem((1, 6, 7, 8)) is None]
    assert sound == [0, 2, 4, 6, 8, 10]
    assert [index for index, _ in stream(tmp_path / "a.sdf", 7)] == [7, 8, 9, 10]
    assert "'D'" in str(items[1])
    assert "charged" in str(items[7].unfit)  # type: ignore[union-attr]


def test_zwitterions_are_neutral(tmp_path: Path) -> None:
    (tmp_path / "z.sdf").write_text(record("N", "O", rest="M  CHG  2   1   1   2  -1\n"))
    ((_, item),) = stream(tmp_path / "z.sdf")
    assert isinstance(item, Structure)
    assert not item.unfit


def test_a_frame_without_all_its_atoms_leaves_the_next_one_alone(tmp_path: Path) -> None:
    water = "3\nwater\nO 0 0 0\nH 0 0 1\nH 0 1 0\n"
    (tmp_path / "a.xyz").write_text(water + water.replace("3\n", "5\n") + water + "2\n\nC 0 0 0\n")
    found = [isinstance(item, Structure) for _, item in stream(tmp_path / "a.xyz")]
    assert found == [True, False, True, False]
    assert [index for index, _ in stream(tmp_path / "a.xyz", 2)] == [2, 3]
    (tmp_path / "b.xyz").write_text(water.replace("3\n", "2\n") + water)
    with pytest.raises(DataError, match="Has structure 0 more atoms than it says"):
        list(stream(tmp_path / "b.xyz"))


@pytest.mark.parametrize("comment", ["charge=1", "Charge = -1", "total_charge=+1", "charge: 2"])
def test_a_charge_in_the_comment_counts_however_it_is_written(comment: str, tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text(f"2\n{comment}\nC 0 0 0\nO 0 0 1.1\n2\ncharge = 0\nC 0 0 0\nO 0 0 1.1\n")
    (_, charged), (_, neutral) = stream(tmp_path / "a.xyz")
    assert isinstance(charged, Structure)
    assert "charged" in str(charged.problem((6, 8)))
    assert isinstance(neutral, Structure)
    assert neutral.problem((6, 8)) is None


def test_npz_arrays_must_fit_and_say_what_is_charged_or_periodic(tmp_path: Path) -> None:
    arrays = {
        "n_atoms": np.array([2, 2]),
        "atomic_numbers": np.array([6, 8, 6, 8]),
        "positions": np.array([[0.0, 0, 0], [0, 0, 1.1]] * 2),
    }
    np.savez(tmp_path / "a.npz", **arrays, charge=np.array([0, 1]))
    assert [item.unfit != "" for _, item in stream(tmp_path / "a.npz")] == [False, True]  # type: ignore[union-attr]
    for said in ({"total_charge": [0, 1]}, {"multiplicity": [1, 2]}, {"spin": [1, 3]}):
        np.savez(tmp_path / "a.npz", **arrays, **{name: np.array(values) for name, values in said.items()})
        assert [item.unfit != "" for _, item in stream(tmp_path / "a.npz")] == [False, True]  # type: ignore[union-attr]
    np.savez(tmp_path / "a.npz", **arrays, pbc=np.array([[True] * 3, [False] * 3]))
    assert ["periodic" in item.unfit for _, item in stream(tmp_path / "a.npz")] == [True, False]  # type: ignore[union-attr]
    np.savez(tmp_path / "a.npz", **{**arrays, "n_atoms": np.array([2, 1])})
    with pytest.raises(DataError, match="3"):
        list(stream(tmp_path / "a.npz"))
