"""QM9 in every form people have it is the same molecules; the split is the paper's."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egnn_md.chemistry.targets import NAMES
from egnn_md.data.frames import DataError
from egnn_md.data.qm9 import (
    N_MOLECULES,
    N_UNCHARACTERIZED,
    Molecules,
    paper_split,
    parse_xyz,
    read_qm9,
    read_uncharacterized,
    write_qm9,
)

METHANE = """5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\t-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 0.002150416\t-0.0060313176\t 0.0019761204\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 0.0002765748\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 6.0637*^-6\t 0.133923
1341.307\t1341.3284
C\tC\t
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""  # noqa: E501
WATER = """3
gdb 3\t799.58812\t437.90386\t282.94545\t1.8511\t6.31\t-0.2928\t0.0687\t0.3615\t19.0002\t0.021375\t-76.404702\t-76.401867\t-76.400922\t-76.422349\t6.002\t
O\t-0.0343604951\t 0.9775395708\t 0.0076015923\t-0.589706
H\t 0.0647664923\t 0.0205721989\t 0.0015346341\t 0.294853
H\t 0.8717903737\t 1.3007924048\t 0.0006931336\t 0.294853
1671.4222\t3803.6305\t3907.698
O\tO\t
InChI=1S/H2O/h1H2\tInChI=1S/H2O/h1H2
"""  # noqa: E501
FILES = {"dsgdb9nsd_000003.xyz": WATER, "dsgdb9nsd_000001.xyz": METHANE}


@pytest.fixture
def excluded() -> np.ndarray:
    """A made-up list of as many molecules as QM9's, without the first thousand."""
    return np.sort(np.random.default_rng(1).permutation(np.arange(1001, N_MOLECULES + 1))[:N_UNCHARACTERIZED])


def listing(folder: Path, excluded: np.ndarray) -> None:
    lines = "\n".join(f"   {number}  CCO  CC=O" for number in excluded)
    (folder / "uncharacterized.txt").write_text(f"These molecules changed\n   Index  ...\n{lines}\n")


