"""Charges, Coulomb and dispersion at any distance: laws, sums over waves beside sums over pairs, ions in engines."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError

from egnn_md.calculators.ase_calculator import EGNNCalculator
from egnn_md.checkpoint import load, save
from egnn_md.chemistry.units import COULOMB
from egnn_md.dynamics.many import refusal
from egnn_md.graph import Graph
from egnn_md.laws import check_laws
from egnn_md.models import long_range
from egnn_md.models.long_range import Far, FarPairs, FarWaves, LongRange, far_of
from egnn_md.models.potential import Potential
from egnn_md.nn.far_field import WIDTH, charge_potential, dispersion_potential, waves_of
from egnn_md.predict import ChargeError, ExtrapolationWarning, Geometry, Predictor

Make = Callable[..., Potential]
pytestmark = pytest.mark.filterwarnings(f"ignore::{ExtrapolationWarning.__module__}.{ExtrapolationWarning.__name__}")


@pytest.fixture
def charged(random_potential: Make) -> Potential:
    return random_potential(long_range=True, n_tensors=2)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_random_potentials_with_charges_obey(charged: Potential, dtype: str) -> None:
    results = check_laws(Predictor(charged, dtype=dtype), precision=dtype)
    assert len(results) == 14
    assert [result for result in results if not result.holds] == []


@pytest.mark.parametrize("function", [charge_potential, dispersion_potential])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_slopes(function: Callable[..., Any], dtype: torch.dtype) -> None:
    d = torch.linspace(0.3, 12.0, 400, dtype=torch.float64)
    h = 1e-5
    numerical = (function(d + h)[0] - function(d - h)[0]) / (2.0 * h)
    slope = function(d.to(dtype))[1].double()
    tolerance = 1e-7 if dtype == torch.float64 else 1e-4
    assert float((slope - numerical).abs().max() / numerical.abs().max()) < tolerance


def test_far_away_charges_are_points() -> None:
    value = float(charge_potential(torch.tensor([9.0], dtype=torch.float64))[0])
    assert value == pytest.approx(COULOMB / 9.0, rel=1e-6)
    damped = float(dispersion_potential(torch.tensor([12.0], dtype=torch.float64))[0])
    assert damped == pytest.approx(-(12.0**-6), rel=1e-6)


def both_ways(cell: torch.Tensor, x: torch.Tensor, both: torch.Tensor) -> tuple[Any, Any]:
    waves = waves_of(cell)
    index = torch.triu_indices(len(x), len(x), 1)
    pairs = long_range._of_pairs(both, FarPairs(x[index[1]] - x[index[0]], index))
    return long_range._of_waves(both, FarWaves(0, 0, x @ waves.vectors.mT, waves)), pairs


def test_rock_salt() -> None:
    """Madelung's constant, the part that Gaussian charges lack added as a sum over pairs."""
    side = 5.64
    corners = [[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
    x = torch.tensor(corners, dtype=torch.float64) * (side / 2.0)
    both = torch.stack([torch.tensor([1.0] * 4 + [-1.0] * 4), torch.zeros(8)], -1).double()
    waves, _ = both_ways(side * torch.eye(3, dtype=torch.float64), x, both)
    energy = 0.5 * float((both * waves.by_both).sum())
    images = side * torch.cartesian_prod(*[torch.arange(-4.0, 5.0, dtype=torch.float64)] * 3)
    d = (x[None] - x[:, None]).unsqueeze(2) + images
    d = d.norm(dim=-1)
    point = torch.where(d > 1e-9, COULOMB * torch.erfc(d / WIDTH) / d.clamp(min=1e-9), 0.0).sum(-1)
    energy += 0.5 * float(both[:, 0] @ point @ both[:, 0])
    assert energy / 4 * (side / 2.0) / COULOMB == pytest.approx(-1.7475646, abs=1e-6)


def test_dispersion_of_a_crystal_is_the_sum_over_its_images() -> None:
    generator = torch.Generator().manual_seed(0)
    cell = torch.tensor([[7.0, 0.0, 0.0], [1.0, 8.0, 0.0], [0.5, -1.0, 9.0]], dtype=torch.float64)
    x = torch.rand(5, 3, generator=generator, dtype=torch.float64) @ cell
    strength = torch.rand(5, generator=generator, dtype=torch.float64)
    waves, _ = both_ways(cell, x, torch.stack([torch.zeros_like(strength), strength], -1))
    images = torch.cartesian_prod(*[torch.arange(-9.0, 10.0, dtype=torch.float64)] * 3) @ cell
    d = (x[None] - x[:, None]).unsqueeze(2) + images
    d = d.norm(dim=-1)
    psi = torch.where(d > 1e-9, dispersion_potential(d.clamp(min=1e-9))[0], 0.0).sum(-1)
    expected = 0.5 * float(strength @ psi @ strength)
    assert 0.5 * float(strength @ waves.by_both[:, 1]) == pytest.approx(expected, rel=1e-4)  # images end at 60 Å


def test_a_large_cell_is_no_cell(charged: Potential) -> None:
    atoms = molecule("CH3CHO")
    shape = (atoms.positions, atoms.numbers.astype(np.int64))
    potential = Predictor(charged)
    alone = potential(*shape)
    charge, apart = alone.charge or 0.0, []
    for side in (40.0, 80.0):
        boxed = potential(*shape, side * np.eye(3), np.ones(3, np.bool_))
        # a charge and its images on a uniform background; what is left is a quadrupole, and goes with 1/side³
        background = -0.5 * 2.837297 * COULOMB * charge**2 / side
        apart.append(boxed.energy - alone.energy - background)
    assert abs(charge) > 0.1
    assert apart[0] / apart[1] == pytest.approx(8.0, rel=0.02)


def test_rows_are_pairs(charged: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    grid = np.array([(x, y, z) for x in range(4) for y in range(4) for z in range(4)], float)
    geometry = Geometry(1.6 * grid + 0.1 * rng.normal(size=grid.shape), rng.choice([1, 6, 7, 8], len(grid)))
    potential = Predictor(charged)
    expected = potential(*geometry)
    small = Geometry(geometry.positions[:9], geometry.atomic_numbers[:9])
    alone = potential(*small)
    monkeypatch.setattr(long_range, "ROWS_FROM", 20)
    monkeypatch.setattr(long_range, "BLOCK_PAIRS", 64 * 10)
    assert potential(*geometry).forces == pytest.approx(expected.forces, abs=1e-10)
    mixed = potential.many([small, geometry, small])
    assert [result.energy for result in mixed] == pytest.approx([alone.energy, expected.energy, alone.energy], abs=1e-9)


def test_pairs_of_a_batch() -> None:
    counts = torch.tensor([3, 0, 1, 2])
    starts = torch.tensor([0, 3, 3, 5])  # one atom of another structure between
    found = long_range.all_pairs(counts, starts)
    assert found.T.tolist() == [[0, 1], [0, 2], [1, 2], [5, 6]]


def test_slabs_are_refused(charged: Potential) -> None:
    slab = Geometry(np.zeros((1, 3)), np.array([1]), 9.0 * np.eye(3), np.array([True, True, False]))
    with pytest.raises(ValueError, match="periodic in one or two directions"):
        Predictor(charged)(*slab)


def test_a_file_keeps_charges(charged: Potential, tmp_path: Any) -> None:
    save(charged, tmp_path / "charged.safetensors")
    again = load(tmp_path / "charged.safetensors")
    assert isinstance(again, Potential)
    graph = two_ions(charged)
    assert torch.equal(again(graph).charges, charged(graph).charges)


def two_ions(model: Potential) -> Graph:
    x = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 50.0]], dtype=torch.float64)
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    return Graph(
        x,
        torch.tensor([1, 8]),
        nothing,
        None,
        torch.zeros(1, 3, 3),
        torch.zeros(1, 3, dtype=torch.bool),
        torch.zeros(2).long(),
    )


