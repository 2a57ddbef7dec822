"""The task "property": what its loss and normalisation promise; predict, evaluate and convert on the command line."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from qm9_molecules import ORGANIC, model_for, molecules

from egnn_md.checkpoint import load, read_header, save
from egnn_md.chemistry.targets import NAMES, TARGETS
from egnn_md.cli import main, reproduce
from egnn_md.data.frames import DataError
from egnn_md.data.qm9 import write_qm9
from egnn_md.evaluation.property import COVERAGES, Compared, calibrate, coverage
from egnn_md.models.property import PropertyModel
from egnn_md.training.config import ConfigError
from egnn_md.training.property import (
    MoleculeBatches,
    PropertyDataConfig,
    PropertyLoss,
    PropertyRun,
    PropertyTask,
    PropertyTrainingConfig,
    fit_normalisation,
    mean_absolute_deviation,
)
from egnn_md.training.tasks import load_config

CONFIG = """
task = "property"
name = "tiny"
[data]
files = ["qm9.npz"]
[model]
hidden_dim = 8
message_dim = 8
n_layers = 1
n_vectors = 2
n_radial = 4
[training]
max_steps = 4
batch_size = 8
validate_every = 4
"""


@pytest.mark.parametrize(("network", "kind"), [("vectors", "root"), ("paper", "l1")])
def test_missing_labels_pull_at_nothing(network: str, kind: str) -> None:
    """Gradients are those of the labels there are: what stands where one is missing cannot matter."""
    data = molecules().having(ORGANIC)
    model = model_for(data, network)
    settings = PropertyTrainingConfig(max_steps=1, loss=kind)  # type: ignore[arg-type]
    batch = MoleculeBatches(data, NAMES)[list(range(12))]
    loss = PropertyLoss(model, settings, mean_absolute_deviation(data, NAMES))
    loss(batch)[0].backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert any(bool(gradient.any()) for gradient in gradients)

    expected = (model.requires_grad_(False)(batch.graph(model.config.reach)).values - batch.labels).abs().nanmean(0)
    scaled = expected / mean_absolute_deviation(data, NAMES)
    wanted = {"l1": scaled, "root": torch.sqrt(scaled + 1e-4)}[kind]
    assert loss(batch)[1].item() == pytest.approx(wanted.mean().item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_traced_step_has_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the uncertainty's share must not reach the features: `detach` survives the trace that is compiled."""
    monkeypatch.setattr(torch, "compile", lambda traced, dynamic: traced)
    data = molecules().having(ORGANIC)
    found = []
    for compiled in (False, True):
        model = model_for(data)
        loss = PropertyLoss(model, PropertyTrainingConfig(max_steps=1, compile=compiled), torch.ones(12).double())
        loss(MoleculeBatches(data, NAMES)[list(range(12))])[0].backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert gradient.numpy() == pytest.approx(found[1][name].numpy(), rel=1e-3, abs=1e-5), name


def test_normalisation_explains_what_is_additive() -> None:
    """Labels that are a sum over atoms leave nothing to learn; the paper's are mean and mean absolute deviation."""
    data = molecules().having(ORGANIC)
    data.targets[:, NAMES.index("alpha")] = data.counts(ORGANIC) @ [1.0, 7.0, 6.0, 5.0] + 2.0
    ours = fit_normalisation(data, ORGANIC, "vectors", NAMES)
    assert ours["scales"][0] == pytest.approx(1e-6)
    assert ours["references"][::10] == pytest.approx((1.0, 7.0, 6.0, 5.0))
    (offset,), (scale,) = (
        fit_normalisation(data, ORGANIC, "paper", ("alpha",))[name] for name in ("offsets", "scales")
    )
    alpha = data.targets[:, NAMES.index("alpha")]
    assert offset == pytest.approx(alpha.mean())
    assert scale == pytest.approx(np.abs(alpha - alpha.mean()).mean())


