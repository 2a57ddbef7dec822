"""Laws of the training loop: it learns; an interruption changes nothing; two processes equal one."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from egnn_md.checkpoint import load, read_header, save
from egnn_md.data.frames import DataError, Frames, concatenate
from egnn_md.data.split import side_of_group
from egnn_md.evaluation.evaluate import Request
from egnn_md.evaluation.potential import evaluate_file
from egnn_md.graph import Graph
from egnn_md.models.potential import Potential
from egnn_md.neighbors import neighbor_list
from egnn_md.predict import Predictor
from egnn_md.training import report, run_folder
from egnn_md.training.config import ConfigError, DataConfig
from egnn_md.training.loop import Resources, RunFolderError, find_files, resume, train
from egnn_md.training.module import TaskModule
from egnn_md.training.potential import PotentialTask, build_model, reference_energies
from egnn_md.training.potential_config import PotentialRun
from egnn_md.training.tasks import load_config

NAMES = ("H2O", "CH4", "NH3", "CH3OH", "C2H4", "HCN", "H2CO", "C2H6", "N2H4", "HCOOH")
CONFIG = """
name = "tiny"
seed = 3
licence = "MIT"
[data]
files = ["frames.npz"]
valid_fraction = 0.3
test_fraction = 0.1
[model]
hidden_dim = 8
message_dim = 8
n_layers = 2
n_vectors = 6
n_tensors = 4
n_radial = 6
cutoff = 4.0
repulsion_reach = 1.5
core_end = 0.75
[training]
max_steps = {max_steps}
batch_size = 4
warmup_steps = 2
dtype = "float64"
learning_rate = 5e-3
validate_every = 10
checkpoint_every = 5
{extra}
"""
RUNNER = """
import sys, torch
torch.set_num_threads(1)
from egnn_md.training.loop import Resources, resume, train
if __name__ == "__main__":
    folder, output = sys.argv[2:4]
    if sys.argv[1] == "resume":
        resume(output, Resources(progress=False))
    else:
        train(folder + "/config.toml", output=output, resources=Resources(progress=False))
