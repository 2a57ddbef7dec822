"""The package teaches: help, tab completion, tables of models, doctor."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import re
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import ase.io
import numpy as np
import pytest
import typer
from ase.build import molecule

import egnn_md
from egnn_md.cli import app
from egnn_md.cli.teaching import example_first, teaching_signature

Call = Callable[..., tuple[int, str, list[str]]]
PACKAGES = [
    "egnn_md",
    *(f"egnn_md.{name}" for name in ("calculators", "dynamics", "models", "neighbors", "nn")),
]


def commands() -> list[tuple[str, Any]]:
    root: Any = typer.main.get_command(app)
    found = []
    for name, command in root.commands.items():
        children = getattr(command, "commands", None)
        found += [(f"{name} {sub}", child) for sub, child in children.items()] if children else [(name, command)]
    return found


@pytest.mark.parametrize(("name", "command"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_help_begins_with_an_example_and_knows_quiet(name: str, command: Any) -> None:
    first, example, *_ = command.help.split("\n\n")
    assert first.count("\n") <= 2  # what it does, in a sentence
    assert example.startswith("Example:")
    assert f"egnn-md {name.split()[0]}" in example
    options = {flag for parameter in command.params for flag in parameter.opts}
    assert "--quiet" in options


@pytest.mark.parametrize(("name", "command"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_verb_has_the_common_options_under_common_names(name: str, command: Any) -> None:
    flags = {parameter.name: set(parameter.opts) for parameter in command.params}
    assert "--json" in flags["as_json"]
    common = {"output": "-o", "quiet": "-q", "threads": "--threads", "overwrite": "--overwrite", "device": "--device"}
    for parameter, flag in common.items():
        assert flag in flags.get(parameter, {flag})
    strangers = {"--out", "--force", "--verbose", "--temp", "--dt", "--nsteps", "--again"}
    assert strangers.isdisjoint(set().union(*flags.values()))


def test_options_stand_in_groups() -> None:
    def verb(
        structure: str,
        steps: Annotated[int, typer.Option(help="x")] = 1,
        device: Annotated[str, typer.Option(help="x")] = "cpu",
        output: Annotated[str, typer.Option(help="x", rich_help_panel="Mine")] = "",
    ) -> None: ...

    signature = teaching_signature(verb)
    panels = {
        name: getattr(parameter.annotation, "__metadata__", [None])[0]
        for name, parameter in signature.parameters.items()
    }
    assert panels["structure"] is None
    assert panels["steps"].rich_help_panel is None
    assert panels["device"].rich_help_panel == "Machine"
    assert panels["output"].rich_help_panel == "Mine"  # said by the verb itself
    assert panels["quiet"].rich_help_panel == "What is said"


def test_examples_come_first() -> None:
    text = "Do it.\n\n    Long story.\n\n    Example:  egnn-md x a\n\n    or        egnn-md x b\n    "
    assert example_first(text) == "Do it.\n\nExample:  egnn-md x a\n\nor        egnn-md x b\n\nLong story."


@pytest.mark.filterwarnings("ignore::egnn_md.calculators.ExtrapolationWarning")
def test_quiet_says_results_and_errors_only(call: Call, checkpoint_file: Path) -> None:
    ase.io.write("wet.xyz", molecule("H2O"))
    words = ("relax", "wet.xyz", "--model", checkpoint_file, "--steps", 1, "--dtype", "float64")
    code, out, err = call(*words, "-o", "a.xyz")
    assert (code, bool(out), bool(err)) == (1, True, True)  # not converged: said
    code, out, err = call(*words, "-o", "b.xyz", "--quiet")
    assert (code, bool(out), err) == (1, True, [])
    code, out, err = call(*words, "-o", "b.xyz", "--quiet")
    assert code == 2
    assert "b.xyz exists already" in err[0]


def test_quiet_errors_of_the_system_are_said(
    call: Call, checkpoint_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from egnn_md.cli import relax

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "wet.xyz")

    monkeypatch.setattr(relax, "_write", full)
    code, out, err = call("relax", "H2O", "--model", checkpoint_file, "--steps", 1, "-o", "wet.xyz", "--quiet")
    assert (code, out) == (2, "")
    assert err == ["egnn-md: wet.xyz: No space left on device: make room, then go on (a run: with --resume)"]


def test_ensemble_in_any_case(call: Call, checkpoint_file: Path) -> None:
    ase.io.write("wet.xyz", molecule("H2O"))
    words = ("md", "wet.xyz", "--model", checkpoint_file, "--ensemble", "NVE", "--steps", 0, "--json", "-o", "run")
    code, out, err = call(*words)
    assert code == 0, err
    assert json.loads(out)["settings"]["ensemble"] == "nve"


def test_the_type_of_what_load_gives_is_right(tmp_path: Path) -> None:
    """Editors complete by these: each shipped name has its class."""
    typed: dict[str, str] = {}
    for variant in typing.get_overloads(egnn_md.load):
        names, of_any_file = variant.__annotations__["name_or_path"], variant.__annotations__["return"]
        if names.startswith("Literal["):
            typed |= dict.fromkeys(typing.get_args(eval(names, {"Literal": typing.Literal})), of_any_file)
    names = (*egnn_md.shipped_models(), "egnn-xtb", "organics-flow")
    assert typed == {name: type(egnn_md.load(name)).__name__ for name in names}
    assert set(typed.values()) <= set(of_any_file.split(" | "))


@pytest.mark.parametrize("package", PACKAGES)
def test_tab_completion_lists_public_names_and_little_else(package: str) -> None:
    module = importlib.import_module(package)
    listed = {name for name in dir(module) if not name.startswith("_")}
    public = {name for name in module.__all__ if not name.startswith("_")}
    assert public <= listed
    assert {"Any", "TYPE_CHECKING", "annotations"}.isdisjoint(listed)
    for name in listed:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("package", [*PACKAGES, "egnn_md.registry"])
def test_public_names_have_docstrings_of_their_own(package: str) -> None:
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ["models", "facts_of"]):
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            inherited = [base.__doc__ for base in getattr(value, "__mro__", [object])[1:]]
            assert value.__doc__
            assert value.__doc__ not in inherited, f"{package}.{name}"


@pytest.mark.parametrize("name", sorted(egnn_md.shipped_models()))
def test_every_shipped_model_shows_itself_in_a_notebook(name: str) -> None:
    shown: Any = egnn_md.load(name)
    assert f"<td>{name}</td>" in shown._repr_html_()
    assert "float32 on cpu" in shown._repr_html_()


def test_a_result_shows_itself_in_a_notebook(checkpoint_file: Path) -> None:
    atoms = molecule("H2O")
    atoms.cell, atoms.pbc = np.eye(3) * 9.0, True
    result = egnn_md.Predictor(checkpoint_file)(
        atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, stress=True
    )
    shown = result._repr_html_()
    assert f"{result.energy:.5f} eV" in shown
    assert " bar" in shown


def test_models_say_what_for() -> None:
    found = egnn_md.models()
    assert [model.name for model in found] == sorted(egnn_md.shipped_models())
    for model in found:
        assert model.purpose
        assert model.accuracy
        assert model.name in repr(found)
        assert model.name in found._repr_html_()
    assert found["organic-xtb"].elements.split() == ["H", "C", "N", "O", "F"]
    with pytest.raises(KeyError, match="there are"):
        _ = found["organic-xbt"]


def test_models_stay_a_package_too() -> None:
    code = "import egnn_md.models.potential as p, egnn_md; print(len(egnn_md.models()), egnn_md.models.potential is p)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(egnn_md.shipped_models())), "True"]


def with_examples() -> list[str]:
    """Modules whose docstrings have examples, by their text: none is imported for it."""
    package = Path(egnn_md.__file__).parent
    found = {}
    for folder, name in ((package, "egnn_md"), ((package / "calculators").resolve(), "egnn_md.calculators")):
        for path in folder.rglob("*.py"):
            if re.search(r"^ *>>> ", path.read_text(), re.MULTILINE):
                dotted = ".".join([name, *path.relative_to(folder).with_suffix("").parts])
                found[dotted.removesuffix(".__init__")] = None
    return sorted(found)


@pytest.mark.parametrize("module", with_examples())
def test_examples_in_docstrings_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("package", ["egnn_md", "egnn_md.calculators", "egnn_md.dynamics"])
def test_public_names_have_an_example(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        text = inspect.getdoc(egnn_md.registry.models if name == "models" else value) or ""
        is_warning = inspect.isclass(value) and issubclass(value, Warning)
        assert ">>> " in text or is_warning or name in ("__version__", "create_openmm_force"), f"{package}.{name}"


def test_info_is_words(call: Call, shipped: str) -> None:
    code, out, _ = call("info", shipped)
    assert code == 0
    assert "what for" in out
    words = " ".join(re.sub(r"[│┃]", " ", out).split())
    assert "MD of a molecule 37.8" in words  # no letter without a word
    assert "frames marked" not in words
    assert "SHA-256" in out
    assert not re.search(r"[0-9a-f]{20}", out)  # none of the sums is written out
    assert json.loads(call("info", shipped, "--json")[1])["facts"]["charges"] == "0"


@pytest.mark.parametrize("name", sorted(egnn_md.shipped_models()))
def test_info_of_shipped_models_has_no_letter_without_a_word(call: Call, name: str) -> None:
    assert "frames marked" not in " ".join(re.sub(r"[│┃]", " ", call("info", name)[1]).split())


def test_doctor_finds_this_machine_healthy(call: Call, shipped: str) -> None:
    code, out, err = call("doctor", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["packages"]["torch"]
    assert found["self_test"]["passed"]
    assert found["self_test"]["force_error_eV_per_A"] < 1e-4


def test_doctor_says_what_is_broken(call: Call, shipped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from egnn_md.calculators import EGNNCalculator

    monkeypatch.setattr(EGNNCalculator, "get_potential_energy", lambda *_, **__: 0.0)
    code, out, _ = call("doctor")
    assert code == 1
    assert "FAILED" in out


@pytest.mark.filterwarnings("ignore::egnn_md.calculators.ExtrapolationWarning")
def test_evaluation_leaves_a_report(call: Call, checkpoint_file: Path) -> None:
    from ase.calculators.singlepoint import SinglePointCalculator

    frames = []
    for k in range(3):
        atoms = molecule("CH4")
        atoms.rattle(0.05, seed=k)
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0 * k, forces=np.full((5, 3), 0.1 * k))
        frames.append(atoms)
    ase.io.write("frames.extxyz", frames)
    code, _, err = call("evaluate", checkpoint_file, "frames.extxyz", "--report", "errors.html")
    assert code == 0, err
    page = Path("errors.html").read_text()
    assert "Force components" in page
    assert "of the worst 3" in page
    assert "mean absolute error" in page


def test_a_prediction_shows_itself_in_a_notebook(random_potential: Callable[..., Any]) -> None:
    from egnn_md.neighbors import GraphBuilder

    potential, atoms = random_potential(), molecule("CH4")
    build = GraphBuilder(potential.config.cutoff)
    prediction = potential(build(atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc))
    assert "Potential" in potential._repr_html_()
    assert "H, C, N, O, F" in potential._repr_html_()
    shown = prediction._repr_html_()
    assert f"{prediction.energy.item():.5f} eV" in shown
    assert f"{prediction.forces.norm(dim=1).max().item():.4f} eV/Å" in shown


@pytest.mark.filterwarnings("ignore::egnn_md.calculators.ExtrapolationWarning")
def test_runs_show_themselves_in_a_notebook(checkpoint_file: Path, shipped: str, tmp_path: Path) -> None:
    from egnn_md.calculators import EGNNCalculator
    from egnn_md.dynamics import FlowDynamics
    from egnn_md.dynamics.md import start
    from egnn_md.dynamics.relax import relax
    from egnn_md.dynamics.settings import MDSettings

    dynamics = FlowDynamics(molecule("CH3CH2OH"), "ethanol-flow", stride=10.0, temperature_K=300, rng=0)
    dynamics.run(2)
    assert "<td>2 strides, 20 fs</td>" in dynamics._repr_html_()
    assert egnn_md.view(dynamics).title == "C2H6O"
    atoms = molecule("H2O")
    atoms.calc = EGNNCalculator(checkpoint_file)
    done = relax(atoms, steps=1)
    assert f"{done.energy:.5f} eV" in done._repr_html_()
    simulation = start(atoms, MDSettings(steps=2, seed=0), tmp_path / "run")
    assert "0 of 2 steps" in simulation._repr_html_()
    simulation.run()
    assert "finished" in simulation._repr_html_()