def biased(model: Potential, charge: float) -> Potential:
    """All atoms have this charge."""
    assert isinstance(model.long_range, LongRange)
    last = model.long_range.head[2]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([4.0 * math.atanh(charge / 4.0), 0.0, 0.0]))
    return model


def test_atoms_say_their_charge(charged: Potential) -> None:
    ion = Atoms("OH", [[0, 0, 0], [0, 0, 0.97]])
    calculator = EGNNCalculator(biased(charged, -0.5))
    ion.calc = calculator
    energy = ion.get_potential_energy()  # nothing is said: the structure's own charge
    assert calculator.results["charge"] == pytest.approx(-1.0)
    assert ion.get_charges() == pytest.approx([-0.5, -0.5])
    assert ion.get_dipole_moment() == pytest.approx([0.0, 0.0, -0.5 * 0.97])
    ion.info["charge"] = -1
    assert ion.get_potential_energy() == energy
    ion.info["charge"] = 0
    with pytest.raises(ChargeError, match=r"said to be \+0, but the structure looks like one of -1"):
        ion.get_potential_energy()
    ion.info = {"charge": "minus one"}
    with pytest.raises(ValueError, match="no number"):
        ion.get_potential_energy()
    ion.info = {"multiplicity": 3.0}
    with pytest.raises(ValueError, match="closed shells"):
        ion.get_potential_energy()
    ion.info = {}
    ion.set_initial_charges([-1.0, 1.0])
    with pytest.raises(ChargeError, match="said to be"):
        ion.get_potential_energy()
    ion.set_initial_charges([-1.0, 0.0])
    assert ion.get_potential_energy() == energy
    ion.set_cell(9.0 * np.eye(3))
    ion.pbc = True
    with pytest.raises(PropertyNotImplementedError, match="isolated"):
        ion.get_dipole_moment()


