"""Many molecules' strides as one batch: each moves as alone, and what strides conserve is conserved for each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import molecule
from flow_maps import moving, random_flow

from egnn_md.chemistry.units import BOLTZMANN
from egnn_md.dynamics import FlowDynamics
from egnn_md.dynamics.flow_many import ManyStrides
from egnn_md.dynamics.flow_worker import RolloutWorker
from egnn_md.dynamics.settings import MDSettings, SettingsError
from egnn_md.jobs.chunks import Answer

NAMES = ("CH3CH2OH", "H2O", "CH3CHO", "CH4")


def test_each_moves_as_alone() -> None:
    model = random_flow(strength=0.3)
    together = ManyStrides([moving(name, seed=k) for k, name in enumerate(NAMES)], model, 7.0)
    together.run(6)
    for k, (name, frame) in enumerate(zip(NAMES, together.frames(), strict=True)):
        alone = moving(name, seed=k)
        FlowDynamics(alone, model, 7.0).run(6)
        np.testing.assert_allclose(frame.positions, alone.positions, atol=1e-9)
        np.testing.assert_allclose(frame.get_momenta(), alone.get_momenta(), atol=1e-9)
        assert float(together.energy[k]) == pytest.approx(alone.get_potential_energy(), abs=1e-8)


def test_momenta_and_angular_momenta_are_conserved() -> None:
    structures = [moving(name, seed=k) for k, name in enumerate(NAMES)]
    many = ManyStrides(structures, random_flow(strength=0.3), 10.0)
    many.run(20)
    for before, after in zip(structures, many.frames(), strict=True):
        np.testing.assert_allclose(after.get_momenta().sum(0), before.get_momenta().sum(0), atol=1e-10)
        np.testing.assert_allclose(
            np.cross(after.positions, after.get_momenta()).sum(0),
            np.cross(before.positions, before.get_momenta()).sum(0),
            atol=1e-8,
        )


def test_the_filter_keeps_the_temperature_of_each_kind() -> None:
    """A nonsense flow with a filter: momenta stay thermal, and some strides fail."""
    model = random_flow(strength=0.05)
    many = ManyStrides([moving("H2O", seed=k) for k in range(200)], model, 5.0, temperature_K=300.0, friction=50.0)
    many.run(30)
    kelvin = []
    for _ in range(10):
        many.run(2)
        kelvin.append(float((many.momenta.square() / many.masses).mean()) / BOLTZMANN)
    assert np.mean(kelvin) == pytest.approx(300.0, rel=0.05)
    assert 0 < int(many.accepted.sum()) < many.n_steps * many.n_molecules


def test_strides_that_are_not_finite_are_taken_back() -> None:
    model = random_flow(strength=0.1)
    many = ManyStrides([moving("H2O"), moving("CH4")], model, 5.0, temperature_K=300.0)
    many.momenta[:3] = torch.nan
    many.run(1)
    assert int(many.accepted[0]) == 0
    assert torch.isfinite(many.positions).all()


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SettingsError, match="stride"):
        ManyStrides([molecule("H2O")], random_flow(), 0.01)
    with pytest.raises(SettingsError, match="thermostat"):
        ManyStrides([molecule("H2O")], random_flow(), 5.0, energy_filter=True)


def test_the_worker_answers_for_each_structure() -> None:
    settings = MDSettings(ensemble="nvt", temperature=300.0, timestep=10.0, steps=6, interval=3, format="extxyz")
    answers: dict[int, Answer] = {}
    structures = [molecule("CH3CH2OH"), molecule("CH4"), molecule("CH3CH2OH")]
    RolloutWorker("ethanol-flow", settings).open()(list(enumerate(structures)), answers.__setitem__)
    assert "moves C2H6O" in answers[1].row["reason"]
    for k in (0, 2):
        assert [frame.info["step"] for frame in answers[k].frames] == [0, 3, 6]
        assert answers[k].row["status"] == "ok"
        assert 0.0 <= answers[k].row["accepted"] <= 1.0
    assert not np.allclose(answers[0].frames[-1].positions, answers[2].frames[-1].positions)