def test_geometries_of_training_molecules_are_learned_from_and_of_no_others(tmp_path: Path) -> None:
    data = molecules()
    moved = replace(data, positions=data.positions + 0.02 * np.random.default_rng(0).normal(size=data.positions.shape))
    for name, part in {"qm9": data, "moved": moved, "held out": moved.side("test")}.items():
        write_qm9(part, tmp_path / f"{name}.npz")
    config = PropertyRun(data=PropertyDataConfig(files=["-"]), training=PropertyTrainingConfig(max_steps=1))
    alone, task = (
        PropertyTask(config, [tmp_path / f"{name}.npz" for name in names]) for names in (["qm9"], ["qm9", "moved"])
    )
    n = len(alone.train)
    assert task.train.index.tolist() == 2 * alone.train.index.tolist()
    assert task.train.positions[len(alone.train.positions) :] == pytest.approx(moved.side("train").positions, abs=1e-6)
    assert (len(task.valid), len(task.test)) == (len(alone.valid), len(alone.test))
    said = task.information()["training_data"]
    assert (said["n_molecules"], said["n_geometries"]) == (n, 2 * n)
    assert said["labels"] == alone.information()["training_data"]["labels"]
    assert len(said["files"]) == 2
    with pytest.raises(DataError, match="none of the training molecules"):
        PropertyTask(config, [tmp_path / "qm9.npz", tmp_path / "held out.npz"])


def test_calibration_makes_errors_what_is_promised() -> None:
    model = model_for(molecules())
    random = np.random.default_rng(0)
    errors = random.laplace(scale=3.0, size=(20_000, 12))
    calibrate(model, Compared(np.zeros_like(errors), errors, np.ones_like(errors)))
    assert model.calibration.numpy() == pytest.approx(np.full(12, 3.0), rel=0.05)
    promised = Compared(np.zeros_like(errors), errors, np.full_like(errors, 3.0))
    assert coverage(promised, 0) == pytest.approx(COVERAGES, abs=0.02)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run `egnn-md …` in an empty folder: exit code, JSON on stdout or None, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, Any, str]:
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, json.loads(out) if out.startswith("{") else None, err

    return run


def test_train_and_evaluate(call: Callable[..., Any], tmp_path: Path) -> None:
    data = molecules()
    write_qm9(data, tmp_path / "qm9.npz")
    (tmp_path / "tiny.toml").write_text(CONFIG)
    code, trained, err = call("train", "tiny.toml", "-o", "run", "--json")
    assert code == 0, err
    assert set(trained["held_out"]) == {"valid", "test"}
    assert {"parity.png", "calibration.png", "learning_curve.png"} <= {
        file.name for file in (tmp_path / "run").iterdir()
    }
    labelled = np.isfinite(data.side("train").targets).sum(0).tolist()
    assert list(read_header(trained["model"])["training_data"]["labels"].values()) == labelled

    code, errors, err = call("evaluate", trained["model"], "qm9.npz", "--split", "test", "--json")
    assert code == 0, err
    test = data.side("test")
    sound = test.having(ORGANIC)
    assert errors.pop("n_skipped") == len(test) - len(sound) == 2
    assert list(errors) == list(NAMES)
    assert [entry["unit"] for entry in errors.values()] == [target.unit for target in TARGETS]
    assert [entry["n"] for entry in errors.values()] == np.isfinite(sound.targets).sum(0).tolist()
    assert errors["mu"]["mae"] == pytest.approx(trained["held_out"]["test"]["mu"]["mae"], rel=1e-4)
    code, everything, _ = call("evaluate", trained["model"], "qm9.npz", "--json")
    assert code == 0
    assert everything["mu"]["n"] == int(np.isfinite(data.having(ORGANIC).targets[:, 0]).sum())

    twice = data.positions.copy()
    twice[data.starts[3] + 1] = twice[data.starts[3]]
    write_qm9(replace(data, positions=twice), tmp_path / "twice.npz")
    for words in (("evaluate", trained["model"], "twice.npz"), ("train", "twice.toml", "-o", "other")):
        (tmp_path / "twice.toml").write_text(CONFIG.replace("qm9.npz", "twice.npz"))
        code, _, err = call(*words)
        assert code == 2
        assert f"molecule {data.index[3]}: it has atoms closer than" in err


