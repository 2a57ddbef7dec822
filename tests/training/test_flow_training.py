"""Flow maps learn, from trajectories and from forces alone; the consistency is the derivative it says."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from flow_maps import random_flow

from egnn_md.checkpoint import load, read_header
from egnn_md.chemistry.units import FS_PER_TIME_UNIT
from egnn_md.data.flow import Segments, SegmentSettings, make_segments
from egnn_md.models.flow import FlowMap
from egnn_md.models.potential import Potential
from egnn_md.training.flow import FlowTask, consistency_errors, flow_errors, state_error
from egnn_md.training.flow_segments import FlowBatches
from egnn_md.training.loop import Resources, train
from egnn_md.training.tasks import load_config

# torch's own forward-mode differentiation still loads what torch calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

CONFIG = """
task = "flow"
[data]
files = ["water.npz"]
valid_fraction = 0.2
test_fraction = 0.2
[model]
hidden_dim = 16
message_dim = 16
n_vectors = 4
n_radial = 6
longest_substep = 2.0
[training]
method = "{method}"
max_steps = 240
batch_size = 8
learning_rate = 1e-2
warmup_steps = 5
ema_decay = 0.8
validate_every = 80
"""


@pytest.fixture
def segments() -> Segments:
    model = load("organic-xtb", dtype=torch.float64)
    assert isinstance(model, Potential)
    water = molecule("H2O")
    settings = SegmentSettings(copies=5, segments=4, length=2.0, equilibration=3.0, between=2.0)
    return make_segments(model, [(water.numbers.astype(np.int64), water.positions)], settings)


@pytest.mark.parametrize("method", ["trajectories", "forces"])
def test_training_lowers_the_error_and_leaves_a_model(method: str, segments: Segments, tmp_path: Path) -> None:
    segments.save(tmp_path / "water.npz")
    (tmp_path / "config.toml").write_text(CONFIG.format(method=method))
    file = train(
        tmp_path / "config.toml", output=tmp_path / "run", resources=Resources(accelerator="cpu", progress=False)
    )
    with (tmp_path / "run" / "log.csv").open() as log:
        errors = [float(row["valid_state_error"]) for row in csv.DictReader(log) if row["valid_state_error"]]
    assert len(errors) == 3
    assert errors[-1] < 0.95 * errors[0]
    model = load(file)
    assert isinstance(model, FlowMap)
    assert [name.split(":")[0] for name in model.config.molecules] == ["H2O"]
    held_out = read_header(file)["held_out"]
    assert held_out["test"].keys() == {"0.5", "1", "1.5", "2"}
    assert held_out["valid"]["2"]["state_error"] < 2.0 * errors[-1]


def test_consistency_is_the_derivative_along_the_flow_and_the_shrinking_substep(segments: Segments) -> None:
    model = random_flow(longest_substep=2.0)
    batch = FlowBatches(segments, model, between=True)[[0, 7, 11]]
    positions, momenta, forces = batch.start
    step = 1e-4 * FS_PER_TIME_UNIT

    def end(sign: float) -> list[torch.Tensor]:
        x = positions + sign * 1e-4 * momenta / batch.masses
        p = momenta + sign * 1e-4 * forces
        return list(model(x, p, batch.species, batch.masses, batch.pairs, batch.substep - sign * step)[:2])

    shift, push = ((after - before) / 2e-4 for after, before in zip(end(1.0), end(-1.0), strict=True))
    torch.testing.assert_close(
        consistency_errors(model, batch).state, state_error(push, shift, batch.masses), rtol=1e-5, atol=1e-6
    )


def test_a_flow_that_is_right_has_no_error(segments: Segments) -> None:
    """Free particles: no kicks, no forces; the state later is free flight."""
    model = random_flow(strength=0.0, longest_substep=2.0)
    flying = segments.select(np.arange(len(segments)))
    time = flying.spacing * np.arange(flying.n_snapshots)[None, :, None]
    flying.velocities[:] = flying.velocities[:, :1]
    flying.positions[:] = flying.positions[:, :1] + flying.velocities * time
    flying.forces[:] = 0.0
    batch = FlowBatches(flying, model)[list(range(12))]
    assert float(flow_errors(model, batch).state.max()) < 5e-3
    assert float(consistency_errors(model, batch).state.max()) < 5e-3
    assert float(flow_errors(model, batch).change.abs().max()) < 1e-9


def test_samples_are_all_pairs_of_snapshots_within_the_longest_substep(segments: Segments) -> None:
    batches = FlowBatches(segments, random_flow(longest_substep=1.0))
    assert len(batches) == len(segments) * (4 + 3)  # five snapshots, neighbours and next neighbours
    whole = batches[list(range(len(batches)))]
    assert set(whole.substep.flatten().tolist()) == {0.5, 1.0}
    parts = [batches[[k]] for k in (0, 8)]
    both = batches[[0, 8]]
    torch.testing.assert_close(both.end[1], torch.cat([part.end[1] for part in parts]))
    assert both.pairs.tolist() == [[0, 0, 1, 3, 3, 4], [1, 2, 2, 4, 5, 5]]


def test_every_molecule_is_on_every_side(tmp_path: Path) -> None:
    model = load("organic-xtb", dtype=torch.float64)
    assert isinstance(model, Potential)
    kinds = [molecule(name) for name in ("H2O", "NH3")]
    settings = SegmentSettings(copies=5, segments=2, length=1.0, equilibration=2.0, between=1.0)
    made = make_segments(model, [(atoms.numbers.astype(np.int64), atoms.positions) for atoms in kinds], settings)
    made.save(tmp_path / "two.npz")
    (tmp_path / "run.toml").write_text(CONFIG.format(method="forces").replace("water.npz", "two.npz"))
    task = FlowTask(load_config(tmp_path / "run.toml"), [tmp_path / "two.npz"])  # type: ignore[arg-type]
    assert list(task.molecules) == sorted(task.molecules)
    sizes = {side: sorted(set(segments.n_atoms.tolist())) for side, segments in task.sides.items()}
    assert sizes == {"train": [3, 4], "valid": [3, 4], "test": [3, 4]}
    copies = {side: sorted(set(segments.copy.tolist())) for side, segments in task.sides.items()}
    assert copies == {"train": [0, 1, 2, 5, 6, 7], "valid": [3, 8], "test": [4, 9]}
