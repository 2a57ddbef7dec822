"""The law suite: our potentials obey, and each broken law is noticed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from egnn_md.laws import check_laws
from egnn_md.models.potential import Potential
from egnn_md.models.terms import System, TermResult
from egnn_md.predict import ExtrapolationWarning, Geometry, Predictor

Make = Callable[..., Potential]
pytestmark = pytest.mark.filterwarnings(f"ignore::{ExtrapolationWarning.__module__}.{ExtrapolationWarning.__name__}")


@pytest.mark.parametrize("n_tensors", [0, 4])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_random_potentials_obey(random_potential: Make, n_tensors: int, dtype: str) -> None:
    results = check_laws(Predictor(random_potential(n_tensors=n_tensors), dtype=dtype), precision=dtype)
    assert len(results) == 14
    assert [result for result in results if not result.holds] == []


class Broken:
    """A potential whose results are spoilt."""

    def __init__(self, potential: Predictor, spoil: Callable[[Any, Geometry], Any]) -> None:
        self.potential, self.spoil = potential, spoil
        self.cutoff, self.elements = potential.cutoff, potential.elements

    def __call__(self, *structure: Any, stress: bool = False) -> Any:
        return self.spoil(self.potential(*structure, stress=stress), Geometry(*structure))

    def many(self, structures: Sequence[Geometry], *, stress: bool = False) -> list[Any]:
        return [self(*structure, stress=stress) for structure in structures[::-1]][::-1]


def forces(change: Callable[[Any, Geometry], Any]) -> Callable[[Any, Geometry], Any]:
    return lambda result, structure: replace(result, forces=change(result.forces, structure))


SPOILT: dict[str, Callable[[Any, Geometry], Any]] = {
    "turn": forces(lambda f, s: f * np.array([1.0, 1.0, 1.01])),
    "order": forces(lambda f, s: f * (1.0 + 0.01 * np.arange(len(f))[:, None])),
    "gradient": forces(lambda f, s: 1.001 * f),
    "strain": lambda r, s: r if r.stress is None else replace(r, stress=1.01 * r.stress),
    "wrapped": forces(lambda f, s: f * (1.0 + 1e-3 * np.abs(s.positions).max())),
    "adds up": lambda r, s: replace(r, energy=r.energy + 1e-3 * len(s.atomic_numbers) ** 2),
    "cutoff": forces(lambda f, s: f + (len(f) == 2 and np.ptp(s.positions) < 4.0)),
    "momenta": forces(lambda f, s: f + 0.01),
}


@pytest.mark.parametrize("law", SPOILT)
def test_each_broken_law_is_noticed(random_potential: Make, law: str) -> None:
    results = check_laws(Broken(Predictor(random_potential(cutoff=4.0)), SPOILT[law]))
    assert any(law in result.law and not result.holds for result in results)


def test_a_batch_that_mixes_its_structures_is_noticed(random_potential: Make) -> None:
    class Mixed(Broken):
        def many(self, structures: Sequence[Geometry], *, stress: bool = False) -> list[Any]:
            return super().many(structures, stress=stress)[::-1]

    results = check_laws(Mixed(Predictor(random_potential()), lambda result, _: result))
    assert [result.law for result in results if not result.holds] == [
        "a batch is its structures (molecule)",
        "a batch is its structures (crystal)",
    ]


class Restraint:
    """½ k (d - d0)² between the first two atoms of the only structure."""

    def __init__(self, virial: bool) -> None:
        self.virial = virial

    def __call__(self, system: System) -> TermResult:
        graph = system.graph
        assert graph is not None
        x = graph.positions
        r = x[1] - x[0]
        d = r.norm()
        energies, by_position = torch.zeros(len(x), dtype=torch.float64), torch.zeros_like(x)
        energies[:2] = 0.25 * 7.0 * (d - 1.9) ** 2
        by_position[1] = 7.0 * (d - 1.9) * r / d
        by_position[0] = -by_position[1]
        virial = torch.outer(r, by_position[1]).unsqueeze(0) if self.virial else None
        return TermResult(energies, by_position=by_position, virial=virial)


def test_an_added_term_counts_in_energy_forces_and_stress(random_potential: Make) -> None:
    model = random_potential()
    restrained, plain = Predictor(model, terms=[Restraint(virial=True)]), Predictor(model)
    structure = Geometry(
        np.array([[0.0, 0, 0], [1.2, 0, 0], [0, 1.3, 0]]), np.array([8, 1, 1]), 6.0 * np.eye(3), np.ones(3, np.bool_)
    )
    assert restrained(*structure).energy - plain(*structure).energy == pytest.approx(3.5 * 0.7**2)
    size = 1e-4
    strain = np.array([[0.3, 0.1, 0], [0.1, -0.2, 0.4], [0, 0.4, 0.5]])
    ends = [
        restrained(structure.positions @ f, structure.atomic_numbers, structure.cell @ f, structure.pbc).energy
        for f in (np.eye(3) + size * strain, np.eye(3) - size * strain)
    ]
    stress = restrained(*structure, stress=True).stress
    assert stress is not None
    assert (ends[0] - ends[1]) / (2 * size * 6.0**3) == pytest.approx(float((stress * strain).sum()), rel=1e-5)
    forces = restrained(*structure).forces - plain(*structure).forces
    assert forces[0, 0] == pytest.approx(7.0 * (1.2 - 1.9), rel=1e-12)
    assert Predictor(model, terms=[Restraint(virial=False)])(*structure, stress=True).stress is None  # not known


def test_terms_of_a_model_in_memory_are_not_dropped_silently(random_potential: Make) -> None:
    model = random_potential()
    model.terms.append(Restraint(virial=True))
    with pytest.raises(ValueError, match=r"terms=\["):
        Predictor(model)


def test_the_programs_default_dtype_and_modes_change_nothing(random_potential: Make, checkpoint_file: Any) -> None:
    """bfloat16 as the host's default, inference mode while loading, autocast while calling."""
    water = Geometry(np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]), np.array([8, 1, 1]))
    expected = Predictor(checkpoint_file)(*water)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            odd = Predictor(checkpoint_file)
            found = odd(*water)
    finally:
        torch.set_default_dtype(torch.float32)
    for result in (found, odd(*water)):
        assert result.energy == expected.energy
        assert np.array_equal(result.forces, expected.forces)
        assert result.extrapolation == expected.extrapolation


def test_an_unknown_extrapolation_hides_no_other(random_potential: Make) -> None:
    """A committee member without statistics; an element without."""
    plain, bare, strange = random_potential(), random_potential(seed=1), random_potential()
    bare.familiarity.mean.fill_(torch.nan)
    strange.familiarity.mean[0] = torch.nan
    water = Geometry(np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]), np.array([8, 1, 1]))
    expected = Predictor(plain)(*water).extrapolation
    assert np.isnan(Predictor(bare)(*water).extrapolation)
    assert Predictor([bare, plain])(*water).extrapolation == expected
    assert np.isfinite(Predictor(strange)(*water).extrapolation)
