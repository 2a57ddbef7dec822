"""A distillation goes through its rounds, whatever stops it, labels nothing twice, and measures before it trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from egnn_md.calculators import EGNNCalculator
from egnn_md.checkpoint import read_header, shipped_name
from egnn_md.chemistry.structures import charge_of
from egnn_md.cli import main
from egnn_md.distill import card, explore, rounds, start, student
from egnn_md.distill.rounds import Distillation, Machine
from egnn_md.distill.settings import DistillError, Settings, parse_seconds
from egnn_md.jobs.executors import Here
from egnn_md.storage import StorageError, write_json

pytestmark = pytest.mark.filterwarnings("ignore::egnn_md.predict.ExtrapolationWarning")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "jobs"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(card, "NVE_PS", 0.02)
    monkeypatch.setattr(card, "STABILITY_PS", 0.02)
    monkeypatch.setattr(rounds, "TEST_FRAMES", 4)
    ase.io.write("water.xyz", molecule("H2O"))


SETTINGS = Settings(
    teacher="cheap_teachers:shipped",
    options=("log=calls",),
    molecules=("water.xyz",),
    start="none",
    labels=12,
    rounds=2,
    steps=12,
    picoseconds=0.2,
    copies=4,
)


def stop_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, before: bool) -> None:
    """`module.name` stops the process, as it were, the first and the third time: before or after its work."""
    real: Callable[..., Any] = getattr(module, name)
    calls = [0]

    def function(*words: Any, **options: Any) -> Any:
        calls[0] += 1
        if before and calls[0] in (1, 3):
            raise KeyboardInterrupt
        result = real(*words, **options)
        if not before and calls[0] in (1, 3):
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(module, name, function)


def test_it_survives_stops_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, before in (
        (rounds, "read_molecules", False),
        (rounds, "first_frames", False),
        (rounds, "explore", True),
        (rounds, "measure", False),
        (rounds, "train", True),
        (card, "measure", True),
    ):
        stop_at(monkeypatch, module, name, before)
    for _ in range(30):
        try:
            summary = Distillation(tmp_path / "run", SETTINGS, Machine(Here())).run()
            break
        except KeyboardInterrupt:
            pass
    else:
        pytest.fail("it never ended")
    calls = (tmp_path / "calls").read_text().splitlines()
    frames = ase.io.read(tmp_path / "run" / "data.extxyz", ":")
    labelled = [line for line in calls if calls.count(line) > 1]
    assert labelled == []
    assert len(calls) == len(frames) + 4  # the four that time the teacher
    assert [found["round"] for found in summary["rounds"]] == [1]
    first = [atoms for atoms in frames if atoms.info["draw"] == "first"]
    assert len(first) == SETTINGS.labels
    assert summary["labels"] + summary["test_labels"] == len(frames)
    assert {atoms.info["draw"] for atoms in frames} == {"first", "random", "hard", "test"}
    used = read_header(tmp_path / "run" / "model.safetensors")
    assert used["training_data"]["n_structures"] < summary["labels"]  # the test frames are not among them
    assert used["distillation"]["test"]["n_frames"] == summary["test_labels"]
    assert {"card.md", "errors.png", "data.extxyz", "summary.json"} <= {p.name for p in (tmp_path / "run").iterdir()}
    with pytest.raises(DistillError, match="another distillation"):
        Distillation(tmp_path / "run", replace(SETTINGS, labels=30), Machine(Here()))


def test_fine_tuning_ends_at_the_target(capsys: pytest.CaptureFixture[str]) -> None:
    """The teacher is the model that is fine-tuned: the first measurement finds no error."""
    words = ["distill", "cheap_teachers:shipped", "water.xyz", "-o", "run", "--with", "log=calls", "--labels", "10"]
    words += ["--steps", "4", "--ps", "0.04", "--copies", "4", "--target", "1", "--temperature", "300", "--json"]
    main(words)
    summary = json.loads(capsys.readouterr().out)
    assert summary["start"] == "organic-xtb"
    assert [found["round"] for found in summary["rounds"]] == [0]
    assert summary["rounds"][0]["force_mae"] < 0.1
    assert list(summary["test"]["by"]["temperature"]) == ["300 K"]
    page = Path("run/report.html").read_text()
    assert "Force errors by temperature and molecule" in page
    assert "of the worst" in page
    assert f"{summary['test']['force_mae']:.1f} meV/Å" in page
    for options in ([], ["cheap_teachers:shipped"], ["os:system", "--with", "log=calls"]):
        with pytest.raises(SystemExit):  # a folder starts no code by itself
            main(["distill", *options, "--resume", "run"])
        assert "--with log=calls --resume run" in capsys.readouterr().err
    main(["distill", "cheap_teachers:shipped", "--with", "log=calls", "--resume", "run"])
    out = capsys.readouterr().out
    assert "meV/Å on unseen frames at 300 K" in out.splitlines()[0]
    assert out.splitlines()[0].startswith("run/model.safetensors: ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("starts.extxyz", "3\n\nnothing"),
        ("distill.json", "[" * 100_000),
        ("distill.json", "[]"),
        ("time.json", '{"seconds": []}'),
        ("rounds/length-0.json", "{"),
    ],
)
def test_damage_is_told(name: str, text: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "rounds" / "00").mkdir(parents=True)
    settings = replace(SETTINGS, budget=100.0)
    write_json(folder / "distill.json", settings.to_dict())
    ase.io.write(folder / "rounds" / "00" / "labelled.extxyz", [molecule("H2O")] * 4)
    (folder / name).write_text(text)
    with pytest.raises((DistillError, StorageError), match=f"{name}|of another version"):
        Distillation(folder, settings, Machine(Here())).run()


def test_a_budget_that_is_gone_leaves_the_least_of_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamics, labels and the card's runs too, not the trainings alone."""
    monkeypatch.setattr(rounds, "SHORTEST", 0.5)
    monkeypatch.setattr(card, "NVE_PS", 2.0)
    monkeypatch.setattr(card, "STABILITY_PS", 5.0)
    monkeypatch.setattr(rounds, "TEST_FRAMES", 30)
    settings = replace(SETTINGS, labels=40, rounds=5, picoseconds=50.0, budget=1e-3)
    summary = Distillation(tmp_path / "run", settings, Machine(Here())).run()
    assert summary["labels"] == summary["test_labels"] == rounds.FEWEST_LABELS
    assert summary["rounds"] == []
    assert summary["nve_ps"] == pytest.approx(0.05)
    assert summary["stability_ps"] == pytest.approx(0.02)
    assert "NVE, 0.05 ps" in (tmp_path / "run" / "card.md").read_text()


