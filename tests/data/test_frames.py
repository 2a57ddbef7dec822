"""Labelled structures: round trips, broken files, splits without leaks, batches equal to single structures."""

from __future__ import annotations

import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from graphs import crystal, make_graph, molecule

from egnn_md.data.frame_batches import FrameBatches, PairTable
from egnn_md.data.frame_files import read_frames
from egnn_md.data.frames import DataError, Frames, concatenate, ragged_rows
from egnn_md.data.labels import LabelKeys
from egnn_md.data.split import assign_split
from egnn_md.graph import Graph
from egnn_md.training.sampling import StepBatch, StepSampler

CUTOFF = 4.0


def structures() -> list[Atoms]:
    """Two molecules and a crystal with made-up labels."""
    rng, made = np.random.default_rng(0), []
    for k, name in enumerate(["CH3CH2OH", "H2O"]):
        made.append(Atoms(*molecule(name, seed=k)))
    numbers, positions, cell = crystal()
    made.append(Atoms(numbers, positions, cell=cell, pbc=True))
    for k, atoms in enumerate(made):
        labels: dict[str, Any] = {"energy": -100.0 - k, "forces": rng.normal(size=(len(atoms), 3))}
        if atoms.pbc.all():
            labels["stress"] = rng.normal(size=6)
        atoms.calc = SinglePointCalculator(atoms, **labels)
    return made


def arrays() -> dict[str, np.ndarray]:
    """The same in the ragged layout."""
    made = structures()
    return {
        "n_atoms": np.array([len(atoms) for atoms in made]),
        "atomic_numbers": np.concatenate([atoms.numbers for atoms in made]),
        "positions": np.concatenate([atoms.positions for atoms in made]),
        "energy": np.array([atoms.get_potential_energy() for atoms in made]),
        "forces": np.concatenate([atoms.get_forces() for atoms in made]),
        "cell": np.stack([atoms.cell.array for atoms in made]),
        "gdb": np.array([7, 7, 12]),
        "tag": np.array(["M", "C", "M"]),
    }


def written(path: Path, **changes: Any) -> Path:
    data = {name: value for name, value in (arrays() | changes).items() if value is not None}
    np.savez(path, **data)
    return path


PARTS = {"atomic_numbers": np.ones(1, int), "positions": np.zeros((1, 3))}


def labelled(path: Path, comment: str, column: str = "") -> Path:
    """Two hydrogen atoms with this in the comment line, and perhaps a column of vectors."""
    vectors = [" 0.1 0.2 0.3" if column else ""] * 2
    columns = f"Properties=species:S:1:pos:R:3{f':{column}:R:3' if column else ''}"
    path.write_text(f"2\n{columns} {comment}\nH 0 0 0{vectors[0]}\nH 0 0 0.74{vectors[1]}\n")
    return path


@pytest.mark.parametrize("name", ["REF_forces", "force", "dft_forces", "forces_ref"])
def test_forces_under_another_name_are_found_and_said(name: str, tmp_path: Path) -> None:
    path = labelled(tmp_path / "a.extxyz", "energy=-31.0", name)
    with pytest.warns(UserWarning, match=f"forces is read from '{name}'; data.forces_key"):
        frames = read_frames(path)
    assert frames.forces is not None
    assert frames.forces.tolist() == [[0.1, 0.2, 0.3]] * 2
    assert frames.energy.tolist() == [-31.0]


def test_single_frames_in_another_unit_are_warned_of(tmp_path: Path) -> None:
    positions = np.array(arrays()["positions"])
    positions[9:12] *= 2.5
    with pytest.warns(UserWarning, match="1 of 3 frames have no atoms that are bound .the first is frame 1"):
        read_frames(written(tmp_path / "a.npz", positions=positions))