def archive(folder: Path, mode: str) -> Path:
    path = folder / f"qm9.tar.{mode}" if mode else folder / "qm9.tar"
    with tarfile.open(path, f"w:{mode}") as tar:
        for name, text in FILES.items():
            member = tarfile.TarInfo(f"dsgdb9nsd/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def folder_of_files(folder: Path) -> Path:
    path = folder / "files"
    path.mkdir()
    for name, text in FILES.items():
        (path / name).write_text(text)
    return path


def moleculenet(folder: Path) -> Path:
    """gdb9.sdf and gdb9.sdf.csv of methane and water."""
    records, rows = [], [",".join(["mol_id", "A", *NAMES, "u0_atom"])]
    for text in (METHANE, WATER):
        index, _, positions, properties = parse_xyz(text)
        symbols = [line.split()[0] for line in text.splitlines()[2 : 2 + len(positions)]]
        atoms = ["".join(f"{c:10.4f}" for c in x) + f" {s:<3} 0  0\n" for x, s in zip(positions, symbols, strict=True)]
        records.append(f"gdb_{index}\n -x-\n\n{len(atoms):3d}  0  0  0 V2000\n{''.join(atoms)}M  END\n$$$$\n")
        rows.append(",".join([f"gdb_{index}", "1.0", *map(str, properties), "0"]))
    (folder / "gdb9.sdf").write_text("".join(records))
    (folder / "gdb9.sdf.csv").write_text("\n".join(rows) + "\n")
    return folder / "gdb9.sdf"


def check(molecules: Molecules, tolerance: float) -> None:
    assert molecules.index.tolist() == [1, 3]
    assert molecules.atomic_numbers.tolist() == [6, 1, 1, 1, 1, 8, 1, 1]
    assert molecules.positions[4] == pytest.approx([-0.5238136345, 1.4379326443, 6.0637e-6], abs=tolerance)
    assert molecules.targets[0].tolist() == pytest.approx(
        [0.0, 13.21, -0.3877, 0.1171, 0.5048, 35.3641, 0.044749, -40.47893, -40.476062, -40.475117, -40.498597, 6.469]
    )


@pytest.mark.parametrize("form", ["bz2", "gz", "", "folder", "sdf", "npz"])
def test_every_form_gives_the_same_molecules(form: str, tmp_path: Path, excluded: np.ndarray) -> None:
    listing(tmp_path, excluded)
    if form == "folder":
        path = folder_of_files(tmp_path)
    elif form == "sdf":
        path = moleculenet(tmp_path)
    else:
        path = archive(tmp_path, form if form != "npz" else "gz")
    molecules = read_qm9(path)
    if form == "npz":
        write_qm9(molecules, tmp_path / "qm9.npz")
        molecules = read_qm9(tmp_path / "qm9.npz")
    check(molecules, 1e-4 if form == "sdf" else 1e-6)
    assert (molecules.split >= 0).all()


def test_labels_are_the_papers(tmp_path: Path, excluded: np.ndarray) -> None:
    listing(tmp_path, excluded)
    labels = dict(zip(NAMES, read_qm9(archive(tmp_path, "gz")).labels().T, strict=True))
    hartree = 27211.386
    assert labels["homo"][0] == pytest.approx(-0.3877 * hartree, rel=1e-6)
    # Atomization of methane: QM9's own u0 less one carbon and four hydrogens, about -17 eV.
    assert labels["u0"][0] == pytest.approx((-40.47893 + 37.846772 + 4 * 0.500273) * hartree, rel=1e-6)
    assert labels["zpve"][0] == pytest.approx(0.044749 * hartree, rel=1e-6)
    assert labels["cv"].tolist() == [6.469, 6.002]


def test_split_is_the_papers(excluded: np.ndarray) -> None:
    everything = np.arange(1, N_MOLECULES + 1)
    split = paper_split(everything, excluded)
    assert np.bincount(split[split >= 0]).tolist() == [100_000, 17_748, 13_083]
    assert set(everything[split < 0]) == set(excluded)
    # Seed 0 is fixed for ever, and none of the first thousand is excluded: their ranks are known.
    order = np.random.RandomState(0).permutation(N_MOLECULES - N_UNCHARACTERIZED)
    first = np.isin(np.arange(1000), order[:100_000])
    assert ((split[:1000] == 0) == first).all()
    some = np.array([5, 999, int(excluded[7]), 133_000])
    assert paper_split(some, excluded).tolist() == split[some - 1].tolist()


def test_uncharacterized_molecules_are_left_out(tmp_path: Path, excluded: np.ndarray) -> None:
    excluded[0] = 3  # water, for once
    listing(tmp_path, np.sort(excluded))
    assert len(read_uncharacterized(tmp_path / "uncharacterized.txt")) == N_UNCHARACTERIZED
    assert read_qm9(archive(tmp_path, "gz")).index.tolist() == [1]


def test_without_the_list_part_of_qm9_has_no_split(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"uncharacterized\.txt"):
        molecules = read_qm9(archive(tmp_path, "gz"))
    assert (molecules.split < 0).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text.replace("gdb 3", "gdb 1"), "distinct numbers"),
        (lambda text: text.replace("\t6.002\t", ""), "dsgdb9nsd_000003"),
        (lambda text: text.replace("O\t-0.03", "Q\t-0.03"), "dsgdb9nsd_000003"),
        (lambda text: text.replace("0.9775395708", "nan"), "NaN"),
        (lambda text: "7" + text[1:4], "dsgdb9nsd_000003"),
    ],
)
def test_broken_files_are_named(spoil: object, message: str, tmp_path: Path) -> None:
    folder = folder_of_files(tmp_path)
    (folder / "dsgdb9nsd_000003.xyz").write_text(spoil(WATER))  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        read_qm9(folder)


def test_broken_sources_are_refused(tmp_path: Path, excluded: np.ndarray) -> None:
    whole = archive(tmp_path, "gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut off"):
        read_qm9(tmp_path / "cut.tar.gz")
    with pytest.raises(DataError, match="no such file"):
        read_qm9(tmp_path / "nothing.tar")
    with pytest.raises(DataError, match="not QM9's"):
        paper_split(np.array([1]), excluded[:-1])
    sdf = moleculenet(tmp_path)
    (tmp_path / "gdb9.sdf.csv").unlink()
    with pytest.raises(DataError, match="missing beside"):
        read_qm9(sdf)


def test_npz_keeps_what_is_missing_missing(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "some.npz",
        n_atoms=[1, 1],
        atomic_numbers=[6, 8],
        positions=np.zeros((2, 3)),
        targets=[[1.0, np.nan], [2.0, 3.0]],
        target_names=["gap", "alpha"],
    )
    targets = read_qm9(tmp_path / "some.npz").targets
    assert targets[:, NAMES.index("gap")].tolist() == [1.0, 2.0]
    assert np.isnan(targets).sum() == 24 - 3


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "qm9.npz"
    path.write_bytes(b"old")
    folder = folder_of_files(tmp_path)
    with pytest.warns(UserWarning, match="split"):
        molecules = read_qm9(folder)

    def full(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="no space"):
        write_qm9(molecules, path)
    assert path.read_bytes() == b"old"
    assert {file.name for file in tmp_path.iterdir()} == {"qm9.npz", "files"}