def test_the_papers_table_is_reproduced_for_one_property(
    call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the qm9.npz that lies in the folder: nothing is fetched."""
    monkeypatch.setitem(reproduce.TABLES, "qm9", replace(reproduce.TABLES["qm9"], quick=500_000))
    (tmp_path / "r").mkdir()
    write_qm9(molecules(), tmp_path / "r" / "qm9.npz")
    code, found, err = call("reproduce", "qm9", "--quick", "--only", "homo", "-o", "r", "--json")
    assert code == 0, err
    ((name, figures),) = found["rows"].items()
    assert name == "homo / meV"
    assert figures["paper"] == {"mae": 29.0}
    assert figures["ours"] == {"mae": read_header("r/homo-mev/model.safetensors")["held_out"]["test"]["homo"]["mae"]}


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    save(model_for(molecules()), tmp_path / "model.safetensors", {"name": "random"})
    return tmp_path / "model.safetensors"


def write_structures(path: Path, *, bad: bool) -> list[str]:
    names = ["CH4", "H2O", "CH3CH2OH", "C6H6", "NH3", "HCN", "H2CO"]
    atoms = [molecule(name) for name in names]
    if bad:
        atoms[2] = molecule("CF4")
    ase.io.write(path, atoms, format="extxyz")
    return [a.get_chemical_formula("hill") for a in atoms]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_predict_writes_what_the_model_says(call: Callable[..., Any], model_file: Path, tmp_path: Path) -> None:
    formulas = write_structures(tmp_path / "a.extxyz", bad=False)
    code, summary, err = call("predict", "a.extxyz", "-o", "out.csv", "--model", model_file, "--json")
    assert (code, summary["n"], summary["n_skipped"]) == (0, 7, 0), err
    rows = table(tmp_path / "out.csv")
    assert [row["formula"] for row in rows] == formulas
    model = load(model_file)
    assert isinstance(model, PropertyModel)
    expected = model.predict(ase.io.read(tmp_path / "a.extxyz", ":"), uncertainty=True)
    units = {"meV": ("eV", 1e-3), "D": ("D", 1), "a0^3": ("bohr3", 1), "a0^2": ("bohr2", 1)}
    for target in TARGETS:
        unit, factor = units.get(target.unit, ("cal_per_mol_K", 1))
        for end in ("", "_uncertainty"):
            found = [float(row[f"{target.name}_{unit}{end}"]) for row in rows]
            assert found == pytest.approx(factor * expected[f"{target.name}{end}"], rel=1e-4)
    assert "<svg" in (tmp_path / "out-report.html").read_text()
    assert {row["flag"] != "" for row in rows if float(row["extrapolation"]) > 1.5} <= {True}
    code, _, err = call("predict", "a.extxyz", "-o", "out.csv", "--model", model_file)
    assert code == 2
    assert "--overwrite" in err


def test_bad_structures_stop_it_or_are_skipped(call: Callable[..., Any], model_file: Path, tmp_path: Path) -> None:
    write_structures(tmp_path / "a.extxyz", bad=True)
    words = ("predict", "a.extxyz", "-o", "out.csv", "--model", model_file, "--json")
    code, _, err = call(*words)
    assert code == 2
    assert "structure 2" in err
    assert "F" in err
    assert not (tmp_path / "out.csv").exists()
    code, summary, err = call(*words, "--resume", "--skip-bad")
    assert code == 0, err
    assert (summary["n"], summary["n_skipped"]) == (6, 1)
    assert "structure 2 skipped" in err
    rows = table(tmp_path / "out.csv")
    assert [row["index"] for row in rows] == [str(k) for k in range(7)]  # a row for each that was given
    assert rows[2]["flag"].startswith("skipped: it has F; the model knows")
    assert (rows[2]["formula"], rows[2]["gap_eV"]) == ("CF4", "")
    assert all(row["gap_eV"] for k, row in enumerate(rows) if k != 2)


def test_rows_have_the_names_that_files_give(call: Callable[..., Any], model_file: Path, tmp_path: Path) -> None:
    water = molecule("H2O")
    water.info["name"] = 'water, "light"'
    lines = "\n".join(f"{symbol} {x} {y} {z}" for symbol, (x, y, z) in zip(water.symbols, water.positions, strict=True))
    ase.io.write(tmp_path / "a.extxyz", [water], format="extxyz")
    with (tmp_path / "a.extxyz").open("a") as file:
        file.write(f"3\nsome  water\n{lines}\n3\n\n{lines}\n")
    code, _, err = call("predict", "a.extxyz", "-o", "out.csv", "--model", model_file)
    assert code == 0, err
    names = [row["name"] for row in table(tmp_path / "out.csv")]
    assert names[1:] == ["some water", ""]
    assert names[0].startswith("water, ")


def test_smiles_have_a_column_of_their_own(call: Callable[..., Any], model_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    (tmp_path / "a.smi").write_text("C/C=C\\C  cis butene\nO\nC=Cl oh\n")
    words = ("predict", "a.smi", "--skip-bad", "--model", model_file)
    assert call(*words, "-o", "out.csv")[0] == 0
    rows = [(row["name"], row["smiles"], row["formula"]) for row in table(tmp_path / "out.csv")]
    assert rows == [("cis butene", "C/C=C\\C", "C4H8"), ("", "O", "H2O"), ("", "", "")]
    assert call(*words, "-o", "out.extxyz")[0] == 0
    assert ase.io.read(tmp_path / "out.extxyz", 0).info["smiles"] == "C/C=C\\C"  # nothing is lost in quoting
    assert call("predict", "out.extxyz", "-o", "again.csv", "--model", model_file)[0] == 0
    assert [row["smiles"] for row in table(tmp_path / "again.csv")] == ["C/C=C\\C", "O"]
    assert call("predict", "CC(=O)N", "-o", "one.csv", "--model", model_file)[0] == 0  # no file: a SMILES
    (row,) = table(tmp_path / "one.csv")
    assert (row["name"], row["formula"]) == ("CC(=O)N", "C2H5NO")


@pytest.mark.filterwarnings("ignore::egnn_md.predict.ExtrapolationWarning")
def test_structures_are_relaxed_first_and_each_keeps_its_row(
    call: Callable[..., Any], model_file: Path, checkpoint_file: Path, tmp_path: Path
) -> None:
    from egnn_md.dynamics.batched_relax import relax_batched

    frames = [molecule(name) for name in ("CH4", "H2O", "CF4", "CH3CH2OH")]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.02, seed=k)
    many = frames[0].copy()
    many.cell = [5.0, 5.0, 5.0]
    many *= (4, 4, 2)  # more atoms than a batch relaxes
    many.cell = None
    frames.insert(1, many)
    ase.io.write(tmp_path / "a.extxyz", frames, format="extxyz")
    words = ("predict", "a.extxyz", "--relax", "--potential", checkpoint_file, "--model", model_file)
    words += ("--dtype", "float64", "--json")
    code, _, err = call(*words, "-o", "out.csv")
    assert (code, "structure 1 " in err) == (2, True)
    code, summary, err = call(*words, "-o", "out.csv", "--resume", "--skip-bad")
    assert code == 0, err
    assert (summary["n"], summary["n_skipped"]) == (3, 2)
    rows = table(tmp_path / "out.csv")
    assert [row["index"] for row in rows] == list("01234")
    assert [k for k, row in enumerate(rows) if row["flag"].startswith("skipped")] == [1, 3]
    potential, model = load(checkpoint_file, dtype=torch.float64), load(model_file, dtype=torch.float64)
    kept = [frames[k] for k in (0, 2, 4)]
    for place, end in relax_batched(potential, kept, 0.01, 500):  # type: ignore[arg-type]
        relaxed, row = kept[place].copy(), rows[(0, 2, 4)[place]]
        relaxed.positions = end.positions
        assert int(row["relax_steps"]) == end.steps > 0
        assert float(row["relax_energy_eV"]) == pytest.approx(end.energy - end.energy_start, rel=1e-5)
        expected = model.predict(relaxed)["alpha"]  # type: ignore[operator, union-attr]
        assert float(row["alpha_bohr3"]) == pytest.approx(expected, rel=1e-4)
    code, _, err = call(*words, "-o", "x.csv", "--potential", model_file)
    assert (code, "this needs a potential" in err) == (2, True)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "extxyz"])
def test_a_prediction_that_was_killed_goes_on(
    suffix: str, call: Callable[..., Any], model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost, nothing is there twice, and the table is that of a run that nobody killed."""
    write_structures(tmp_path / "a.extxyz", bad=True)
    words = ("predict", "a.extxyz", "--model", model_file, "--dtype", "float64", "--skip-bad", "--json", "--batch", "2")
    assert call(*words, "-o", f"whole.{suffix}")[0] == 0
    predict, calls = PropertyModel.predict_batch, []

    def dies(self: PropertyModel, batch: Any) -> Any:
        calls.append(len(batch))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(self, batch)

    monkeypatch.setattr(PropertyModel, "predict_batch", dies)
    name = f"out.{suffix}"
    assert call(*words, "-o", name)[0] == 130
    (part,) = (tmp_path / f"{name}.parts").glob("*.part")
    assert 0 < len(part.read_text().splitlines()) < 7
    with part.open("a") as file:
        file.write('{"index": 6, "fail')  # cut off in the middle of a line
    code, summary, err = call(*words, "-o", name, "--resume")
    assert code == 0, err
    assert (summary["n"], summary["n_skipped"], sum(calls)) == (6, 1, 6 + calls[2])
    assert (tmp_path / name).read_text() == (tmp_path / f"whole.{suffix}").read_text()
    assert not (tmp_path / f"{name}.parts").exists()
    code, _, err = call(*words, "-o", name, "--resume")
    assert (code, "is finished: nothing to resume" in err) == (2, True)


def test_shards_and_worker_processes_write_the_table_of_one_process(
    call: Callable[..., Any], model_file: Path, tmp_path: Path
) -> None:
    write_structures(tmp_path / "a.extxyz", bad=True)
    words = ("predict", "a.extxyz", "--model", model_file, "--dtype", "float64", "--skip-bad", "--json", "--chunk", "2")
    assert call(*words, "-o", "one.csv")[0] == 0
    for k in (3, 1):
        code, summary, err = call(*words, "-o", "shards.csv", "--shard", f"{k}/3")
        assert (code, summary["finished"], summary["n_flagged"]) == (0, False, None), err
        assert not (tmp_path / "shards.csv").exists()
    code, summary, err = call(*words, "-o", "shards.csv", "--shard", "2/3")
    assert (summary["n"], summary["n_skipped"], summary["finished"]) == (6, 1, True), err
    code, summary, err = call(*words, "-o", "pool.csv", "--workers", "2")
    assert (summary["n"], summary["n_skipped"], summary["finished"]) == (6, 1, True), err
    one = (tmp_path / "one.csv").read_text()
    assert one == (tmp_path / "shards.csv").read_text() == (tmp_path / "pool.csv").read_text()
    strict = [word for word in words if word != "--skip-bad"]
    code, _, err = call(*strict, "-o", "strict.csv", "--workers", "2")  # what a worker refuses, in words
    assert (code, err.count("\n"), "structure 2 (counted from 0): it has F" in err) == (2, 1, True), err


@pytest.mark.parametrize(("name", "line"), [("o.csv", "rubbish\n"), ("o.jsonl", "3\n"), ("o.xyz", '{"index": \n')])
def test_a_damaged_part_is_refused(
    name: str, line: str, call: Callable[..., Any], model_file: Path, tmp_path: Path
) -> None:
    write_structures(tmp_path / "a.extxyz", bad=True)
    words = ("predict", "a.extxyz", "-o", name, "--model", model_file)
    assert call(*words)[0] == 2
    (part,) = (tmp_path / f"{name}.parts").glob("*.part")
    part.write_text(part.read_text() + line)
    code, _, err = call(*words, "--resume", "--skip-bad")
    assert (code, "is damaged: remove it" in err) == (2, True), err
    part.unlink()
    assert call(*words, "--skip-bad")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shard", "4/3"], "--shard is i/n with 1 <= i <= n"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--executor", "slurm"], "--executor is one of"),
        (["--batch", "0"], "--batch is auto or a number"),
        (["--chunk", "0"], "at least 1"),
        (["-o", "a.docx"], "must end in"),
        (["-o", "nowhere/a.csv"], "folder"),
        (["--model", "organic-xtb"], "predict needs a model of properties"),
        (["--relax", "--potential", "qm9"], "this needs a potential"),
    ],
)
def test_mistakes_leave_a_line_and_no_files(
    words: list[str], message: str, call: Callable[..., Any], tmp_path: Path
) -> None:
    write_structures(tmp_path / "a.extxyz", bad=False)
    code, _, err = call("predict", "a.extxyz", "-o", "out.csv", *words)
    assert (code, err.count("\n"), message in err) == (2, 1, True), err
    assert [path.name for path in tmp_path.iterdir()] == ["a.extxyz"]