def test_labels_of_an_npz_are_found_by_the_same_names(tmp_path: Path) -> None:
    arrays = {"n_atoms": [1], "atomic_numbers": [2], "positions": np.zeros((1, 3))}
    np.savez(tmp_path / "a.npz", **arrays, dft_energy=[-1.0], REF_forces=np.ones((1, 3)))
    with pytest.warns(UserWarning, match="dft_energy"), pytest.warns(UserWarning, match="REF_forces"):
        frames = read_frames(tmp_path / "a.npz")
    assert (frames.energy.tolist(), frames.forces.tolist()) == ([-1.0], [[1.0] * 3])  # type: ignore[union-attr]
    np.savez(tmp_path / "a.npz", **arrays, energy=[-1.0], push=np.ones((1, 3)))
    with pytest.warns(UserWarning, match="push are not used"):
        assert read_frames(tmp_path / "a.npz").forces is None
    with pytest.raises(DataError, match="'E'"):
        read_frames(tmp_path / "a.npz", LabelKeys(energy="E"))


def test_vectors_that_nothing_uses_are_warned_of_and_can_be_named(tmp_path: Path) -> None:
    path = labelled(tmp_path / "a.extxyz", "u0=-31.0", "pulls")
    with pytest.warns(UserWarning, match="pulls are not used"), pytest.raises(DataError, match="no energies and no"):
        read_frames(path)
    frames = read_frames(path, LabelKeys(energy="u0", forces="pulls"))
    assert (frames.energy.tolist(), frames.forces is not None) == ([-31.0], True)
    with pytest.raises(DataError, match=r"has no 'e' \(data.energy_key\); it has .*u0"):
        read_frames(path, LabelKeys(energy="e"))


def test_forces_alone_are_enough(tmp_path: Path) -> None:
    for frames in (
        read_frames(labelled(tmp_path / "a.extxyz", "", "forces")),
        read_frames(written(tmp_path / "a.npz", energy=None)),
    ):
        assert np.isnan(frames.energy).all()
        assert frames.forces is not None


def test_columns_that_nothing_needs_may_hold_anything(tmp_path: Path) -> None:
    path = written(tmp_path / "a.npz", split=np.array(["train"] * 3), meta=np.array([object()]))
    assert len(read_frames(path)) == 3


def test_a_file_that_unpacks_to_far_more_than_it_can_hold_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("positions.npy", "w") as file:
        shape = (26 * 10**6, 3)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
        for _ in range(624):
            file.write(b"\0" * 10**6)
    np.savez(tmp_path / "rest.npz", n_atoms=np.ones(1, int), atomic_numbers=np.ones(1, int), energy=np.zeros(1))
    with zipfile.ZipFile(tmp_path / "rest.npz") as rest, zipfile.ZipFile(path, "a") as archive:
        for name in rest.namelist():
            archive.writestr(name, rest.read(name))
    tracemalloc.start()
    with pytest.raises(DataError, match="would unpack to"):
        read_frames(path)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def test_npz_round_trip(tmp_path: Path) -> None:
    frames, data = read_frames(written(tmp_path / "data.npz")), arrays()
    assert len(frames) == 3
    for name in ("n_atoms", "atomic_numbers", "positions", "energy", "forces", "cell"):
        assert np.array_equal(getattr(frames, name), data[name]), name
    assert frames.pbc.tolist() == [[False] * 3, [False] * 3, [True] * 3]
    assert frames.group.tolist() == ["7", "7", "12"]
    assert frames.tag.tolist() == ["M", "C", "M"]
    (source,) = frames.sources
    assert source.startswith("data.npz ")
    assert len(source.split()[1]) == 64


def test_npz_without_optional_arrays(tmp_path: Path) -> None:
    path = written(tmp_path / "bare.npz", forces=None, cell=None, gdb=None, tag=None)
    frames = read_frames(path)
    assert frames.forces is None
    assert not frames.pbc.any()
    assert len(set(frames.group)) == 3  # by formula
    assert frames.tag.tolist() == [""] * 3


def test_forces_that_a_frame_does_not_have_are_unknown(tmp_path: Path) -> None:
    frames = read_frames(written(tmp_path / "some.npz", has_forces=np.array([True, False, True])))
    assert frames.forces is not None
    assert np.isnan(frames.forces).all(1).tolist() == [False] * 9 + [True] * 3 + [False] * 5


