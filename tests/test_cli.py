"""The command line: what it does, what it prints where, and that it refuses mistakes with one line and exit code 2."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

from egnn_md.checkpoint import load, save
from egnn_md.cli import main
from egnn_md.data.frame_files import read_frames
from egnn_md.data.split import assign_split
from egnn_md.dynamics.observers import read_log
from egnn_md.evaluation import evaluate as evaluation
from egnn_md.models.potential import Potential

ROOT = Path(__file__).parents[1]
PATIENCE = 300
"""Seconds to wait for a process on a busy machine."""
RUN_FILES = {"trajectory.traj", "log.csv", "summary.json", "plot.png", "report.html", "state.npz", "last.extxyz"}


class Result:
    """What a call of the command line left: exit code, stdout, lines on stderr that are no warnings."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out = code, out
        self.lines = [line for line in err.splitlines() if "warning:" not in line]

    @property
    def json(self) -> dict[str, Any]:
        values = json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert isinstance(values, dict)
        return values


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run `egnn-md …` in an empty folder; stdout and stderr are caught below Python."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Result:
        capfd.readouterr()
        try:
            main([str(word) for word in words])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def methane(call: Callable[..., Result], checkpoint_file: Path) -> str:
    """A structure at rest in a minimum of the random potential: stable in MD."""
    assert call("relax", "CH4", "--model", checkpoint_file, "-o", "methane.xyz", "--fmax", 0.01).code == 0
    return "methane.xyz"


# Help


