"""What users install: the wheel is built from the source distribution and used outside the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

import egnn_md
from egnn_md.checkpoint import read_header

ROOT = Path(__file__).parents[1]
SOURCES = ("egnn_md", "calculators", "tests", "examples", "docs", "benchmarks", "recipes", ".ci")
FILES = (
    *("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "Makefile", "CHANGELOG.md", "CONTRIBUTING.md"),
    *("mkdocs.yml", "CITATION.cff", "SECURITY.md", "THIRD_PARTY.md"),
)
BUILD = "from setuptools import build_meta as b; import sys; print(b.build_{}(sys.argv[1]))"


def run(*command: str, cwd: Path, path: Path | None = None) -> str:
    """Run a Python command in `cwd`, with `path` alone before the installed packages; its standard output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def python_files() -> set[str]:
    """Where each module of the tree belongs in an installation."""
    inside = {str(path.relative_to(ROOT)) for path in (ROOT / "egnn_md").rglob("*.py")}
    linked = {f"egnn_md/calculators/{path.relative_to(ROOT / 'calculators')}" for path in calculator_files()}
    return {name for name in inside if not name.startswith("egnn_md/calculators/")} | linked


def calculator_files() -> list[Path]:
    return list((ROOT / "calculators").rglob("*.py"))


def pretrained_files() -> set[str]:
    folder = ROOT / "egnn_md" / "pretrained"
    return {f"egnn_md/pretrained/{path.name}" for path in folder.iterdir() if path.suffix in {".safetensors", ".md"}}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that no build folder is left in the repository."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, tree / name)
    return tree


def build(kind: str, tree: Path, folder: Path) -> Path:
    """The "sdist" or "wheel" that the build backend of pyproject.toml makes from `tree`, in `folder`."""
    return folder / run("-c", BUILD.format(kind), str(folder), cwd=tree).splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", tree, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the unpacked source distribution alone."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    return build("wheel", unpacked, folder)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the wheel, without its dependencies."""
    target = tmp_path_factory.mktemp("site")
    options = ("--no-deps", "--no-index", "--no-warn-script-location", "--disable-pip-version-check", "--quiet")
    run("-m", "pip", "install", *options, "--target", str(target), str(wheel), cwd=target)
    return target


def test_sdist_holds_sources_models_tests_and_documents(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    calculators = {str(path.relative_to(ROOT)) for path in calculator_files()}
    modules = {name for name in python_files() if not name.startswith("egnn_md/calculators/")}
    expected = modules | calculators | pretrained_files() | {"egnn_md/py.typed", *FILES, ".ci/run"}
    expected |= {str(path.relative_to(ROOT)) for folder in ("docs", "examples") for path in visible(ROOT / folder)}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
    assert expected <= names, sorted(expected - names)


def visible(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    tables = {f"egnn_md/paper/{path.name}" for path in (ROOT / "egnn_md" / "paper").glob("*.toml")}
    assert len(tables) == 5
    viewer = {"page.css", "page.js", "3Dmol-min.js.gz", "3Dmol.LICENSE"}
    report = {f"egnn_md/report/{name}" for name in viewer}
    assert contents(wheel) == python_files() | pretrained_files() | tables | report | {"egnn_md/py.typed"}


def test_wheel_of_a_clone_is_that_of_the_sdist(tree: Path, wheel: Path, tmp_path: Path) -> None:
    assert contents(build("wheel", tree, tmp_path)) == contents(wheel)


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = HeaderParser().parsestr(archive.read(metadata).decode())
        licences = [name for name in archive.namelist() if name.endswith("/LICENSE")]
    assert fields["Version"] == egnn_md.__version__
    assert fields["License-Expression"] == "MIT"
    assert licences
    required = [line for line in fields.get_all("Requires-Dist", []) if "extra ==" not in line]
    core = {re.split(r"[^\w-]", line)[0] for line in required}
    assert {"torch", "ase", "openmm", "mdtraj", "numpy"} <= core
    assert "lightning" not in core
    assert "tblite" not in core


def test_installed_package_works_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    script = """
import importlib, sys
import egnn_md
assert "torch" not in sys.modules, "import egnn_md must stay cheap"
for name in ("calculators", "calculators.ase_calculator", "calculators.openmm_ml", "cli"):
    print(importlib.import_module("egnn_md." + name).__file__)
print(egnn_md.__file__)
print(*sorted(egnn_md.shipped_models()))
"""
    *files, models = run("-c", script, cwd=tmp_path, path=installed).splitlines()
    assert all(Path(file).is_relative_to(installed) for file in files), files
    assert set(models.split()) == {Path(name).stem for name in pretrained_files() if name.endswith(".safetensors")}


def test_installed_plugin_is_found_by_openmm_ml(installed: Path, tmp_path: Path) -> None:
    script = """
from importlib.metadata import distributions
wheel = next(d for d in distributions(path=sys.path[1:2]) if d.metadata["Name"] == "egnn-md")
points = [point for point in wheel.entry_points if point.group == "openmmml.potentials"]
assert all(point.load().__module__ == "egnn_md.calculators.openmm_ml" for point in points)
print(*(point.name for point in points))
"""
    names = run("-c", "import sys\n" + script, cwd=tmp_path, path=installed).split()
    potentials = {name for name in egnn_md.shipped_models() if read_header(name)["kind"] == "potential"}
    assert set(names) == {"egnn", "egnn-xtb", *potentials}


def test_no_package_named_calculators_is_installed(installed: Path) -> None:
    assert not (installed / "calculators").exists()
    assert sorted(path.name for path in installed.glob("egnn_md*")) == [
        "egnn_md",
        f"egnn_md-{egnn_md.__version__}.dist-info",
    ]


def test_installed_command_runs(installed: Path, tmp_path: Path) -> None:
    entry = run("-c", "from egnn_md.cli import main; main(['models', '--json'])", cwd=tmp_path, path=installed)
    for name in pretrained_files():
        if name.endswith(".safetensors"):
            assert Path(name).stem in entry


def test_installed_package_has_the_configurations_of_the_papers_tables(installed: Path, tmp_path: Path) -> None:
    script = """
from egnn_md.paper.reproduce import CONFIGS, TABLES
from egnn_md.training.tasks import load_config
print(CONFIGS)
for table in TABLES.values():
    for row in table.rows:
        load_config(CONFIGS / row.config)
"""
    assert Path(run("-c", script, cwd=tmp_path, path=installed).strip()).is_relative_to(installed)


def test_shipped_models_have_cards() -> None:
    files = pretrained_files()
    weights = {Path(name).stem for name in files if name.endswith(".safetensors")}
    cards = {Path(name).stem for name in files if name.endswith(".md")}
    assert weights <= cards


def test_release_says_what_is_missing() -> None:
    loader = SourceFileLoader("release", str(ROOT / ".ci" / "release"))
    release = module_from_spec(spec_from_loader("release", loader))  # type: ignore[arg-type]
    loader.exec_module(release)
    changelog, citation = "# C\n\n## Unreleased\n\n## 1.2.3 (2030-01-02)\n", "a: b\nversion: 1.2.3\n"
    assert release.problems("1.2.3", changelog, citation) == []
    assert len(release.problems("1.2.4", changelog, citation)) == 2
    assert len(release.problems("1.2.3.dev0", changelog, citation)) == 3
    told = release.problems("1.2.3", changelog.replace("Unreleased\n", "Unreleased\n\n- new\n"), citation)
    assert "Unreleased" in told[0]