"""


@pytest.fixture
def run_setup(tmp_path: Path, random_potential: Callable[..., Potential]) -> Callable[..., Path]:
    """A folder with frames labelled by a random potential, a configuration and a script that trains."""

    def make(max_steps: int = 40, extra: str = "") -> Path:
        teacher, rng = random_potential(seed=7), np.random.default_rng(0)
        teacher.network.readout[2].weight *= 20.0  # so that there is something to learn beside the repulsion
        columns: dict[str, list[np.ndarray]] = {name: [] for name in ("z", "x", "f", "e", "n", "g")}
        for group, name in enumerate(NAMES):
            atoms = molecule(name)
            for _ in range(6):
                positions = atoms.positions + 0.05 * rng.normal(size=atoms.positions.shape)
                edges, _ = neighbor_list(positions, np.zeros((3, 3)), np.zeros(3, bool), teacher.config.cutoff)
                graph = Graph(
                    torch.from_numpy(positions),
                    torch.from_numpy(atoms.numbers.astype(np.int64)),
                    torch.from_numpy(edges),
                    None,
                    torch.zeros(1, 3, 3, dtype=torch.float64),
                    torch.zeros(1, 3, dtype=torch.bool),
                    torch.zeros(len(atoms), dtype=torch.int64),
                )
                label = teacher(graph)
                rows = (
                    atoms.numbers,
                    positions,
                    label.forces.numpy(),
                    label.energy.detach().numpy(),
                    [len(atoms)],
                    [group],
                )
                for column, row in zip(columns.values(), rows, strict=True):
                    column.append(np.asarray(row))
        z, x, f, e, n, g = (np.concatenate(column) for column in columns.values())
        np.savez(tmp_path / "frames.npz", n_atoms=n, atomic_numbers=z, positions=x, forces=f, energy=e, gdb=g)
        (tmp_path / "config.toml").write_text(CONFIG.format(max_steps=max_steps, extra=extra))
        (tmp_path / "runner.py").write_text(RUNNER)
        return tmp_path

    return make


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return state


def test_training_lowers_the_validation_error_and_writes_a_complete_model(run_setup: Callable[..., Path]) -> None:
    folder = run_setup(max_steps=150)
    model_file = train(folder / "config.toml", output=folder / "run", resources=Resources(progress=False))
    with (folder / "run" / "log.csv").open() as file:
        errors = [float(row["valid_force_mae"]) for row in csv.DictReader(file) if row["valid_force_mae"]]
    assert min(errors) < 0.8 * errors[0]
    header = read_header(model_file)
    assert header["held_out"]["valid"]["force_mae"] == pytest.approx(min(errors), rel=1e-6)
    assert header["training_data"]["files"][0].startswith("frames.npz ")
    assert isinstance(load(model_file), Potential)
    for name in ("parity.png", "learning_curve.png"):
        assert (folder / "run" / name).stat().st_size > 1000


def test_killed_and_resumed_run_ends_with_the_same_weights(run_setup: Callable[..., Path]) -> None:
    folder = run_setup(max_steps=60)
    train(folder / "config.toml", output=folder / "whole", resources=Resources(progress=False))
    command = [sys.executable, str(folder / "runner.py")]
    process = subprocess.Popen([*command, "train", str(folder), str(folder / "cut")], stderr=subprocess.DEVNULL)
    while not (folder / "cut" / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(folder / "cut" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < step < 60
    subprocess.run([*command, "resume", str(folder), str(folder / "cut")], check=True, capture_output=True)
    whole, cut = _weights(folder / "whole"), _weights(folder / "cut")
    assert whole.keys() == cut.keys()
    for name in whole:
        assert torch.equal(whole[name], cut[name]) or bool(whole[name].isnan().all()), name
    best = [load(folder / run / "model.safetensors").state_dict() for run in ("whole", "cut")]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


@pytest.mark.parametrize("moment", ["before the validation", "before the log", "before the state", "at the end"])
def test_a_run_that_ends_in_its_last_validation_goes_on_to_the_same_model(
    moment: str, run_setup: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every validation here falls on a step whose state is saved; the last one is the best."""
    folder, resources = run_setup(max_steps=60), Resources(progress=False)
    train(folder / "config.toml", output=folder / "whole", resources=resources)
    assert read_header(folder / "whole" / "best.safetensors")["training"]["step"] == 60

    def die(*arguments: Any) -> None:
        step = next((a.global_step for a in arguments if hasattr(a, "global_step")), 60)
        if step == 60:
            raise SystemError("killed")
        before(*arguments)

    owner, name = {
        "before the validation": (TaskModule, "validation_step"),
        "before the log": (run_folder.CsvLog, "on_validation_end"),
        "before the state": (run_folder.Resumable, "on_validation_end"),
        "at the end": (report, "save"),
    }[moment]
    before = getattr(owner, name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, die)
        with pytest.raises(SystemError):
            train(folder / "config.toml", output=folder / "cut", resources=resources)
    resume(folder / "cut", resources)
    one, other = (load(folder / run / "model.safetensors").state_dict() for run in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    logs = [(folder / run / "log.csv").read_text().splitlines() for run in ("whole", "cut")]
    rows = [[{**row, "time_s": ""} for row in csv.DictReader(log)] for log in logs]
    assert rows[0] == rows[1]


def test_the_model_is_there_though_a_picture_fails(run_setup: Callable[..., Path]) -> None:
    """A test side without forces, and whatever else a picture trips on."""
    folder = run_setup(max_steps=10)
    with np.load(folder / "frames.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    sides = np.array([side_of_group(str(group), 0.3, 0.1) for group in arrays["gdb"]])
    assert "test" in sides
    arrays["has_forces"] = sides != "test"
    np.savez(folder / "frames.npz", **arrays)
    train(folder / "config.toml", output=folder / "a", resources=Resources(progress=False))
    assert (folder / "a" / "model.safetensors").exists()
    (folder / "b" / "parity.png").mkdir(parents=True)
    arrays["has_forces"] = np.ones(len(sides), bool)
    np.savez(folder / "frames.npz", **arrays)
    with pytest.warns(UserWarning, match="could not draw"):
        train(folder / "config.toml", output=folder / "b", resources=Resources(progress=False))
    assert (folder / "b" / "model.safetensors").exists()


def test_a_run_does_not_go_on_with_other_data_or_a_damaged_state(run_setup: Callable[..., Path]) -> None:
    folder = run_setup(max_steps=10)
    run, data = folder / "run", folder / "frames.npz"
    train(folder / "config.toml", output=run, resources=Resources(progress=False))
    sound = data.read_bytes()
    with np.load(data) as archive:
        np.savez(data, **{name: archive[name] + (name == "energy") for name in archive.files})
    with pytest.raises(RunFolderError, match="not as it was"):
        resume(run)
    data.write_bytes(sound)
    (run / "last.ckpt").write_bytes(b"PK")
    with pytest.raises(RunFolderError, match=r"last\.ckpt is damaged"):
        resume(run)
    torch.save({"state_dict": {"model.x": torch.zeros(3)}}, run / "last.ckpt")
    with pytest.raises(RunFolderError, match="another model"):
        resume(run)
    with pytest.raises(RunFolderError, match="no run"):
        resume(folder / "elsewhere")


def test_two_processes_equal_one_with_the_same_global_batch(run_setup: Callable[..., Path]) -> None:
    folder = run_setup(max_steps=20)
    train(folder / "config.toml", output=folder / "one", resources=Resources(progress=False))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, str(folder / "runner.py"), "train", str(folder), str(folder / "two")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = _weights(folder / "one"), _weights(folder / "two")
    for name, value in one.items():
        if value.is_floating_point() and not bool(value.isnan().any()):
            assert float((value - two[name]).abs().max()) <= 1e-6 * float(value.abs().max()), name


def test_fine_tuning_starts_from_the_given_model(run_setup: Callable[..., Path], checkpoint_file: Path) -> None:
    folder = run_setup(max_steps=1)
    text = (folder / "config.toml").read_text().replace("learning_rate = 5e-3", "learning_rate = 1e-12")
    (folder / "config.toml").write_text(text.replace("seed = 3", f"seed = 3\ninit_from = {str(checkpoint_file)!r}"))
    tuned = load(train(folder / "config.toml", output=folder / "run", resources=Resources(progress=False)))
    for (name, value), start in zip(tuned.named_parameters(), load(checkpoint_file).parameters(), strict=True):
        assert torch.allclose(value, start, atol=1e-9), name


def test_fine_tuning_may_change_what_has_no_weights(checkpoint_file: Path) -> None:
    words = {"name": "x", "init_from": str(checkpoint_file), "data": {"files": ["x"]}, "training": {"max_steps": 1}}
    frames = frames_of([molecule("CH4"), molecule("C2H2")], np.array([-10.0, -20.0]))
    built = [
        build_model(PotentialRun.model_validate({**words, "model": model}), frames)
        for model in ({}, {"bound": 20.0, "core_start": 0.55, "hidden_dim": 7})
    ]
    (plain, other), start = (model.config for model in built), load(checkpoint_file).config
    assert (plain.bound, plain.core_start) == (None, start.core_start)
    assert (other.bound, other.core_start, other.hidden_dim) == (20.0, 0.55, start.hidden_dim)


@pytest.mark.filterwarnings("ignore::egnn_md.predict.ExtrapolationWarning")
def test_fine_tuning_may_widen_what_is_computed_at_atoms(
    random_potential: Callable[..., Potential], tmp_path: Path
) -> None:
    """The function is the same at the start, and what is new can be learned."""
    start = random_potential(long_range=True, n_tensors=2).double()
    save(start, tmp_path / "start.safetensors")
    words = {"name": "x", "init_from": str(tmp_path / "start.safetensors"), "data": {"files": ["x"]}}
    words |= {"training": {"max_steps": 1, "dtype": "float64"}, "model": {"node_dim": 50, "atomic_dipoles": True}}
    atoms = molecule("CH3CH2OH")
    structures = [atoms, *(molecule(name) for name in ("CH4", "H2O", "NH3", "CF4"))]
    wide = build_model(PotentialRun.model_validate(words), frames_of(structures, np.zeros(5)))
    assert wide.config.node_dim == 50
    shape = (atoms.positions, atoms.numbers.astype(np.int64))
    before, after = Predictor(start)(*shape), Predictor(wide)(*shape)
    assert after.forces == pytest.approx(before.forces, abs=1e-10)
    assert after.dipole == pytest.approx(before.dipole, abs=1e-10)
    layer = wide.network.layers[0]
    assert bool((layer.node_in.weight[-1] != 0).any())
    assert bool((layer.node_out.weight[:, -1] == 0).all())
    words["model"] = {"node_dim": start.config.hidden_dim - 1}
    with pytest.raises(ConfigError, match=r"node_dim = .* is less than the .* of the model"):
        build_model(PotentialRun.model_validate(words), frames_of(structures, np.zeros(5)))


@pytest.mark.parametrize("model", [{"atomic_dipoles": True}, {"charge_response": True}])
def test_settings_that_do_not_go_together_are_the_users(
    model: dict[str, Any], random_potential: Callable[..., Potential], tmp_path: Path
) -> None:
    frames = frames_of([molecule(name) for name in ("CH4", "H2O", "NH3", "CF4", "C2H2")], np.zeros(5))
    words = {"name": "x", "data": {"files": ["x"]}, "training": {"max_steps": 1}, "model": model}
    with pytest.raises(ConfigError, match="needs long_range"):
        build_model(PotentialRun.model_validate(words), frames)
    start = tmp_path / "start.safetensors"
    save(random_potential(long_range=True, **model), start)
    words |= {"init_from": str(start), "model": dict.fromkeys(model, False)}
    with pytest.raises(ConfigError, match="= false: the model that init_from names has it"):
        build_model(PotentialRun.model_validate(words), frames)


def test_fine_tuning_takes_the_zero_of_energy_from_what_the_model_says(
    random_potential: Callable[..., Potential], checkpoint_file: Path
) -> None:
    """The same method has the same zero, strange labels or not; another method's is found."""
    start = random_potential()
    rng = np.random.default_rng(0)
    structures = [molecule(name) for name in ("CH4", "H2O", "NH3", "CH3CH2OH", "CF4", "HCN") for _ in range(5)]
    for atoms in structures:
        atoms.rattle(0.05, seed=int(rng.integers(2**31)))
    predictor = Predictor(start)
    energies = np.array([predictor(atoms.positions, atoms.numbers.astype(np.int64)).energy for atoms in structures])
    energies[::7] += 3.0  # labels that the model gets wrong
    by_element = {1: 0.2, 6: -30.0, 7: 5.0, 8: -41.0, 9: 2.5}
    other = energies + [sum(by_element[z] for z in atoms.numbers) for atoms in structures]
    config = PotentialRun.model_validate(
        {"name": "x", "init_from": str(checkpoint_file), "data": {"files": ["x"]}, "training": {"max_steps": 1}}
    )
    for labels, shifts in ((energies, dict.fromkeys(by_element, 0.0)), (other, by_element)):
        found = build_model(config, frames_of(structures, labels)).config
        assert found.elements == start.config.elements
        moved = np.array(found.reference_energies) - np.array(start.config.reference_energies)
        assert moved == pytest.approx([shifts[z] for z in found.elements], abs=2e-3)


def frames_of(structures: list[Atoms], energies: np.ndarray) -> Frames:
    n = len(structures)
    return Frames(
        n_atoms=np.array([len(atoms) for atoms in structures]),
        atomic_numbers=np.concatenate([atoms.numbers for atoms in structures]).astype(np.int64),
        positions=np.concatenate([atoms.positions for atoms in structures]),
        energy=energies,
        forces=None,
        cell=np.zeros((n, 3, 3)),
        pbc=np.zeros((n, 3), bool),
        stress=None,
        group=np.array([str(k) for k in range(n)]),
        tag=np.array(["x"] * n),
    )


def test_a_fine_tuning_run_resumes_from_any_folder(
    run_setup: Callable[..., Path], checkpoint_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_setup(max_steps=1)
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace("seed = 3", f"seed = 3\ninit_from = {checkpoint_file.name!r}"))
    monkeypatch.chdir(checkpoint_file.parent)
    train("config.toml", output="run", resources=Resources(progress=False))
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    model = resume(folder / "run", Resources(progress=False))
    header = read_header(model)
    assert header["init_from"] == "random"
    assert str(folder) not in str(header)  # whose folders are whose business


def test_a_folder_is_data_too(tmp_path: Path) -> None:
    (tmp_path / "qm9").mkdir()
    data = DataConfig(files=["qm9"])
    assert find_files(data, [tmp_path / "nowhere", tmp_path]) == [tmp_path / "qm9"]


def water(path: Path, n: int, energy: float) -> None:
    """Many frames of one molecule, with labels under names of their own, and a free hydrogen atom."""
    rng, base = np.random.default_rng(0), molecule("H2O")
    text = "1\nProperties=species:S:1:pos:R:3:pull:R:3 e0=-13.6\nH 0 0 0 0 0 0\n"
    for _ in range(n):
        rows = np.hstack([base.positions + 0.02 * rng.normal(size=(3, 3)), rng.normal(size=(3, 3))])
        atoms = "".join(f"{s} {' '.join(f'{x:.6f}' for x in row)}\n" for s, row in zip("OHH", rows, strict=True))
        text += f"3\nProperties=species:S:1:pos:R:3:pull:R:3 e0={energy}\n{atoms}"
    path.write_text(text)


def test_many_frames_of_one_molecule_with_labels_of_any_name(run_setup: Callable[..., Path]) -> None:
    folder = run_setup(max_steps=1)
    water(folder / "w.extxyz", 40, -2070.0)
    config, text = folder / "config.toml", (folder / "config.toml").read_text().replace("frames.npz", "w.extxyz")
    config.write_text(text.replace("[model]", 'energy_key = "e0"\nforces_key = "pull"\n[model]'))
    file = train(config, output=folder / "b", resources=Resources(progress=False))
    header = read_header(file)
    assert header["training_data"]["n_force_vectors"] > 60
    references = dict(zip((1, 8), header["config"]["reference_energies"], strict=True))
    assert references[1] == -13.6  # the free atom
    assert references[8] == pytest.approx(-2070.0 + 2 * 13.6)
    request = Request(folder / "w.extxyz", "test", 8)
    assert 0 < evaluate_file(load(file), header, request).values["n_structures"] < 20


def test_energies_of_elements_that_compositions_do_not_tell_apart_are_warned_of() -> None:
    frames = concatenate([molecule_frames("CH4", -1000.0)] * 3)
    with pytest.warns(UserWarning, match="data.reference_energies gives them"):
        hydrogen, carbon = reference_energies(frames, (1, 6))
    assert 4 * hydrogen + carbon == pytest.approx(-1000.0)
    assert -50 < hydrogen < 0
    assert reference_energies(frames, (1, 6), {"H": -13.6}) == pytest.approx((-13.6, -1000.0 + 4 * 13.6))
    with pytest.raises(ConfigError, match="'Xx' is no element of the data"):
        reference_energies(frames, (1, 6), {"Xx": 1.0})


def molecule_frames(name: str, energy: float) -> Frames:
    atoms = molecule(name)
    one, none = np.zeros((1, 3, 3)), np.zeros((1, 3), bool)
    plain = {"group": np.array(["a"]), "tag": np.array([""]), "stress": None}
    numbers = atoms.numbers.astype(np.int64)
    label = {"energy": np.array([energy]), "forces": None}
    return Frames(
        n_atoms=np.array([len(atoms)]),
        atomic_numbers=numbers,
        positions=atoms.positions,
        cell=one,
        pbc=none,
        **label,
        **plain,
    )


def test_mistakes_are_told(run_setup: Callable[..., Path]) -> None:
    folder = run_setup()
    config = folder / "config.toml"
    (folder / "frames.npz").rename(folder / "other.npz")
    with pytest.raises(DataError, match=r"frames\.npz"):
        train(config, output=folder / "run")
    (folder / "other.npz").rename(folder / "frames.npz")
    good = config.read_text()
    config.write_text(good.replace("learning_rate", "learning_rat"))
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        train(config, output=folder / "run")
    config.write_text(good)
    (folder / "run").mkdir()
    (folder / "run" / "config.toml").write_text(good)
    with pytest.raises(RunFolderError, match="--resume"):
        train(config, output=folder / "run")


def test_the_bar_shows_what_there_is(run_setup: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    folder = run_setup(max_steps=20)
    train(folder / "config.toml", output=folder / "run", resources=Resources(progress=True))
    shown = "".join(capfd.readouterr())
    assert "training data: n_structures" in shown
    assert "20/20" in shown
    assert "force_loss" in shown
    assert not any(words in shown for words in ("Epoch", "charge_loss", "nan"))


def test_what_has_no_labels_has_no_error(run_setup: Callable[..., Path]) -> None:
    folder = run_setup()
    task = PotentialTask(load_config(folder / "config.toml"), [folder / "frames.npz"])
    forces, energies = (task.errors(torch.tensor(sums)) for sums in ([3.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 2.0]))
    assert (float(forces["force_mae"]), float(forces["score"])) == (1500.0, 1500.0)
    assert (float(energies["energy_mae"]), float(energies["score"])) == (1500.0, 1500.0)
    assert forces["energy_mae"].isnan()
    assert energies["force_mae"].isnan()


@pytest.mark.parametrize("part", ["all", "some"])
def test_a_diverged_model_has_no_score(part: str, run_setup: Callable[..., Path]) -> None:
    """NaN predictions are no missing labels: the score must not become better for them."""
    folder = run_setup()
    config = load_config(folder / "config.toml")
    task = PotentialTask(config, [folder / "frames.npz"])
    model = task.build_model()
    batch = task.batches(model)[1][[0, 1, 2]]
    whole = task.errors(task.error_sums(model, batch))["score"]
    assert whole.isfinite()
    with torch.no_grad():
        if part == "all":
            model.network.readout[-1].weight.fill_(torch.nan)
        else:  # one element's atoms only
            (embedding,) = (p for name, p in model.named_parameters() if "embedding" in name)
            counts = torch.bincount(batch.graph.atomic_numbers)
            rarest = min(model.config.elements, key=lambda z: int(counts[z]) if z < len(counts) and counts[z] else 999)
            embedding[model.config.elements.index(rarest)] = torch.nan
    sums = task.error_sums(model, batch)
    assert not task.errors(sums)["score"].isfinite()
    assert sums[1] == batch.forces.numel()


def test_a_step_without_a_finite_gradient_moves_nothing(
    run_setup: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, loss = run_setup(max_steps=12), PotentialTask.loss
    bad: Callable[[int], bool] = lambda step: step == 5  # noqa: E731

    def spoilt(task: PotentialTask, model: Potential, batch: Any, step: int) -> dict[str, torch.Tensor]:
        terms = loss(task, model, batch, step)
        nothing = (next(model.parameters()) * 0.0).sum().sqrt()  # 0, and no number its slope
        return {**terms, "loss": terms["loss"] + nothing} if bad(step) else terms

    monkeypatch.setattr(PotentialTask, "loss", spoilt)
    train(folder / "config.toml", output=folder / "run", resources=Resources(progress=False))
    assert "step 5: the gradient is not finite" in caplog.text
    assert all(bool(p.isfinite().all()) for p in load(folder / "run" / "model.safetensors").parameters())
    monkeypatch.setattr("egnn_md.training.module.MOST_LEFT_OUT", 4)
    bad = lambda step: step >= 3  # noqa: E731
    with pytest.raises(run_folder.TrainingDiverged, match="no finite gradient"):
        train(folder / "config.toml", output=folder / "again", resources=Resources(progress=False))