def test_convert(call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    literal = importlib.import_module("_authors_qm9")
    torch.manual_seed(0)
    theirs = literal.LiteralEGNN(width=16, n_layers=2)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    code, made, err = call("convert", "theirs.pt", "-o", "mine.safetensors", "--json")
    assert code == 0, err
    assert made["target"] == "output"
    atoms = molecule("CH3CH2OH")
    model = load(tmp_path / "mine.safetensors")
    assert isinstance(model, PropertyModel)
    padded = literal.pad([torch.from_numpy(atoms.numbers)], [torch.from_numpy(atoms.positions)])
    assert model.predict(atoms)["output"] == pytest.approx(theirs(padded).item(), rel=1e-5)
    with_target = ("convert", "theirs.pt", "-o", "mine.safetensors", "--overwrite", "--target", "homo")
    assert call(*with_target)[0] == 2
    assert call(*with_target, "--mean", -6500, "--mad", 440)[0] == 0
    assert call(*with_target, "--mean", "nan", "--mad", 440)[0] == 2
    assert call(*with_target, "--mean", 0, "--mad", "inf")[0] == 2
    (tmp_path / "rubbish.pt").write_bytes(b"no weights")
    code, _, err = call("convert", "rubbish.pt", "-o", "b.safetensors")
    assert code == 2
    assert "Traceback" not in err
    assert "rubbish.pt" in err


def test_ase_calculator(model_file: Path) -> None:
    from egnn_md.calculators import EGNNPropertyCalculator, ExtrapolationWarning

    atoms = molecule("CH3CH2OH")
    calculator = EGNNPropertyCalculator(model_file)
    atoms.calc = calculator
    calculator.model.bond_lengths.shortest.fill_(0.5)  # a few training molecules do not have all its bonds
    calculator.model.bond_lengths.longest.fill_(2.0)
    values = calculator.model.predict(atoms)
    free_atoms = -2 * 37.846772 - 75.064579 - 6 * 0.500273
    energy = free_atoms * 27.211386 + 1e-3 * (values["u0"] - values["zpve"])
    assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-6)
    assert atoms.calc.results["gap"] == pytest.approx(values["gap"])
    with pytest.raises(NotImplementedError):
        atoms.get_forces()
    atoms.rattle(1e-3)
    calculator.model.bond_lengths.longest.fill_(1.0)
    with pytest.warns(ExtrapolationWarning, match="relax it"):
        atoms.get_potential_energy()