def test_neutral_models_have_no_charges(random_potential: Make) -> None:
    atoms = molecule("H2O")
    atoms.calc = EGNNCalculator(random_potential())
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_charges()
    with pytest.raises(ChargeError, match="neutral structures only"):
        Predictor(random_potential())(atoms.positions, atoms.numbers.astype(np.int64), charge=1.0)


def test_batches_hold_to_their_charges(charged: Potential) -> None:
    ion = Geometry(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.97]]), np.array([8, 1]))
    potential = Predictor(biased(charged, -0.5))
    results = potential.many([ion._replace(charge=-1.0), ion])
    assert [result.charge for result in results] == pytest.approx([-1.0, -1.0])
    with pytest.raises(ChargeError):
        potential.many([ion, ion._replace(charge=1.0)])


def test_charges_that_add_up_to_no_whole_number_are_said(random_potential: Make) -> None:
    predictor = Predictor(biased(random_potential(long_range=True), -0.3))
    positions, numbers = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.97]]), np.array([8, 1])
    with pytest.warns(ExtrapolationWarning, match=r"charges add up to -0\.60 e, which is no whole number"):
        predictor(positions, numbers, charge=-1.0)
    with pytest.raises(ChargeError, match=r"finds -0\.60 e, which is no whole number: it does not know ions like"):
        predictor(positions, numbers, charge=0.0)


def test_a_committee_averages_charges(random_potential: Make) -> None:
    members = [biased(random_potential(seed=k, long_range=True), charge) for k, charge in enumerate((-0.4, -0.6))]
    result = Predictor(members)(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.97]]), np.array([8, 1]))
    assert result.charges == pytest.approx([-0.5, -0.5])
    assert result.charge == pytest.approx(-1.0)


def test_far_of_nothing_periodic(charged: Potential) -> None:
    far = far_of(two_ions(charged), torch.float64)
    assert isinstance(far, Far)
    assert far.pairs is not None
    assert far.pairs.ends.tolist() == [[0], [1]]


def test_the_shipped_model_knows_ions() -> None:
    acetate = molecule("CH3COOH")
    carbon = acetate.positions[acetate.numbers == 6]
    oxygen = np.flatnonzero(acetate.numbers == 8)
    hydrogen = next(k for k in np.flatnonzero(acetate.numbers == 1) if min(acetate.get_distances(k, oxygen)) < 1.1)
    assert len(carbon) == 2
    del acetate[hydrogen]
    acetate.calc = EGNNCalculator("egnn-xtb-4")
    alone = acetate.get_potential_energy()
    assert acetate.calc.results["charge"] == pytest.approx(-1.0, abs=0.2)
    acetate.info["charge"] = 0
    with pytest.raises(ChargeError, match="odd number of electrons"):
        acetate.get_potential_energy()
    acetate.info = {}
    sodium = Atoms("Na", [[300.0, 0.0, 0.0]])
    both = acetate + sodium
    both.calc = EGNNCalculator("egnn-xtb-4")
    together = both.get_potential_energy()
    charges = both.calc.results["charge"]
    assert charges == pytest.approx(0.0, abs=0.3)
    sodium.calc = EGNNCalculator("egnn-xtb-4")
    parts = alone + sodium.get_potential_energy()
    assert together - parts == pytest.approx(-COULOMB / 300.0, abs=0.02)


def test_files_of_many_hold_to_their_charges(charged: Potential) -> None:
    ion = Atoms("OH", [[0, 0, 0], [0, 0, 0.97]])
    model = biased(charged, -0.5)
    assert refusal(model, ion) == ""
    ion.info["charge"] = -1
    assert refusal(model, ion) == ""
    ion.info["charge"] = 0
    assert "looks like one of -1" in refusal(model, ion)
