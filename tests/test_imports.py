"""Imports run one way, and the engines' packages load only where and when they are needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import egnn_md

PACKAGE = Path(egnn_md.__file__).parent
LAYERS = [
    {"chemistry", "forks", "hessian", "memory", "options", "storage"},
    {"shown"},
    {"graph"},
    {"neighbors"},
    {"nn"},
    {"models"},
    {"checkpoint", "compiled"},
    {"registry"},
    {"model_source"},
    {"predict"},
    {"laws"},
    {"data"},
    {"jobs"},
    {"evaluation"},
    {"training", "dynamics"},
    {"paper"},
    {"calculators"},
    {"report"},
    {"distill"},
    {"cli", "__main__"},
]
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
NO_CODE = {"", "pretrained"}
"""The package itself, lazy, and a folder of files."""
ENGINES = {"ase", "ipi", "lammps", "mdtraj", "metatensor", "metatomic", "openmm", "openmmml", "torch_sim"}
ENGINE_USERS = {"data", "jobs", "dynamics", "distill", "calculators", "report", "cli", "__main__"}
NAMED_AFTER = {
    "dynamics/ase_": {"ase"},
    "calculators/ase_": {"ase"},
    "calculators/ipi_": {"ipi"},
    "calculators/metatomic_": {"metatensor", "metatomic"},
    "calculators/openmm_": {"openmm", "openmmml"},
    "calculators/torchsim_": {"torch_sim"},
}
"""Modules loaded by those who asked for that engine: their classes derive from the engine's."""


def modules() -> list[str]:
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")) + sorted(
        f"calculators/{path.name}" for path in (PACKAGE / "calculators").resolve().glob("*.py")
    )


MODULES = sorted(set(modules()))


def part_of(dotted: str) -> str:
    """'nn' for 'egnn_md.nn.egcl', '' for 'egnn_md'."""
    return [*dotted.split("."), ""][1]


def imports(tree: ast.AST, package: str, *, whole: bool = False) -> Iterator[tuple[str, int]]:
    """(absolute dotted name, line) of everything a module imports, `from egnn_md import x` as egnn_md.x.

    `whole`: `from a.b import x` gives a.b.x too, which may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            origin = ".".join(filter(None, [base, node.module or ""]))
            submodules = [origin] if origin != "egnn_md" else [f"egnn_md.{alias.name}" for alias in node.names]
            if whole:
                submodules += [f"{origin}.{alias.name}" for alias in node.names]
            yield from ((name, node.lineno) for name in submodules)


def parse(module: str) -> tuple[ast.Module, str, str]:
    """(syntax tree, dotted package, part) of a file of the package."""
    path = Path(module)
    tree = ast.parse((PACKAGE / path).read_text())
    package = ".".join(["egnn_md", *path.parent.parts])
    return tree, package, path.parts[0].removesuffix(".py")


def at_import_time(tree: ast.Module) -> ast.Module:
    """The statements that run when the module is imported: no function bodies, nothing under TYPE_CHECKING."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    stripped = Strip().visit(tree)
    assert isinstance(stripped, ast.Module)
    return stripped


def test_all_modules_are_looked_at() -> None:
    assert {"nn/egcl.py", "models/potential.py", "calculators/__init__.py", "graph.py"} <= set(MODULES)
    assert {Path(module).parts[0].removesuffix(".py") for module in MODULES} <= RANK.keys() | NO_CODE | {"__init__"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    tree, package, part = parse(module)
    if part in {"__init__", "pretrained"}:
        return  # lazy: the test of a fresh process watches over it
    for name, line in imports(tree, package):
        if name.split(".")[0] != "egnn_md" or part_of(name) in {part, "", "__version__"}:
            continue
        assert part_of(name) in RANK, f"{module}:{line} imports {name}: which layer is that?"
        assert RANK[part_of(name)] < RANK[part], f"{module}:{line} imports {name}, which stands above it or beside it"


def test_no_circle_of_imports_in_a_folder() -> None:
    """Not even by way of TYPE_CHECKING or of a late import: what knows each other belongs into one file."""
    needs = {}
    for module in MODULES:
        tree, package, _ = parse(module)
        own = f"{package}.{Path(module).stem}".removesuffix(".__init__")
        needs[own] = {name for name, _ in imports(tree, package, whole=True)} - {own}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for needed in needs[module] & needs.keys():
                visit(needed, (*path, module))
            done.add(module)

    for module in needs.keys() - {"egnn_md"}:
        visit(module, ("egnn_md",))  # lazy, and importing nothing itself


@pytest.mark.parametrize("module", MODULES)
def test_engines_load_late_and_only_at_the_border(module: str) -> None:
    tree, package, part = parse(module)
    everywhere = {name.split(".")[0] for name, _ in imports(tree, package)} & ENGINES
    assert part in ENGINE_USERS or not everywhere, f"{module} imports {everywhere}"
    own = set().union(*(engines for prefix, engines in NAMED_AFTER.items() if module.startswith(prefix)))
    early = {name.split(".")[0] for name, _ in imports(at_import_time(tree), package)} & (ENGINES - own)
    assert not early, f"{module} imports {early} when it is imported"


def test_the_checker_catches_what_it_should() -> None:
    source = "import ase\nif TYPE_CHECKING:\n    import openmm\n"
    source += "def f():\n    import mdtraj\nfrom ..models import potential\n"
    found = {name for name, _ in imports(ast.parse(source), "egnn_md.nn")}
    assert found == {"ase", "openmm", "mdtraj", "egnn_md.models"}
    assert {name for name, _ in imports(at_import_time(ast.parse(source)), "egnn_md.nn")} == {"ase", "egnn_md.models"}


@pytest.mark.parametrize("module", ["egnn_md", "egnn_md.calculators"])
def test_importing_the_package_is_cheap(module: str) -> None:
    heavy = ("torch", "ase", "openmm", "mdtraj", "lightning", "matplotlib", "numpy")
    code = f"import {module}, sys; print([name for name in {heavy} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert result.stdout.strip() == "[]"


def test_evaluating_needs_no_training_extra() -> None:
    code = """
import importlib, sys
from egnn_md.evaluation.evaluate import EVALUATIONS
for module in EVALUATIONS.values():
    importlib.import_module(module)
print([name for name in ("lightning", "pydantic") if name in sys.modules])
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert result.stdout.strip() == "[]"


def test_lazy_names_are_the_real_ones() -> None:
    from egnn_md.checkpoint import load
    from egnn_md.graph import Graph

    assert egnn_md.load is load
    assert egnn_md.Graph is Graph
    for name in egnn_md.__all__:
        assert getattr(egnn_md, name) is not None
    with pytest.raises(AttributeError, match="Grpah"):
        _ = egnn_md.Grpah
