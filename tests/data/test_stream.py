"""Structures one after another, whatever the file; tables that survive a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from egnn_md.data.stream import stream
from egnn_md.data.structures import DataError
from egnn_md.data.tables import Table, TableError
from egnn_md.models.structures import Structure

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


def test_bad_structures_do_not_hide_the_others(tmp_path: Path) -> None:
    methane = "C 0 0 0\nH 0 0 1.1\n"
    bad = ("C 0 0 0\nH 0 zero 1.1\n", "C 0 0 0\nQq 0 0 1.1\n", "C 0 0\nH 0 0 1.1\n")
    text = "".join(f"2\n\n{block}" for block in (methane, *bad, methane.replace("1.1", "1.1*^0"), "C 0 0 0\n"))
    (tmp_path / "a.xyz").write_text(text)
    items = [item for _, item in stream(tmp_path / "a.xyz")]
    assert [isinstance(item, DataError) for item in items] == [False, True, True, True, False, True]
    assert "ends inside" in str(items[-1])


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


COLUMNS = ["index", "formula", "alpha", "flag"]


def rows(structures: list[Structure], start: int) -> list[tuple[dict[str, Any], Structure]]:
    return [
        ({"index": k, "formula": s.formula(), "alpha": 1.5 * k, "flag": "far away" if k % 2 else ""}, s)
        for k, s in enumerate(structures[start:], start)
    ]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".extxyz"])
@pytest.mark.parametrize("torn", [0, 1, 7, 25])
def test_a_killed_table_goes_on_without_loss_or_double(
    suffix: str, torn: int, atoms: list[Atoms], tmp_path: Path
) -> None:
    """The same bytes come out, wherever the kill cut the file."""
    structures = [item for _, item in stream(write(tmp_path / "a.npz", atoms)) if isinstance(item, Structure)]
    whole = Table(tmp_path / f"whole{suffix}", COLUMNS, {}, resume=False, overwrite=False)
    whole.write(rows(structures, 0))
    whole.finish()

    killed = Table(tmp_path / f"out{suffix}", COLUMNS, {"file": 1}, resume=False, overwrite=False)
    killed.write(rows(structures[:3], 0))
    killed.close()
    part = tmp_path / f"out{suffix}.part"
    part.write_bytes(part.read_bytes()[: -torn or None])
    assert not killed.path.exists()
    with pytest.raises(TableError, match="--resume"):
        Table(killed.path, COLUMNS, {"file": 1}, resume=False, overwrite=False)
    with pytest.raises(TableError, match="another"):
        Table(killed.path, COLUMNS, {"file": 2}, resume=True, overwrite=False)

    again = Table(killed.path, COLUMNS, {"file": 1}, resume=True, overwrite=False)
    assert again.next_index == again.n_rows
    assert (again.n_rows == 3) == (torn == 0)
    assert again.n_flagged == again.n_rows // 2  # the odd ones
    again.write(rows(structures, again.next_index))
    again.finish()
    assert killed.path.read_bytes() == whole.path.read_bytes()
    assert sorted(file.name for file in tmp_path.glob("out*")) == [f"out{suffix}"]


def test_a_table_says_what_is_wrong_with_its_name(tmp_path: Path) -> None:
    for name, message in (("a.docx", "must end in"), ("no/a.csv", "folder")):
        with pytest.raises(TableError, match=message):
            Table(tmp_path / name, COLUMNS, {}, resume=False, overwrite=False)


def test_tables_can_be_read_back(atoms: list[Atoms], tmp_path: Path) -> None:
    structures = [item for _, item in stream(write(tmp_path / "a.npz", atoms)) if isinstance(item, Structure)]
    for suffix in (".jsonl", ".extxyz"):
        table = Table(tmp_path / f"out{suffix}", COLUMNS, {}, resume=False, overwrite=False)
        table.write(rows(structures, 0))
        table.finish()
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    frames = ase.io.read(tmp_path / "out.extxyz", ":")
    assert [line["alpha"] for line in lines] == [frame.info["alpha"] for frame in frames] == [0, 1.5, 3.0, 4.5, 6.0]
    assert frames[1].info["flag"] == "far away"
    assert frames[0].positions == pytest.approx(atoms[0].positions)