def test_labels_and_dynamics_fit_into_their_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds.time, "monotonic", lambda: 1000.0)
    run = Distillation(tmp_path / "run", replace(SETTINGS, budget=1000.0), Machine(Here(), workers=2))
    run.label_seconds = 2.0
    assert run._n_labels(500, 0.2) == 100
    assert run._n_labels(50, 0.2) == 50
    run.spent = 900.0
    assert run._n_labels(500, 0.2) == 10
    assert run._share(0.5) == pytest.approx(50.0)
    run.hold.release()

    class Slow:
        positions = None

        def evaluate(self, positions: None) -> None:
            clock[0] += 0.01

    clock = [0.0]
    monkeypatch.setattr(explore.time, "perf_counter", lambda: clock[0])
    assert explore.affordable(Slow(), 10.0, 0.5, 2.0) == pytest.approx(200 * 0.5e-3)  # type: ignore[arg-type]
    assert explore.affordable(Slow(), 0.01, 0.5, 2.0) == 0.01  # type: ignore[arg-type]
    assert explore.affordable(Slow(), 10.0, 0.5, None) == 10.0  # type: ignore[arg-type]


def frame(signal: float, move: float, name: str = "a") -> Atoms:
    atoms = molecule("H2O")
    atoms.positions[0] += [0.0, move, 0.0]
    atoms.info |= {"signal": signal, "molecule": name, "tag": "300 K", "group": name}
    return atoms


def test_the_hardest_are_chosen_some_at_random_and_none_alike() -> None:
    candidates = [frame(signal=float(k), move=0.12 * k) for k in range(100)]
    chosen = explore.choose(candidates + candidates, 20, seed=1)
    random = [atoms.info["signal"] for atoms in chosen if atoms.info["draw"] == "random"]
    hard = [atoms.info["signal"] for atoms in chosen if atoms.info["draw"] == "hard"]
    assert len(random) == 6
    assert len(hard) == 14
    assert len(set(random + hard)) == 20
    assert min(hard) >= 75
    assert min(random) < 50
    assert [a.info for a in explore.choose(candidates, 20, 1)] == [a.info for a in explore.choose(candidates, 20, 1)]
    assert 1 <= len(explore.choose([frame(1.0, 0.0)] * 30, 20, 1)) <= 1
    assert len(explore.choose([frame(float("nan"), 0.12 * k) for k in range(30)], 20, 1)) == 20


def test_broken_copies_end_and_are_candidates() -> None:
    """At 60,000 K no water stays whole."""
    model = student.load_student("organic-xtb")
    start_frame = molecule("H2O")
    start_frame.info["molecule"] = "water"
    options = {"copies": 4, "picoseconds": 0.1, "timestep": 0.5, "name": "round 0", "seed": 1}
    found = explore.explore(model, [start_frame], (60_000.0, 100.0), **options)
    assert sum(found.ended.values()) == 2
    whole = [atoms for atoms in found.frames if atoms.info["tag"] == "100 K"]
    assert len(whole) == 2 * 40
    assert 2 <= len(found.frames) - len(whole) < 80
    assert len({atoms.info["group"] for atoms in whole}) == 2 * explore.BLOCKS


