"""Relaxation goes to the minimum, and says when it does not."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from model_systems import Springs, Wells, grid

from egnn_md.dynamics.relax import relax
from egnn_md.dynamics.settings import SettingsError
from egnn_md.dynamics.starting_structures import StructureError


@pytest.mark.parametrize("optimizer", ["auto", "bfgs", "lbfgs", "fire"])
def test_relaxation_finds_the_minimum(optimizer: str) -> None:
    atoms = molecule("CH3CH2OH")
    atoms.calc = Springs(atoms, k=20.0)
    lengths = atoms.get_all_distances()
    atoms.rattle(0.1, seed=1)
    seen = []
    result = relax(atoms, fmax=1e-4, optimizer=optimizer, progress=lambda *values: seen.append(values))  # type: ignore[arg-type]
    assert result.converged
    assert result.fmax <= 1e-4
    assert result.energy < 1e-8 < result.energy_start
    assert atoms.get_all_distances() == pytest.approx(lengths, abs=1e-4)
    assert seen[-1][0] == result.steps


def test_cell_is_relaxed_too() -> None:
    atoms = bulk("Cu", a=3.7)
    atoms.calc = EMT()
    assert relax(atoms, fmax=1e-3).converged
    assert np.abs(atoms.get_stress()).max() > 1e-2  # positions alone do not help
    result = relax(atoms, fmax=1e-3, relax_cell=True)
    assert result.converged
    assert np.abs(atoms.get_stress()).max() < 1e-4
    assert atoms.get_volume() ** (1 / 3) * 4 ** (1 / 3) == pytest.approx(3.59, abs=0.02)


def test_not_converged_is_said() -> None:
    atoms = grid(2)
    atoms.calc = Wells(atoms.positions + 0.5, 1.0)
    result = relax(atoms, fmax=1e-6, steps=1, optimizer="fire")
    assert not result.converged
    assert result.steps == 1
    assert result.fmax > 1e-6


def test_bad_options_and_structures() -> None:
    atoms = grid(2)
    atoms.calc = Wells(atoms.positions, 1.0)
    for options in (
        {"fmax": 0.0},
        {"fmax": float("nan")},
        {"steps": -1},
        {"optimizer": "newton"},
        {"relax_cell": True},
    ):
        with pytest.raises(SettingsError):
            relax(atoms, **options)  # type: ignore[arg-type]
    atoms.calc = Wells(atoms.positions[:2], 1.0)
    with pytest.raises(StructureError):
        relax(atoms)


@pytest.mark.filterwarnings("ignore::egnn_md.predict.ExtrapolationWarning")
def test_what_no_chemistry_has_is_no_result() -> None:
    from egnn_md.calculators import EGNNCalculator
    from egnn_md.dynamics.many import ModelSpec, RelaxWorker

    apart = molecule("CH3OH")
    apart.positions *= 1.8897  # given in Bohr
    near = molecule("CH3OH")
    near.rattle(0.1, seed=0)
    for atoms, broken in ((apart, True), (near, False)):
        atoms.calc = EGNNCalculator("organic-xtb")
        if broken:
            with pytest.raises(StructureError, match="that no chemistry has"):
                relax(atoms, fmax=0.05, steps=3)
        else:
            assert relax(atoms, fmax=0.05).converged
    answers = {}
    apart = molecule("CH3OH")
    apart.positions *= 1.8897
    RelaxWorker(ModelSpec("organic-xtb"), 0.05, 3).open()([(0, apart), (1, near)], answers.__setitem__)
    assert "no chemistry" in answers[0].row["reason"]
    assert answers[1].row["status"] == "ok"