def test_a_diverged_property_model_has_no_score(tmp_path: Path) -> None:
    """NaN predictions count, but for a property that has no labels to learn from."""
    data = molecules()
    targets = data.targets.copy()
    targets[data.split == 0, NAMES.index("mu")] = np.nan  # labels of mu for validation alone
    write_qm9(replace(data, targets=targets), tmp_path / "qm9.npz")
    (tmp_path / "config.toml").write_text(CONFIG)
    task = PropertyTask(load_config(tmp_path / "config.toml"), [tmp_path / "qm9.npz"])  # type: ignore[arg-type]
    model = task.build_model()
    batch = task.batches(model)[1][list(range(8))]
    errors = task.errors(task.error_sums(model, batch))
    assert errors["score"].isfinite()
    assert errors["mu_mae"].isnan()
    with torch.no_grad():
        next(model.network.parameters()).fill_(torch.nan)
    assert task.errors(task.error_sums(model, batch))["score"].isnan()


@pytest.mark.filterwarnings("ignore::egnn_md.predict.ExtrapolationWarning")
def test_the_calculator_sees_a_charge_and_exports_what_ase_knows(tmp_path: Path) -> None:
    from egnn_md.calculators import EGNNPropertyCalculator

    save(model_for(molecules()), tmp_path / "m.safetensors")
    atoms = molecule("H2O")
    atoms.calc = EGNNPropertyCalculator(tmp_path / "m.safetensors")
    energy = atoms.get_potential_energy()
    assert dict(atoms.calc.export_properties()) == {"energy": energy}
    assert "alpha" in atoms.calc.results
    atoms.info["charge"] = 1
    with pytest.raises(ValueError, match="charged"):
        atoms.get_potential_energy()
    atoms.info["charge"] = 0
    assert atoms.get_potential_energy() == energy
    atoms.info["spin"] = 3
    with pytest.raises(ValueError, match="multiplicity is 3"):
        atoms.get_potential_energy()


@pytest.mark.parametrize("hidden_dim", [33, 5000])
def test_widths_that_no_network_has_are_refused(hidden_dim: int, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG.replace("hidden_dim = 8", f"hidden_dim = {hidden_dim}"))
    with pytest.raises(ConfigError, match="hidden_dim"):
        load_config(tmp_path / "config.toml")