def test_extxyz_round_trip(tmp_path: Path) -> None:
    path, made = tmp_path / "data.extxyz", structures()
    ase.io.write(path, made)
    frames, data = read_frames(path), arrays()
    for name in ("n_atoms", "atomic_numbers"):
        assert np.array_equal(getattr(frames, name), data[name]), name
    for name in ("positions", "energy", "forces", "cell"):
        assert np.allclose(getattr(frames, name), data[name], atol=1e-7), name
    assert frames.pbc.tolist() == [[False] * 3, [False] * 3, [True] * 3]
    assert frames.stress is not None
    assert np.isnan(frames.stress[:2]).all()
    assert np.allclose(frames.stress[2], made[2].get_stress(voigt=False), atol=1e-7)
    assert len(set(frames.group)) == 3


def test_groups_and_tags_of_extxyz(tmp_path: Path) -> None:
    made = structures()
    for atoms in made:
        atoms.info.update(group="same", tag="hot")
    ase.io.write(tmp_path / "data.extxyz", made)
    frames = read_frames(tmp_path / "data.extxyz")
    assert set(frames.group) == {"same"}
    assert set(frames.tag) == {"hot"}


def junk(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(500))


def cut(path: Path) -> None:
    written(path)
    path.write_bytes(path.read_bytes()[:-300])


BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("absent.npz", lambda path: None, "no such file"),
    ("empty.npz", lambda path: path.touch(), "empty"),
    ("empty.extxyz", lambda path: path.touch(), "empty"),
    ("folder.npz", lambda path: path.mkdir(), "folder"),
    ("junk.npz", junk, "not a readable npz"),
    ("junk.extxyz", junk, "structure 0 should begin"),
    ("cut.npz", cut, "not a readable npz"),
    ("prose.xyz", lambda path: path.write_text("not a structure\nat all\n"), "structure 0 should"),
    ("pickled.npz", lambda path: np.savez(path, n_atoms=np.array([object()]), **PARTS), "not a readable npz"),
    ("lacking.npz", lambda path: written(path, positions=None), "lacks positions"),
    ("short.npz", lambda path: written(path, n_atoms=np.array([9, 3])), "do not fit"),
    ("negative.npz", lambda path: written(path, n_atoms=np.array([-3, 15, 5])), "whole numbers"),
    ("flat.npz", lambda path: written(path, positions=arrays()["positions"][:, :2]), "do not fit"),
    ("forces.npz", lambda path: written(path, forces=arrays()["forces"][:5]), "do not fit"),
    ("cell.npz", lambda path: written(path, cell=np.zeros((2, 3, 3))), "do not fit"),
    ("stress.npz", lambda path: written(path, stress=np.zeros((3, 6))), "do not fit"),
    ("tag.npz", lambda path: written(path, tag=np.array(["M"])), "do not fit"),
    ("text.npz", lambda path: written(path, n_atoms=np.array(["a", "b", "c"])), "not numbers"),
    ("none.npz", lambda path: written(path, **{k: v[:0] for k, v in arrays().items()}), "no structures"),
    ("hollow.npz", lambda path: written(path, n_atoms=np.array([17, 0, 0])), "frame 1 has no atoms"),
    ("nan.npz", lambda path: written(path, positions=with_nan(11)), "frame 1 has NaN"),
    ("inf.npz", lambda path: written(path, positions=with_nan(12, np.inf)), "frame 2 has NaN"),
    ("dummy.npz", lambda path: written(path, atomic_numbers=np.zeros(17, int)), "atomic numbers"),
    ("heavy.npz", lambda path: written(path, atomic_numbers=np.full(17, 999)), "atomic_numbers must"),
    ("half.npz", lambda path: written(path, atomic_numbers=np.full(17, 6.5)), "whole numbers"),
    ("unlabelled.npz", lambda path: written(path, energy=None, forces=None), "no energies and no forces"),
    ("infinite.npz", lambda path: written(path, energy=np.array([0.0, np.inf, 0.0])), "frame 1 has an energy"),
    ("huge.npz", lambda path: written(path, energy=np.array([0.0, 0.0, 1e300])), "frame 2 has an energy"),
    ("wild.npz", lambda path: written(path, forces=np.full((17, 3), 1e9)), "frame 0 has forces"),
    ("twice.npz", lambda path: written(path, positions=np.zeros((17, 3))), "frame 0 has atoms 0.000 Å apart"),
    ("nm.npz", lambda path: written(path, positions=0.3 * arrays()["positions"]), "are positions in nm"),
    ("nm_of_h.npz", lambda path: written(path, positions=0.1 * arrays()["positions"]), "are positions in nm"),
    ("some.npz", lambda path: written(path, forces=some_forces()), "frame 1 has forces of some of its atoms only"),
    ("bohr.npz", lambda path: written(path, positions=2.5 * arrays()["positions"]), "are positions in Bohr"),
    ("word.extxyz", lambda path: labelled(path, 'energy="n/a"'), "frame 0: energy is 'n/a', no number"),
    ("digits.json", lambda path: digits(path), "frame 0: energy is '1111111"),
    ("array.extxyz", lambda path: labelled(path, 'energy="1 2 3"'), r"frame 0: energy has the shape \(3,\)"),
    (
        "two.extxyz",
        lambda path: labelled(path, "dft_energy=1 REF_energy=2"),
        "REF_energy or dft_energy.*data.energy_key",
    ),
    ("flat.extxyz", lambda path: path.write_text('1\npbc="T T T" energy=1\nH 0 0 0\n'), "frame 0: .*no volume"),
    ("unlabelled.xyz", lambda path: ase.io.write(path, Atoms("H2", [[0, 0, 0], [0, 0, 0.7]])), "no energies"),
]


