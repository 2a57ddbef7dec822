"""What the labelling recipe must keep: forces, the split, contacts where they are said to be, resumption."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tblite")
pytest.importorskip("rdkit")

SMILES = ["CCO", "CC(N)=O", "CS", "C[NH3+]", "CC(=O)[O-]", "O", "CCl", "C=O", "NC=O", "OO", "CSSC", "CCCC(=O)O"]


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    names = ("_contacts", "_gfn2", "_merge", "_molecules", "_motion", "label_organics")
    modules: dict[str, ModuleType] = {name.lstrip("_"): __import__(name) for name in names}
    return SimpleNamespace(**modules)


@pytest.fixture
def sources(recipes: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    path = tmp_path / "molecules.smi"
    path.write_text("".join(f"{smiles}\tmade up\n" for smiles in SMILES))
    train = recipes.molecules.read_smiles(path, frozenset(), testing=False)
    test = recipes.molecules.read_smiles(path, frozenset(), testing=True)
    water = [piece for piece in train + test if piece.smiles == "O"]
    ions = recipes.contacts.polyatomic_ions()

    def draw(rng: np.random.Generator, largest: int = 99) -> object:
        return train[rng.integers(len(train))]

    return SimpleNamespace(path=path, train=train, test=test, small=train, water=water, ions=ions, draw=draw)


def test_forces_are_the_slope_of_the_energy_and_charges_add_up_to_the_charge(recipes: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    numbers, positions = np.array([8, 1, 1, 1, 17]), np.zeros((5, 3))
    positions[1:4] = np.array([[0.95, 0.0, 0.25], [-0.45, 0.82, 0.25], [-0.45, -0.82, 0.25]])
    positions[4] = (0.1, 0.2, 3.0)
    positions += 0.02 * rng.normal(size=positions.shape)
    teacher = recipes.gfn2.Teacher(numbers, 0)
    label = teacher(positions)
    step = np.zeros_like(positions)
    step[2, 1] = 1e-3
    slope = (teacher(positions + step).energy - teacher(positions - step).energy) / 2e-3
    assert label.forces[2, 1] == pytest.approx(-slope, abs=1e-4)
    assert recipes.gfn2.Teacher(numbers[:4], 1)(positions[:4]).charges.sum() == pytest.approx(1.0, abs=1e-5)


def test_a_radical_pair_and_a_clash_are_dropped_with_their_reasons(recipes: SimpleNamespace) -> None:
    hydrogen = recipes.gfn2.Teacher(np.array([1, 1]), 0)
    with pytest.raises(recipes.gfn2.Dropped, match="gap"):
        hydrogen(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 6.0]]))
    with pytest.raises(recipes.gfn2.Dropped, match="force"):
        hydrogen(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.25]]))


def test_a_molecule_is_on_one_side_of_the_split_and_an_excluded_one_on_none(
    recipes: SimpleNamespace, sources: SimpleNamespace
) -> None:
    train, test = ({piece.group for piece in side} for side in (sources.train, sources.test))
    assert len(train) + len(test) == len(SMILES)
    assert not train & test
    molecule = recipes.molecules.conformer("CSSC", np.random.default_rng(0))
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    excluded = recipes.molecules.skeletons([numbers], [molecule.GetConformer().GetPositions()])
    left = [
        piece.group
        for testing in (False, True)
        for piece in recipes.molecules.read_smiles(sources.path, excluded, testing=testing)
    ]
    assert set(left) == (train | test) - {"CSSC"}


def test_docked_fragments_touch_at_the_contact_asked_for(recipes: SimpleNamespace, sources: SimpleNamespace) -> None:
    rng = np.random.default_rng(1)
    first = recipes.contacts.fragments(sources.train[0], 1, rng)[0]
    approach = recipes.contacts.dock(first, recipes.contacts.monatomic("Na"), rng)
    for contact in (0.7, 1.0, 2.0):
        pair = approach.at(contact)
        distances = np.linalg.norm(pair.positions[:-1] - pair.positions[-1], axis=1)
        assert (distances / (pair.radii[:-1] + pair.radii[-1])).min() == pytest.approx(contact, abs=0.03)
    assert pair.charge == 1


def test_a_torsion_is_labelled_about_the_angle_it_was_set_to(recipes: SimpleNamespace) -> None:
    molecule = recipes.molecules.conformer("OO", np.random.default_rng(0))
    field = recipes.molecules.ForceField(molecule, torsion=(2, 0, 1, 3, 20.0))
    field.minimum()
    positions = field.minimum()
    plane = np.cross(positions[2] - positions[0], positions[1] - positions[0])
    other = np.cross(positions[0] - positions[1], positions[3] - positions[1])
    angle = np.degrees(np.arccos(abs(plane @ other) / np.linalg.norm(plane) / np.linalg.norm(other)))
    assert angle == pytest.approx(20.0, abs=3.0)


def test_a_chunk_made_again_is_the_same_and_one_that_is_there_is_not_made_again(
    recipes: SimpleNamespace, sources: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    organics = recipes.label_organics
    jobs, _ = organics.KINDS["distortions"]
    monkeypatch.setitem(organics.KINDS, "distortions", (jobs, 8))
    (tmp_path / "parts").mkdir()
    for folder in (tmp_path / "parts", tmp_path):
        organics.label_chunk(folder, "distortions", 5, sources)
    organics.label_chunk(tmp_path / "parts", "distortions", 5, sources)
    parts = sorted((tmp_path / "parts").iterdir())
    assert [part.name for part in parts] == ["distortions-5-0000.npz", "distortions-5-0001.npz"]
    first, again, second = (np.load(path) for path in (parts[0], tmp_path / parts[0].name, parts[1]))
    np.testing.assert_array_equal(first["positions"], again["positions"])
    np.testing.assert_allclose(first["energy"], again["energy"], atol=1e-6)
    assert not np.array_equal(first["positions"][:3], second["positions"][:3])
    recipes.merge.merge(tmp_path)
    with np.load(tmp_path / "train.npz") as merged:
        assert len(merged["n_atoms"]) == len(first["n_atoms"]) + len(second["n_atoms"])
        assert merged["n_atoms"].sum() == len(merged["forces"]) == len(merged["charges"])


def test_small_molecules_keep_their_group_and_those_for_testing_are_dropped(recipes: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    frames = [item for item in recipes.motion.scaled("[O-]C=O", rng) if isinstance(item, recipes.gfn2.Frame)]
    assert {(frame.group, frame.charge, len(frame.numbers)) for frame in frames} == {("O=C[O-]", -1, 4)}
    testing = next(s for s in ("C" * n for n in range(1, 99)) if recipes.molecules.for_testing(s))
    with pytest.raises(recipes.gfn2.Dropped, match="for testing"):
        next(iter(recipes.motion.scaled(testing, rng)))


def test_bound_pairs_come_with_their_pieces(recipes: SimpleNamespace, sources: SimpleNamespace) -> None:
    jobs = iter(recipes.label_organics.KINDS["bound"][0](sources, np.random.default_rng(1), 0))
    frames = []
    while len(frames) < 5:
        frames = [item for item in next(jobs)() if isinstance(item, recipes.gfn2.Frame)]
    assert [frame.tag for frame in frames] == ["bound"] * 3 + ["alone"] * 2
    assert frames[0].charge == frames[3].charge + frames[4].charge
    assert frames[0].group == f"{frames[3].group}.{frames[4].group}"
    assert len(frames[0].numbers) == len(frames[3].numbers) + len(frames[4].numbers)
