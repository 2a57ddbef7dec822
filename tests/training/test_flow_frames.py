"""Flow maps learn from single frames of any molecules; the difference is the derivative, the draws are as they say."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from flow_maps import random_flow

from egnn_md.checkpoint import load
from egnn_md.chemistry.units import BOLTZMANN
from egnn_md.data.frame_files import read_frames
from egnn_md.data.frames import DataError
from egnn_md.models.flow import FlowMap, UnknownMolecule
from egnn_md.training.flow import consistency_errors
from egnn_md.training.flow_draws import Drawn, DrawnBatches
from egnn_md.training.flow_frames import FlowFramesTask, difference_errors, known_surroundings
from egnn_md.training.loop import Resources, train
from egnn_md.training.tasks import load_config

# torch's own forward-mode differentiation still loads what torch calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

NAMES = ("CH3OH", "H2O", "CH3CHO", "CH4", "C2H6", "CH3CH2OH")
DRAWN = Drawn(200.0, 400.0, 0.5)
CONFIG = """
task = "flow-frames"
[data]
files = ["frames.npz"]
valid_fraction = 0.3
test_fraction = 0.1
[model]
hidden_dim = 16
message_dim = 16
n_vectors = 4
n_radial = 6
longest_substep = 2.0
[training]
max_steps = 120
batch_size = 6
learning_rate = 1e-2
warmup_steps = 5
ema_decay = 0.8
validate_every = 40
"""


def springs(atoms: Atoms, positions: np.ndarray) -> np.ndarray:
    """Forces (n, 3) eV/Å that pull bound atoms back to their distances."""
    vectors = positions[None] - positions[:, None]
    start = np.linalg.norm(atoms.positions[None] - atoms.positions[:, None], axis=-1)
    length = np.linalg.norm(vectors, axis=-1) + np.eye(len(atoms))
    pull = np.where((start > 0) & (start < 1.7), 20.0 * (length - start), 0.0)
    return np.asarray((pull / length)[..., None] * vectors).sum(1)


def write(path: Path, copies: int, *, by_molecule: bool) -> Path:
    """Frames of all molecules; groups are molecules, or each frame is one of its own."""
    rng, parts = np.random.default_rng(0), []
    for name in NAMES:
        atoms = molecule(name)
        for copy in range(copies):
            positions = atoms.positions + 0.04 * rng.standard_normal((len(atoms), 3))
            group = name if by_molecule else f"{name} {copy}"
            parts.append((atoms.numbers, positions, springs(atoms, positions), group))
    numbers, positions, forces, group = zip(*parts, strict=True)
    np.savez(
        path,
        n_atoms=[len(z) for z in numbers],
        atomic_numbers=np.concatenate(numbers),
        positions=np.concatenate(positions).astype(np.float32),
        forces=np.concatenate(forces).astype(np.float32),
        energy=np.zeros(len(numbers)),
        group=np.array(group),
    )
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "frames.npz", 4, by_molecule=True)


def test_the_difference_is_the_derivative(file: Path) -> None:
    model = random_flow(longest_substep=2.0)
    batch = DrawnBatches(read_frames(file), model, DRAWN)[[3, 200, 1000]]
    exact = consistency_errors(model, batch)
    torch.testing.assert_close(difference_errors(model, batch, 0.003).state, exact.state, rtol=1e-3, atol=1e-4)
    coarse, fine = (float((difference_errors(model, batch, h).state - exact.state).abs().max()) for h in (0.1, 0.05))
    assert fine < 0.5 * coarse or coarse < 1e-4
    torch.testing.assert_close(difference_errors(model, batch, 0.003).change, exact.change, rtol=1e-2, atol=1e-3)


def test_free_particles_have_no_error(file: Path) -> None:
    frames = read_frames(file)
    assert frames.forces is not None
    frames.forces[:] = 0.0
    model = random_flow(strength=0.0, longest_substep=2.0)
    errors = difference_errors(model, DrawnBatches(frames, model, DRAWN)[[0, 65, 130]])
    assert float(errors.state.max()) < 5e-3
    assert float(errors.change.abs().max()) < 1e-9


def test_a_sample_depends_on_its_number_alone(file: Path) -> None:
    batches = DrawnBatches(read_frames(file), random_flow(longest_substep=2.0), DRAWN)
    both, parts = batches[[70, 321]], [batches[[k]] for k in (70, 321)]
    for name in ("species", "masses", "substep", "energy"):
        torch.testing.assert_close(getattr(both, name), torch.cat([getattr(part, name) for part in parts]))
    torch.testing.assert_close(both.start[1], torch.cat([part.start[1] for part in parts]))
    assert not torch.equal(batches[[70]].start[1], batches[[71]].start[1])


def test_draws_are_thermal_and_some_hydrogens_are_heavy(file: Path) -> None:
    frames = read_frames(file)
    batches = DrawnBatches(frames, random_flow(longest_substep=2.0), Drawn(300.0, 300.0, 0.5))
    batch = batches[list(range(len(batches)))]
    kelvin = (batch.start[1].square() / batch.masses).mean() / BOLTZMANN
    assert float(kelvin) == pytest.approx(300.0, rel=0.02)
    light = batch.masses[batch.species == 0]
    assert set(light.flatten().round(decimals=2).tolist()) == {1.01, 2.01}
    assert 0.2 < float((light > 2).double().mean()) < 0.3
    assert 0.2 <= float(batch.substep.min()) < 0.3
    assert 1.9 < float(batch.substep.max()) <= 2.0


def test_training_lowers_the_error_and_leaves_a_map_that_knows_its_like(tmp_path: Path) -> None:
    write(tmp_path / "frames.npz", 40, by_molecule=False)
    (tmp_path / "config.toml").write_text(CONFIG)
    quiet = Resources(accelerator="cpu", progress=False)
    found = train(tmp_path / "config.toml", output=tmp_path / "run", resources=quiet)
    with (tmp_path / "run" / "log.csv").open() as log:
        errors = [float(row["valid_state_error"]) for row in csv.DictReader(log) if row["valid_state_error"]]
    assert len(errors) == 3
    assert errors[-1] < 0.95 * errors[0]
    model = load(found)
    assert isinstance(model, FlowMap)
    assert not model.config.molecules
    ethane, ether = molecule("C2H6"), molecule("CH3OCH3")
    model.check_molecule(ethane.numbers, ethane.positions)
    with pytest.raises(UnknownMolecule, match=r"O\(CC\)"):
        model.check_molecule(ether.numbers, ether.positions)


def test_the_sides_share_no_molecule(file: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    task = FlowFramesTask(load_config(tmp_path / "config.toml"), [file])  # type: ignore[arg-type]
    groups = [set(side.group.tolist()) for side in task.sides.values()]
    assert sum(map(len, groups)) == len(set().union(*groups)) == len(NAMES)


def test_surroundings_of_a_few_molecules_are_known_and_those_of_one_in_many_are_not(file: Path) -> None:
    frames = read_frames(file)
    assert "O(HH)" in known_surroundings(frames)
    one_water = np.array([k for k in range(len(frames)) if frames.group[k] != "H2O"] + [4])
    many = replace(frames.select(one_water), group=np.arange(len(one_water)).astype(str))
    assert {"H(C)", "H(O)", "C(CHHH)"} <= set(known_surroundings(many))
    assert "O(HH)" not in known_surroundings(many)


def test_frames_without_forces_are_refused(file: Path, tmp_path: Path) -> None:
    with np.load(file) as data:
        arrays = {name: data[name] for name in data.files if name != "forces"}
    np.savez(tmp_path / "bare.npz", **arrays)
    (tmp_path / "config.toml").write_text(CONFIG)
    with pytest.raises(DataError, match="forces"):
        FlowFramesTask(load_config(tmp_path / "config.toml"), [tmp_path / "bare.npz"])  # type: ignore[arg-type]