def with_nan(row: int, value: float = np.nan) -> np.ndarray:
    positions = arrays()["positions"]
    positions[row, 1] = value
    return positions


def some_forces() -> np.ndarray:
    forces = np.array(arrays()["forces"])
    forces[11, 1] = np.nan
    return forces


def digits(path: Path) -> None:
    """An energy that no float holds."""
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1]])
    atoms.calc = SinglePointCalculator(atoms, energy=-1.5)
    ase.io.write(path, atoms)
    path.write_text(path.read_text().replace("-1.5", "1" * 400))


@pytest.mark.parametrize(("name", "make", "message"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_broken_files_say_what_is_wrong(
    tmp_path: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        read_frames(tmp_path / name)
    assert name in str(caught.value)


def many_frames(n_groups: int, per_group: int = 3) -> Frames:
    n = n_groups * per_group
    return Frames(
        n_atoms=np.ones(n, np.int64),
        atomic_numbers=np.ones(n, np.int64),
        positions=np.zeros((n, 3)),
        energy=np.arange(n, dtype=float),
        forces=None,
        cell=np.zeros((n, 3, 3)),
        pbc=np.zeros((n, 3), bool),
        stress=None,
        group=np.array([str(k % n_groups) for k in range(n)]),
        tag=np.full(n, ""),
    )


def test_no_group_is_on_two_sides() -> None:
    frames = many_frames(2000)
    sides = assign_split(frames, 0.1, 0.2)
    groups = {side: set(frames.group[sides == side]) for side in ("train", "valid", "test")}
    assert not groups["train"] & groups["valid"]
    assert not groups["train"] & groups["test"]
    assert not groups["valid"] & groups["test"]
    assert len(groups["valid"]) / 2000 == pytest.approx(0.1, abs=0.03)
    assert len(groups["test"]) / 2000 == pytest.approx(0.2, abs=0.03)


def test_groups_keep_their_side_when_data_grows_or_is_shuffled() -> None:
    small, large = many_frames(200), many_frames(2000)
    side_of = dict(zip(large.group, assign_split(large, 0.1, 0.2), strict=True))
    shuffled = small.select(np.random.default_rng(0).permutation(len(small)))
    for group, side in zip(shuffled.group, assign_split(shuffled, 0.1, 0.2), strict=True):
        assert side_of[group] == side


def test_the_split_is_the_same_on_every_machine() -> None:
    """A shipped model's card names its held-out molecules by this rule: it must never change."""
    sides = assign_split(many_frames(12, 1), 0.25, 0.25)
    assert "".join(side[1] for side in sides) == "eereerreaaee"


def test_selection_takes_the_atoms_along(tmp_path: Path) -> None:
    frames = read_frames(written(tmp_path / "data.npz"))
    chosen = frames.select(np.array([2, 0]))
    assert chosen.energy.tolist() == [-102.0, -100.0]
    assert np.array_equal(chosen.positions, np.concatenate([frames.positions[12:], frames.positions[:9]]))
    assert chosen.forces is not None
    assert frames.forces is not None
    assert np.array_equal(chosen.forces[5:], frames.forces[:9])
    assert chosen.starts.tolist() == [0, 5, 14]
    both = concatenate([chosen, frames.select(np.array([1]))])
    assert both.n_atoms.tolist() == [5, 9, 3]
    assert np.array_equal(both.atomic_numbers[14:], frames.atomic_numbers[9:12])


def test_sources_with_and_without_forces_join(tmp_path: Path) -> None:
    with_forces = read_frames(written(tmp_path / "a.npz"))
    without = read_frames(written(tmp_path / "b.npz", forces=None))
    joined = concatenate([without, with_forces])
    assert joined.forces is not None
    assert np.isnan(joined.forces[:17]).all()
    assert np.array_equal(joined.forces[17:], with_forces.forces)
    assert len(joined.sources) == 2


def test_composition_counts_and_refuses_strangers(tmp_path: Path) -> None:
    frames = read_frames(written(tmp_path / "data.npz"))
    assert frames.composition((1, 6, 7, 8)).tolist() == [[6, 2, 0, 1], [2, 0, 0, 1], [2, 1, 1, 1]]
    with pytest.raises(DataError, match="N"):
        frames.composition((1, 6, 8))


def test_ragged_rows_is_a_concatenation_of_ranges() -> None:
    starts, lengths = np.array([4, 0, 7, 7]), np.array([2, 3, 0, 1])
    assert ragged_rows(starts, lengths).tolist() == [4, 5, 0, 1, 2, 7]
    assert ragged_rows(starts[:0], lengths[:0]).tolist() == []


def test_batches_are_the_single_graphs_side_by_side(tmp_path: Path) -> None:
    frames = read_frames(written(tmp_path / "data.npz"))
    batches = FrameBatches(frames, PairTable.build(frames, CUTOFF), torch.float64)
    chosen = [2, 0, 1, 0]
    batch = batches[chosen]
    starts, single = frames.starts, []
    for k in chosen:
        rows = slice(starts[k], starts[k + 1])
        cell = frames.cell[k] if frames.pbc[k].all() else None
        single.append(make_graph(frames.atomic_numbers[rows], frames.positions[rows], CUTOFF, cell))
    expected = Graph.collate(single)
    for name in ("positions", "atomic_numbers", "pairs", "shifts", "cell", "pbc", "batch"):
        assert torch.equal(getattr(batch.graph, name), getattr(expected, name)), name
    assert batch.energy.tolist() == frames.energy[chosen].tolist()
    assert frames.forces is not None
    assert torch.equal(batch.forces[:5], torch.from_numpy(frames.forces[12:]))
    assert torch.equal(batch.graph.pair_vectors(), expected.pair_vectors())
    assert batch.share.tolist() == [1 / 4, 1 / 26]


def test_a_step_is_shared_out_between_processes(tmp_path: Path) -> None:
    frames = read_frames(written(tmp_path / "data.npz"))
    batches = FrameBatches(frames, PairTable.build(frames, CUTOFF), torch.float64)
    parts = [StepBatch(batches, rank, 2)[[0, 1, 2, 1]] for rank in range(2)]
    assert sorted(torch.cat([part.energy for part in parts]).tolist()) == [-102.0, -101.0, -101.0, -100.0]
    for part in parts:
        assert part.share.tolist() == pytest.approx([2 / 4, 2 / 20])


def test_every_pass_sees_every_frame_and_resumes_anywhere() -> None:
    def steps(first: int, seed: int = 3) -> list[list[int]]:
        return list(StepSampler(12, 4, 9, seed, lambda: first))

    whole = steps(0)
    assert len(whole) == 9
    for k in range(3):
        assert sorted(index for step in whole[3 * k : 3 * k + 3] for index in step) == list(range(12))
    assert whole[:3] != whole[3:6]
    assert steps(4) == whole[4:]
    assert steps(0, seed=4) != whole
    assert [len(step) for step in StepSampler(3, 16, 2, 0, lambda: 0)] == [3, 3]


def test_cell_shifts_of_any_size_are_kept() -> None:
    """An atom that was never wrapped, 200 cells away, has the neighbours of its image."""
    cell, n = np.diag([3.0, 30.0, 30.0]), np.array([2])
    positions = np.array([[0.0, 0.0, 0.0], [1.0, 0.5, 0.0]])
    frames = Frames(
        n_atoms=n,
        atomic_numbers=np.array([1, 1]),
        positions=positions,
        energy=np.zeros(1),
        forces=None,
        cell=cell[None],
        pbc=np.array([[True, False, False]]),
        stress=None,
        group=np.array(["a"]),
        tag=np.array([""]),
    )
    away = replace(frames, positions=positions + np.array([[0.0, 0.0, 0.0], [200 * 3.0, 0.0, 0.0]]))
    lengths = []
    for each in (frames, away):
        graph = FrameBatches(each, PairTable.build(each, CUTOFF), torch.float64)[[0]].graph
        lengths.append(graph.pair_vectors().norm(dim=1).sort().values)
    assert torch.allclose(*lengths)


def test_differences_are_taken_before_positions_are_rounded(tmp_path: Path) -> None:
    frames = read_frames(written(tmp_path / "data.npz"))
    far = replace(frames, positions=frames.positions.astype(np.float64) + 4096.0)
    near, there = (
        FrameBatches(each, PairTable.build(frames, CUTOFF), torch.float32)[[0, 1, 2]].graph.pair_vectors()
        for each in (frames, far)
    )
    assert (near - there).abs().max() < 1e-9


@pytest.mark.parametrize("said", [{"charge": 1}, {"total_charge": -1.0}, {"spin": 3}, {"multiplicity": 2}])
@pytest.mark.parametrize("suffix", ["extxyz", "npz"])
def test_charged_frames_and_open_shells_do_not_train_a_neutral_model(
    said: dict[str, float], suffix: str, tmp_path: Path
) -> None:
    structures = []
    for k, name in enumerate(("H2O", "CH4", "NH3")):
        atoms = Atoms(*molecule(name))
        atoms.info |= {"energy": -float(k)} | (said if k == 1 else {"charge": 0, "spin": 1})
        structures.append(atoms)
    path = tmp_path / f"data.{suffix}"
    if suffix == "extxyz":
        ase.io.write(path, structures)
    else:
        charges = [0.0, said.get("charge", said.get("total_charge", 0.0)), 0.0]
        np.savez(
            path,
            n_atoms=[len(atoms) for atoms in structures],
            atomic_numbers=np.concatenate([atoms.numbers for atoms in structures]),
            positions=np.concatenate([atoms.positions for atoms in structures]),
            energy=[-0.0, -1.0, -2.0],
            charge=charges,
            multiplicity=[1, said.get("spin", said.get("multiplicity", 1)), 1],
        )
    frames = read_frames(path)
    with pytest.raises(DataError, match="frame 1: charge"):
        frames.check_closed_shells()
    with pytest.raises(DataError, match="frame 4: charge"):
        concatenate([frames.select(np.array([0, 2, 0])), frames]).check_closed_shells()
    frames.select(np.array([0, 2])).check_closed_shells()


def test_a_frame_without_a_group_leaves_the_others_theirs(tmp_path: Path) -> None:
    structures = [Atoms(*molecule("H2O")) for _ in range(3)]
    for k, atoms in enumerate(structures):
        atoms.info["energy"] = 0.0
        if k != 1:
            atoms.info["group"] = f"run{k}"
    ase.io.write(tmp_path / "d.extxyz", structures)
    assert read_frames(tmp_path / "d.extxyz").group.tolist() == ["run0", "1:2-8:1", "run2"]
