"""Sums of bond orders: what broken chemistry looks like."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from egnn_md.calculators import EGNNCalculator
from egnn_md.chemistry.units import ANGSTROM_PER_BOHR
from egnn_md.distill.start import conformers
from egnn_md.nn.ends import Ends
from egnn_md.nn.radial import distance
from egnn_md.nn.valences import TOLERANCE, Valences, stranger
from egnn_md.predict import EXTRAPOLATION_LIMIT, ExtrapolationWarning, Geometry, PredictionError, Predictor

ELEMENTS = (1, 6, 7, 8, 9)


def stretched(name: str, i: int, j: int, length: float) -> Atoms:
    """A molecule whose atom j, and all on its side of the bond, is at `length` Å from atom i."""
    atoms = molecule(name)
    axis = atoms.positions[j] - atoms.positions[i]
    axis /= np.linalg.norm(axis)
    side = (atoms.positions - atoms.positions[[i, j]].mean(0)) @ axis > 0
    atoms.positions[side] += axis * (length - atoms.get_distance(i, j))
    return atoms


def times(name: str, factor: float) -> Atoms:
    atoms = molecule(name)
    atoms.positions *= factor
    return atoms


BROKEN = {
    "read as Å, given in Bohr": times("CH3OH", 1 / ANGSTROM_PER_BOHR),
    "N2, ten times": times("N2", 10.0),
    "a lone carbon": Atoms("C", [[0, 0, 0]]),
    "a lone hydrogen far away": Atoms("H", [[20, 0, 0]]) + molecule("H2O"),
    "ethane, its C-C bond at 3 Å": stretched("C2H6", 0, 1, 3.0),
    "water, one O-H bond at 1.6 Å": stretched("H2O", 0, 1, 1.6),
    "methyl": molecule("CH3"),
    "CH2": molecule("CH2_s1A1d"),
    "hydroxyl": molecule("OH"),
}
WHOLE = "CH4 C2H2 C2H4 C6H6 CH3OH H2O H2O2 NH3 N2 HCN CO2 CH3NO2 bicyclobutane HCF3 C3H4_C3v".split()


@pytest.fixture(scope="module", params=["organic-xtb", "egnn-xtb-0"])
def shipped(request: pytest.FixtureRequest) -> Predictor:
    """Files from before there were such ranges."""
    return Predictor(request.param, closest=0.0, compile=False)


@pytest.mark.parametrize("what", BROKEN)
def test_broken_chemistry_is_flagged(what: str, shipped: Predictor) -> None:
    atoms = BROKEN[what]
    with pytest.warns(ExtrapolationWarning, match="unlike the training data"):
        assert shipped.fork()(atoms.positions, atoms.numbers).extrapolation > EXTRAPOLATION_LIMIT


@pytest.mark.parametrize("name", WHOLE)
def test_whole_molecules_keep_the_signal_of_their_features(name: str, shipped: Predictor) -> None:
    atoms = molecule(name)
    model = shipped.models[0]
    kept = model.valences.ranges.clone()
    signal = shipped(atoms.positions, atoms.numbers).extrapolation
    model.valences.ranges.copy_(torch.tensor([-1e3, 1e3]))
    features_alone = shipped(atoms.positions, atoms.numbers).extrapolation
    model.valences.ranges.copy_(kept)
    assert signal == features_alone < EXTRAPOLATION_LIMIT


@pytest.mark.parametrize("model", ["organic-xtb", "egnn-xtb-0"])
def test_absurd_energies_are_refused(model: str) -> None:
    predictor, methane = Predictor(model, compile=False), molecule("CH4")
    with pytest.raises(PredictionError, match=r"absurd energy: atom \d \([CH]\) has .* beyond|not finite"):
        predictor(methane.positions, methane.numbers, np.eye(3), np.ones(3, dtype=bool))
    packed = times("CH4", 0.35)
    with pytest.raises(PredictionError, match=r"absurd energy: atom \d \([CH]\) has .* Are its units Å"):
        predictor.many([Geometry(packed.positions, packed.numbers)])


def test_the_sum_counts_bonds() -> None:
    valences = Valences(ELEMENTS)
    for name, atom, expected in (("CH4", 0, 4), ("C2H4", 0, 4), ("H2O", 0, 2), ("NH3", 0, 3), ("HCF3", 2, 1)):
        atoms = molecule(name)
        vectors = torch.tensor(atoms.positions[None] - atoms.positions[:, None])
        index = torch.triu_indices(len(atoms), len(atoms), 1)
        species = torch.tensor([ELEMENTS.index(z) for z in atoms.numbers])
        kinds = species[index[0]] * len(ELEMENTS) + species[index[1]]
        sums = valences.double().sums(distance(vectors[index[0], index[1]]), kinds, Ends(index, len(atoms))).exp()
        assert sums[atom] == pytest.approx(expected, rel=0.1)


def test_training_widens_the_ranges_and_knows_elements_without_any() -> None:
    valences = Valences((6, 26)).double()
    nowhere = torch.zeros(2, 0, dtype=torch.int64)
    alone = (torch.zeros(0, 1, dtype=torch.float64), nowhere[0], Ends(nowhere, 1), torch.tensor([1]))
    assert torch.isnan(valences(*alone)).all()
    sums = torch.cat([torch.full((5000,), math.log(2.0)), torch.tensor([math.nan] * 3), torch.linspace(1.8, 2.0, 5000)])
    species = torch.tensor([0] * 5003 + [1] * 5000)
    valences.fit(sums, species)
    low, high = valences.ranges.exp()[0].tolist()
    assert (low, high) == (pytest.approx(2.0), pytest.approx(5.4))  # and the table's 5.4
    assert valences.ranges[1].tolist() == pytest.approx([1.8, 2.0], abs=1e-3)
    away = valences(*alone)
    assert away.item() == pytest.approx((1.8 - math.log(1e-3)) / TOLERANCE, rel=1e-3)


def test_nothing_known_of_features_hides_no_broken_bond() -> None:
    unfamiliar = torch.tensor([math.nan, math.nan, 0.5, 3.0])
    strain = torch.tensor([7.0, -1.0, math.nan, 2.0])
    combined = stranger(unfamiliar, strain)
    assert combined[[0, 2, 3]].tolist() == [7.0, 0.5, 3.0]
    assert math.isnan(combined[1])


@pytest.mark.filterwarnings("error::egnn_md.predict.ExtrapolationWarning")
@pytest.mark.parametrize(
    "smiles",
    [
        *(
            "[NH4+]",
            "C[NH3+]",
            "C[NH+](C)C",
            "C[N+](C)(C)C",
            "[OH3+]",
            "[OH-]",
            "CC(=O)[O-]",
            "C[S-]",
            "[Cl-]",
            "[Na+]",
        ),
        *("c1cc[nH+]cc1", "NC(=[NH2+])N", "c1ccccc1[O-]", "CS(=O)(=O)[O-]", "[O-]C(=O)C[NH3+]", "CN1CCCC1c1cccnc1"),
    ],
)
def test_common_ions_are_known_to_the_newest_model(smiles: str) -> None:
    pytest.importorskip("rdkit")
    atoms = conformers(smiles, 1)[0]
    atoms.calc = EGNNCalculator("egnn-xtb")
    atoms.get_potential_energy()
    assert atoms.calc.results["extrapolation"] < 1.2
    assert atoms.calc.expected_force_error(atoms.calc.results["extrapolation"]) < 1.0  # eV/Å


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inference_mode_changes_nothing(dtype: torch.dtype) -> None:
    valences, random = Valences((1, 6, 7, 26)).to(dtype), torch.Generator().manual_seed(0)
    vectors = 2.0 * torch.randn(60, 3, generator=random, dtype=dtype)
    index = torch.randint(7, (2, 60), generator=random)
    index[:, (index == 6).any(0)] = 0  # an atom without neighbours
    species = torch.tensor([0, 1, 2, 3, 1, 0, 1])
    unfamiliar = torch.tensor([0.1, math.nan, 5.0, math.nan, 0.0, 2.0, 0.3], dtype=dtype)
    pairs = (distance(vectors), species[index[0]] * 4 + species[index[1]], Ends(index, 7), species)
    expected = valences(*pairs)
    with torch.inference_mode():
        found = valences(*pairs)
        combined = stranger(unfamiliar, found)
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    assert torch.isnan(expected[3])
    torch.testing.assert_close(found.clone(), expected, equal_nan=True, **tolerance)
    torch.testing.assert_close(combined.clone(), stranger(unfamiliar, expected), equal_nan=True, **tolerance)