def test_help_teaches_without_loading_torch() -> None:
    script = """
import sys
from egnn_md.cli import main
main(["--help"])
for verb in ("md", "relax", "train", "evaluate", "info", "models"):
    main([verb, "--help"])
print(sorted({"torch", "ase", "numpy", "matplotlib", "lightning", "mdtraj"} & sys.modules.keys()))
"""
    environment = {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""
    for word in (
        "egnn-md md CH3CH2OH",
        "egnn-md relax",
        "egnn-md train",
        "--friction",
        "--split",
        "--fmax",
        "--devices",
    ):
        assert word in done.stdout
    assert done.stdout.count("--output") >= 3
    assert done.stdout.count("--json") >= 6


def test_version_and_no_words(call: Callable[..., Result]) -> None:
    assert call("--version").out.startswith("egnn-md ")
    assert "Usage" in call().out


# Mistakes

FILES = {
    "water.xyz": "3\n\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n",
    "empty.xyz": "",
    "words.xyz": "no structure\n",
    "nan.xyz": "2\n\nH 0 0 0\nH nan 0 0\n",
    "close.xyz": "2\n\nH 0 0 0\nO 0 0 0.05\n",
    "silane.xyz": "2\n\nSi 0 0 0\nH 0 0 1.5\n",
    "ion.extxyz": '1\nProperties=species:S:1:pos:R:3 charge=1 pbc="F F F"\nH 0 0 0\n',
    "flat.extxyz": '1\nLattice="0 0 0 0 0 0 0 0 0" pbc="T T T"\nH 0 0 0\n',
    "foreign.safetensors": "these are not tensors, and long enough to be read as a header of a file",
    "unlabelled.extxyz": '1\nProperties=species:S:1:pos:R:3 pbc="F F F"\nH 0 0 0\n',
    "silicon.extxyz": '1\nProperties=species:S:1:pos:R:3 energy=-1.0 pbc="F F F"\nSi 0 0 0\n',
    "typo.toml": '[data]\nfiles = ["x.npz"]\n[training]\nmax_stepz = 3\n',
    "nodata.toml": '[data]\nfiles = ["x.npz"]\n[training]\nmax_steps = 3\n',
    "broken.toml": "[data\n",
    "a_file": "x",
}

MISTAKES = [
    ("md nowhere.xyz --model MODEL", "no such file"),
    ("md CH3CH2OO --model MODEL", "neither a file nor a molecule"),
    ("md", "give a structure"),
    ("md empty.xyz --model MODEL", "empty.xyz is empty"),
    ("md words.xyz --model MODEL", "structure 0 should begin"),
    ("md nan.xyz --model MODEL", "NaN"),
    ("md close.xyz --model MODEL", "0.050 Å apart"),
    ("md silane.xyz --model MODEL", "Si"),
    ("md ion.extxyz --model MODEL", "charge"),
    ("md flat.extxyz --model MODEL", "no volume"),
    ("md water.xyz --model organic-xtc", "no model 'organic-xtc'"),
    ("md water.xyz --model foreign.safetensors", "foreign.safetensors"),
    ("md water.xyz --model MODEL --ensemble npt", "periodic in three directions"),
    ("md water.xyz --model MODEL --ensemble nph", "nve, nvt, npt"),
    ("md water.xyz --model MODEL --engine gromacs", "ase, openmm"),
    ("md water.xyz --model MODEL --format pdb", "traj, extxyz, xtc, dcd, h5"),
    ("md water.xyz --model MODEL --timestep 0", "timestep"),
    ("md water.xyz --model MODEL --timestep nan", "timestep"),
    ("md water.xyz --model MODEL --temperature -3", "temperature"),
    ("md water.xyz --model MODEL --steps many", "--steps"),
    ("md water.xyz --model MODEL --steps -1", "steps"),
    ("md water.xyz --model MODEL --interval 0", "interval"),
    ("md water.xyz --model MODEL --friction 0", "friction"),
    ("md water.xyz --model MODEL --seed -1", "seed"),
    ("md water.xyz --model MODEL --threads 0", "--threads"),
    ("md water.xyz --model MODEL --state-interval -1", "--state-interval"),
    ("md water.xyz --model MODEL --dtype float16", "--dtype: unknown dtype 'float16': use 'float64' or 'float32'"),
    ("md water.xyz --model MODEL --device tpu", "--device: unknown device 'tpu': use 'cpu' or 'cuda'"),
    ("md water.xyz --model MODEL --device cuda:99", "device 'cuda:99' asked for, but torch sees"),
    ("md water.xyz --model MODEL --temprature 300", "--temprature"),
    ("md water.xyz --model MODEL -o a_file", "a_file"),
    ("md water.xyz --model MODEL -o a_file/run", "a_file"),
    ("md water.xyz --model MODEL -o old", "--overwrite"),
    ("md water.xyz --model MODEL -o new --resume", "no run to resume"),
    ("md water.xyz --model MODEL -o old --resume", "damaged"),
    ("md water.xyz --model MODEL -o old --resume --overwrite", "contradict"),
    ("md --resume old --output new", "which of the two"),
    ("relax nowhere.xyz --model MODEL", "no such file"),
    ("relax water.xyz --model MODEL --fmax 0", "fmax"),
    ("relax water.xyz --model MODEL --optimizer newton", "auto, bfgs, lbfgs, fire"),
    ("relax water.xyz --model MODEL --cell", "periodic in three directions"),
    ("relax water.xyz --model MODEL -o water.xyz", "--overwrite"),
    ("relax water.xyz --model MODEL -o out.unknown", "ase cannot write"),
    ("relax water.xyz --model MODEL -o nowhere/out.xyz", "nowhere"),
    ("relax water.xyz --model MODEL -o old", "folder"),
    ("relax silane.xyz --model MODEL", "Si"),
    ("evaluate MODEL nowhere.npz", "no such file"),
    ("evaluate MODEL empty.xyz", "empty"),
    ("evaluate MODEL words.xyz", "structure 0 should begin"),
    ("evaluate MODEL unlabelled.extxyz", "no energies"),
    ("evaluate MODEL silicon.extxyz", "Si"),
    ("evaluate MODEL a_file", "a_file"),
    ("evaluate organic-xtc silicon.extxyz", "no model"),
    ("evaluate MODEL silicon.extxyz --split half", "train, valid, test, all"),
    ("evaluate MODEL silicon.extxyz --split test", "--split all"),
    ("evaluate MODEL silicon.extxyz --batch-size 0", "--batch-size"),
    ("evaluate MODEL silicon.extxyz --plot picture.foo", ".png"),
    ("evaluate MODEL", "FILE"),
    ("data nbody -o . --overwrite", "is a folder"),
    ("data nbody --colour red", "see egnn-md data nbody --help"),
    ("data flow water.xyz --seed -1", "--seed"),
    ("info organic-xtc", "no model"),
    ("info foreign.safetensors", "foreign.safetensors"),
    ("info empty.xyz", "empty.xyz"),
    ("train", "either a configuration"),
    ("train nodata.toml --resume old", "either a configuration"),
    ("train --resume old -o new", "--resume"),
    ("train nowhere.toml", "nowhere.toml"),
    ("train typo.toml", "max_steps"),
    ("train nodata.toml", "x.npz"),
    ("train broken.toml", "broken.toml"),
    ("train --resume old", "old"),
    ("train nodata.toml --devices 0", "--devices"),
    ("train nodata.toml --device tpu", "auto, cpu, cuda"),
    ("mdd", "mdd"),
    ("--nonsense", "--nonsense"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_mistakes_give_one_line_and_exit_code_2(
    words: str, message: str, call: Callable[..., Result], checkpoint_file: Path, tmp_path: Path
) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "state.npz").write_text("a run, once")
    before = {path.name for path in tmp_path.iterdir()}
    result = call(*(str(checkpoint_file) if word == "MODEL" else word for word in words.split()))
    assert result.code == 2
    assert result.out == ""
    assert len(result.lines) == 1, result.lines
    assert result.lines[0].startswith("egnn-md: ")
    assert message.lower() in result.lines[0].lower()
    assert {path.name for path in tmp_path.iterdir()} == before  # nothing half begun is left behind


def test_a_folder_that_cannot_be_written(
    call: Callable[..., Result], checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)  # root may write where the mode says no
    result = call("md", "H2O", "--model", checkpoint_file, "-o", "closed")
    assert (result.code, len(result.lines)) == (2, 1)
    assert "cannot be written" in result.lines[0]


def test_our_own_errors_keep_their_traceback(call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    import egnn_md.registry

    def broken() -> None:
        raise ValueError("a bug in the package")

    monkeypatch.setattr(egnn_md.registry, "shipped_models", broken)
    with pytest.raises(ValueError, match="a bug"):
        call("models")


# md


def test_md_leaves_a_run_folder(call: Callable[..., Result], methane: str, checkpoint_file: Path) -> None:
    words = ("md", methane, "--model", checkpoint_file, "--steps", 40, "--seed", 3, "-o", "out")
    result = call(*words)
    assert result.code == 0
    assert "CH4: 0.02 ps of nvt, finished" in result.out
    assert {path.name for path in Path("out").iterdir()} == RUN_FILES
    assert Path("out/plot.png").read_bytes().startswith(b"\x89PNG")
    log = read_log(Path("out/log.csv"))
    assert log["time_fs"].tolist() == [0.0, 5.0, 10.0, 15.0, 20.0]
    assert np.isfinite(log["extrapolation"]).all()
    assert call(*words).code == 2  # there is a run already
    again = call(*words, "--overwrite", "--json")
    assert again.json["steps"] == 40
    assert read_log(Path("out/log.csv"))["epot_eV"].tolist() == log["epot_eV"].tolist()  # same seed, same run


def test_json_stands_alone_and_has_its_keys(call: Callable[..., Result], methane: str, checkpoint_file: Path) -> None:
    result = call("md", methane, "--model", checkpoint_file, "--ensemble", "nve", "--steps", 30, "--json")
    summary = result.json  # parses: nothing else is on stdout
    assert result.out.count("\n") == 1
    assert summary == json.loads(Path("run/summary.json").read_text())
    assert {
        "status", "reason", "steps", "time_ps", "n_atoms", "mean_temperature_K", "energy_drift_meV_per_atom_per_ps",
        "max_extrapolation", "ns_per_day", "settings", "information", "versions",
    } <= summary.keys()  # fmt: skip
    assert summary["information"]["model"] == str(checkpoint_file)
    assert len(summary["information"]["model_sha256"]) == 64
    assert summary["settings"]["seed"] >= 0
    relaxed = call("relax", methane, "--model", checkpoint_file, "-o", "again.xyz", "--json").json
    assert {"converged", "steps", "energy", "energy_start", "fmax", "output"} <= relaxed.keys()
    assert call("models", "--json").json["models"] is not None
    assert call("info", checkpoint_file, "--json").json["config"]["cutoff"] == 4.0


@pytest.mark.parametrize("kind", ["extxyz", "xtc", "dcd", "h5"])
def test_formats_can_be_read_back(kind: str, call: Callable[..., Result], methane: str, checkpoint_file: Path) -> None:
    result = call("md", methane, "--model", checkpoint_file, "--steps", 30, "--format", kind, "--json", "-o", "out")
    assert result.json["status"] == "finished"
    last = ase.io.read("out/last.extxyz")
    if kind == "extxyz":
        positions = ase.io.read("out/trajectory.extxyz", ":")[-1].positions
    else:
        import mdtraj

        top = {} if kind == "h5" else {"top": "out/topology.pdb"}
        trajectory = mdtraj.load(f"out/trajectory.{kind}", **top)
        assert [atom.element.symbol for atom in trajectory.topology.atoms] == ["C", "H", "H", "H", "H"]
        assert len(trajectory) == 4
        positions = 10 * trajectory.xyz[-1]
    assert positions == pytest.approx(last.positions, abs=0.01 if kind == "xtc" else 1e-5)


def test_npt_of_a_crystal(call: Callable[..., Result], checkpoint_file: Path) -> None:
    atoms = Atoms(
        "C8", [[3.2 * (k & 1), 3.2 * (k >> 1 & 1), 3.2 * (k >> 2)] for k in range(8)], cell=[6.4] * 3, pbc=True
    )
    ase.io.write("box.extxyz", atoms)
    words = ("--ensemble", "npt", "--temperature", 50, "--pressure", 1000, "--steps", 20, "--json", "-o", "out")
    summary = call("md", "box.extxyz", "--model", checkpoint_file, *words).json
    assert summary["mean_volume_A3"] == pytest.approx(6.4**3, rel=0.05)
    assert {"volume_A3", "pressure_bar"} <= read_log(Path("out/log.csv")).keys()
    report = Path("out/report.html").read_text()
    for chart in ("Density", "Volume", "Pressure", "Temperature"):
        assert f"<h3>{chart}</h3>" in report


def test_blow_up_exits_with_1(call: Callable[..., Result], methane: str, checkpoint_file: Path) -> None:
    atoms = ase.io.read(methane)
    momenta = np.zeros((5, 3))
    momenta[1, 2] = np.sqrt(2 * 1.008 * 50.0)  # a hydrogen of 50 eV
    atoms.set_momenta(momenta)
    ase.io.write("wild.extxyz", atoms)
    result = call("md", "wild.extxyz", "--model", checkpoint_file, "--ensemble", "nve", "--steps", 200, "-o", "out")
    assert result.code == 1
    assert "blew up" in result.lines[-1]
    assert json.loads(Path("out/summary.json").read_text())["status"] == "blew_up"
    assert np.isfinite(ase.io.read("out/last.extxyz").positions).all()
    assert Path("out/plot.png").exists()


def wait_for_lines(log: Path, n_lines: int, process: subprocess.Popen[Any]) -> None:
    """Until the log has so many lines; a process that takes for ever is killed."""
    until = time.monotonic() + PATIENCE
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < n_lines):
        if time.monotonic() > until:
            process.kill()
            pytest.fail(f"no {n_lines} lines in {PATIENCE} s")
        time.sleep(0.002)


def test_killed_runs_go_on_as_if_nothing_had_been(
    call: Callable[..., Result], methane: str, checkpoint_file: Path, tmp_path: Path
) -> None:
    """SIGKILL at a moment that nobody chose, twice; then the same files as without."""
    options = ("--model", checkpoint_file, "--dtype", "float64", "--seed", 1, "--steps", 240, "--interval", 3)
    assert call("md", methane, *options, "-o", "whole").code == 0
    command = [sys.executable, "-m", "egnn_md.cli", "md", methane, *map(str, options), "-o", "killed"]
    command += ["--state-interval", "0.05"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log, lines = tmp_path / "killed" / "log.csv", 0
    for attempt in (["--overwrite"], ["--resume"]):
        with subprocess.Popen(command + attempt, env=environment, stderr=subprocess.DEVNULL) as process:
            wait_for_lines(log, lines + 15, process)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        lines = log.read_bytes().count(b"\n")
    assert call("md", "--resume", "killed").code == 0
    assert log.read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()
    frames, expected = (ase.io.read(f"{name}/trajectory.traj", ":") for name in ("killed", "whole"))
    assert len(frames) == len(expected) == 81
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(frames, expected, strict=True))
    assert all(np.array_equal(a.get_momenta(), b.get_momenta()) for a, b in zip(frames, expected, strict=True))


def test_resume_takes_its_options_from_the_run(
    call: Callable[..., Result], methane: str, checkpoint_file: Path, random_potential: Callable[..., Potential]
) -> None:
    words = ("--model", checkpoint_file, "--steps", 20, "--temperature", 250, "-o", "out")
    assert call("md", methane, *words).code == 0
    assert call("md", methane, *words, "--resume").code == 0  # the same command again: nothing to do
    longer = call("md", "--resume", "out", "--steps", 50, "--json").json
    assert (longer["steps"], longer["settings"]["temperature"]) == (50, 250.0)
    assert read_log(Path("out/log.csv"))["time_fs"].tolist() == [0.0, 5.0, 10.0, 15.0, 20.0, 25.0]
    assert "--temperature 250.0" in call("md", "--resume", "out", "--temperature", 300).lines[0]
    assert "--dtype float32" in call("md", "--resume", "out", "--dtype", "float64").lines[0]
    assert "atoms of the run" in call("md", "H2O", "--resume", "-o", "out").lines[0]
    save(random_potential(seed=5), checkpoint_file)
    assert "not the model" in call("md", "--resume", "out").lines[0]


def test_sigterm_stops_cleanly(
    call: Callable[..., Result], methane: str, checkpoint_file: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "egnn_md.cli",
        "md",
        methane,
        "--model",
        str(checkpoint_file),
        "--steps",
        "1000000",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += ["--steps", "1000000", "--json", "-o", "out"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        wait_for_lines(tmp_path / "out" / "log.csv", 5, process)
        process.terminate()
        out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    assert json.loads(out)["status"] == "interrupted"
    steps = json.loads(out)["steps"]
    assert call("md", "--resume", "out", "--steps", steps + 10, "--json").json["status"] == "finished"


@pytest.mark.filterwarnings("ignore::egnn_md.calculators.ExtrapolationWarning")
@pytest.mark.parametrize("kind", ["dcd", "h5"])
def test_openmm_as_the_engine(kind: str, call: Callable[..., Result], checkpoint_file: Path) -> None:
    """The same command and run folder; a PDB file's residues and bonds go into the trajectory's topology."""
    import mdtraj

    pdb = ROOT / "examples" / "alanine_dipeptide.pdb"
    words = ("md", pdb, "--engine", "openmm", "--model", checkpoint_file, "--format", kind, "--timestep", 0.1)
    whole = call(*words, "--steps", 30, "--seed", 3, "-o", "whole", "--json")
    assert whole.code == 0
    assert (whole.json["status"], whole.json["settings"]["engine"]) == ("finished", "openmm")
    assert "openmm" in whole.json["versions"]
    expected = (RUN_FILES - {"trajectory.traj"}) | {f"trajectory.{kind}", "topology.pdb"}
    assert {path.name for path in Path("whole").iterdir()} == expected
    top = {} if kind == "h5" else {"top": "whole/topology.pdb"}
    topology = mdtraj.load(f"whole/trajectory.{kind}", **top).topology
    assert [residue.name for residue in topology.residues] == ["ACE", "ALA", "NME"]
    assert topology.n_bonds == 21
    assert len(topology.select("name CA")) == 1

    assert call(*words, "--steps", 20, "--seed", 3, "-o", "parts").code == 0
    assert "--engine openmm" in call("md", "--resume", "parts", "--engine", "ase").lines[0]
    assert call("md", "--resume", "parts", "--steps", 30).code == 0
    assert Path("parts/log.csv").read_text() == Path("whole/log.csv").read_text()


def test_threads_change_only_when_asked(call: Callable[..., Result], checkpoint_file: Path) -> None:
    import torch

    before = torch.get_num_threads()
    call("relax", "H2", "--model", checkpoint_file, "-o", "a.xyz")
    assert torch.get_num_threads() == before
    call("relax", "H2", "--model", checkpoint_file, "-o", "b.xyz", "--threads", before + 1)
    assert torch.get_num_threads() == before + 1


# relax, evaluate, info


def test_relax_writes_the_minimum(call: Callable[..., Result], checkpoint_file: Path) -> None:
    result = call("relax", "CH3CH2OH", "--model", checkpoint_file, "-o", "out.xyz", "--fmax", 0.005, "--json")
    assert result.json["converged"]
    atoms = ase.io.read("out.xyz")
    assert atoms.get_potential_energy() == pytest.approx(result.json["energy"], abs=1e-6)
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.005
    unfinished = call("relax", "CH3CH2OH", "--model", checkpoint_file, "-o", "out.xyz", "--steps", 1, "--overwrite")
    assert unfinished.code == 1
    assert "not converged" in unfinished.lines[0]
    assert call("relax", "CH3CH2OH", "--model", checkpoint_file).code == 0
    assert Path("CH3CH2OH-relaxed.extxyz").exists()


@pytest.fixture
def labelled(call: Callable[..., Result], checkpoint_file: Path, random_potential: Callable[..., Potential]) -> str:
    """Frames of ten molecules labelled by the model in `checkpoint_file`, energies 10 meV/atom too high."""
    from egnn_md.calculators import EGNNCalculator

    save(random_potential(), checkpoint_file, {"name": "random", "split": {"valid": 0.2, "test": 0.3}})
    calculator, frames = EGNNCalculator(load(checkpoint_file)), []  # type: ignore[arg-type]
    names = ["H2O", "CH4", "NH3", "CO2", "HF", "CH3OH", "C2H2", "C2H4", "C2H6", "HCN"]
    for k, name in enumerate(2 * names):
        atoms = molecule(name)
        atoms.rattle(0.05, seed=k)
        atoms.info |= {"group": name, "tag": "first" if k < 10 else "second"}
        calculator.calculate(atoms)
        results = calculator.results
        energy = results["energy"] + 0.010 * len(atoms)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=results["forces"])
        frames.append(atoms)
    ase.io.write("frames.extxyz", frames)
    return "frames.extxyz"


@pytest.mark.filterwarnings("ignore::egnn_md.predict.ExtrapolationWarning")
def test_evaluate_finds_the_error_that_is_there(
    call: Callable[..., Result], labelled: str, checkpoint_file: Path
) -> None:
    result = call("evaluate", checkpoint_file, labelled, "--json", "--dtype", "float64", "--plot", "parity.png").json
    assert list(result) == ["n_structures", "force_mae", "force_rmse", "energy_mae", "energy_rmse", "by_tag"]
    assert result["n_structures"] == 20
    assert result["energy_mae"] == pytest.approx(10.0, abs=1e-3)
    assert result["energy_rmse"] == pytest.approx(10.0, abs=1e-3)
    assert result["force_mae"] < 1e-3  # eight digits in the file
    assert {tag: part["n_structures"] for tag, part in result["by_tag"].items()} == {"first": 10, "second": 10}
    assert Path("parity.png").read_bytes().startswith(b"\x89PNG")
    table = call("evaluate", checkpoint_file, labelled)
    assert "second" in table.out
    assert "10.000" in table.out


@pytest.mark.filterwarnings("ignore::egnn_md.predict.ExtrapolationWarning")
def test_evaluate_takes_the_side_of_the_split(
    call: Callable[..., Result], labelled: str, checkpoint_file: Path
) -> None:
    sides = assign_split(read_frames(labelled), 0.2, 0.3)
    counts = {}
    for side in ("train", "valid", "test"):
        result = call("evaluate", checkpoint_file, labelled, "--split", side, "--json")
        counts[side] = result.json["n_structures"] if result.code == 0 else 0
    assert counts == {side: int((sides == side).sum()) for side in counts}
    assert sum(counts.values()) == 20
    assert sum(count > 0 for count in counts.values()) >= 2


def test_evaluate_refuses_a_kind_without_an_evaluation(
    call: Callable[..., Result], labelled: str, checkpoint_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(evaluation.EVALUATIONS, "potential")  # type: ignore[arg-type]
    result = call("evaluate", checkpoint_file, labelled)
    assert (result.code, result.out) == (2, "")
    assert "kind 'potential' cannot be evaluated" in result.lines[0]


def test_info_says_what_the_model_knows(call: Callable[..., Result], checkpoint_file: Path, tmp_path: Path) -> None:
    errors = {"test": {"n_structures": 7, "force_mae": 12.5, "energy_mae": 0.5, "by_tag": {}}}
    data = {"files": ["frames.npz 0123"], "n_structures": 99}
    extra = {"name": "m", "licence": "CC0", "held_out": errors, "training_data": data}
    save(load(checkpoint_file), tmp_path / "m.safetensors", extra)
    text = call("info", "m.safetensors").out
    for words in ("H, C, N, O, F", "4.0 Å", "CC0", "force_mae 12.5 meV/Å", "frames.npz"):
        assert words in text
    assert call("info", "m.safetensors", "--json").json["held_out"] == errors