def test_validation_has_a_smallest_size() -> None:
    from egnn_md.data.split import side_of_group

    for n in (12, 40, 400):
        groups = [f"molecule round {k // 40} {k}" for k in range(n)]
        fraction = student.valid_fraction(groups)
        n_valid = [side_of_group(group, fraction, 0.0) for group in groups].count("valid")
        assert min(10, n // 4) <= n_valid < n / 2
    with pytest.raises(DistillError, match="too few"):
        student.valid_fraction(["all the same"] * 50)
    for seed in range(30):  # a dozen frames of five groups, whatever these are called
        groups = [f"C[NH3+] round {seed} {k % 5}" for k in range(12)]
        fraction = student.valid_fraction(groups)
        assert 0 < [side_of_group(group, fraction, 0.0) for group in groups].count("valid") < 12


def test_molecules_from_smiles_and_files(tmp_path: Path) -> None:
    (tmp_path / "two.smi").write_text("CCO ethanol\n\nO\n")
    found = start.read_molecules(["two.smi", "water.xyz"], seed=1)
    assert {atoms.info["molecule"] for atoms in found[:-2]} == {"CCO"}
    assert [str(atoms.symbols) for atoms in found[-2:]] == ["OH2", "OH2"]
    rattled = start.first_frames(found, 10, seed=1)
    assert len({atoms.info["group"] for atoms in rattled}) == 10
    assert 0 < np.abs(rattled[0].positions - found[0].positions).max() < 0.1
    (tmp_path / "radical.xyz").write_text("2\nmultiplicity: 2\nO 0 0 0\nH 0 0 1\n")
    (tmp_path / "cut.xyz").write_text("3\n\nO 0 0 0\nH 0 0 1\n")
    for bad in ("no SMILES", "[CH3]", "radical.xyz", "cut.xyz"):
        with pytest.raises(DistillError):
            start.read_molecules([bad], seed=1)


def test_the_nearest_shipped_model_is_the_start() -> None:
    assert student.starting_model("auto", [molecule("H2O")]) == "organic-xtb"
    assert student.starting_model("auto", [Atoms("XeH2")]) is None
    assert student.starting_model("none", [molecule("H2O")]) is None
    with pytest.raises(DistillError, match="Xe"):
        student.starting_model("organic-xtb", [Atoms("XeH2")])
    ammonium = start.read_molecules(["[NH4+]"], seed=1)
    assert student.starting_model("auto", ammonium) == shipped_name("egnn-xtb")
    assert student.starting_model("auto", [molecule("CH3SH")]) == shipped_name("egnn-xtb")
    with pytest.raises(DistillError, match="for ions"):
        student.starting_model("organic-xtb", ammonium)


@pytest.mark.parametrize("begin", ["none", "auto"])
def test_an_ion(begin: str, tmp_path: Path) -> None:
    """Its charge goes with it: to the teacher, into the data, to a student that learns the atoms' charges."""
    settings = replace(SETTINGS, teacher="cheap_teachers:ions", options=(), molecules=("C[NH3+]",), rounds=1, steps=8)
    folder = tmp_path / "ion"
    summary = Distillation(folder, replace(settings, start=begin), Machine(Here())).run()
    assert summary["charges"] == [1.0]
    assert "Charges: +1 e" in (folder / "card.md").read_text()
    assert read_header(folder / "model.safetensors")["config"]["long_range"]
    frames = ase.io.read(folder / "data.extxyz", ":")
    assert {charge_of(atoms) for atoms in frames} == {1.0}
    rattled = [atoms for atoms in frames if atoms.info["draw"] == "first" or begin == "auto"]
    assert rattled
    assert all(abs(atoms.get_charges().sum() - 1.0) < 0.1 for atoms in rattled)
    if begin == "auto":
        ion = frames[0].copy()
        ion.calc = EGNNCalculator(folder / "model.safetensors")
        assert abs(ion.get_charges().sum() - 1.0) < 0.1


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("0.5h", 1800)])
def test_budgets(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds
    assert parse_seconds(None) is None
    for bad in ("", "soon", "0", "2d"):
        with pytest.raises(DistillError):
            parse_seconds(bad)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["gfn2-xtb"],
        ["gfn3", "CCO"],
        ["gfn2-xtb", "nowhere.xyz"],
        ["gfn2-xtb", "CCO", "--labels", "3"],
        ["gfn2-xtb", "CCO", "--temperature", "0"],
        ["gfn2-xtb", "CCO", "--budget", "tomorrow"],
        ["--resume", "nowhere"],
        ["gfn2-xtb", "CCO", "--resume", "run"],
    ],
)
def test_mistakes_give_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["distill", *words])
    assert end.value.code == 2
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("egnn-md: ")]) == 1
