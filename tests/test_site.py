"""The site has a page for every verb and every public name, and the guide leads to every page that people wrote."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from egnn_md.cli import app
from egnn_md.registry import models

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules that make the pages."""
    monkeypatch.syspath_prepend(str(DOCS / "_site"))
    made = {name: importlib.import_module(name) for name in ("commands", "names")}
    for name in made:
        monkeypatch.delitem(sys.modules, name)
    return made


def test_every_verb_has_a_page_with_all_its_options(site: dict[str, ModuleType]) -> None:
    root: Any = typer.main.get_command(app)
    pages = site["commands"].pages()
    for name, command in root.commands.items():
        page = pages[f"cli-{name}.md"]
        for child in getattr(command, "commands", {name: command}).values():
            assert (child.help or "").splitlines()[0] in page
            for parameter in child.params:
                flag = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name.upper()
                assert f"`{flag}`" in page, f"egnn-md {name}: {flag}"


def test_every_public_name_has_a_page_that_leads_to_it(site: dict[str, ModuleType]) -> None:
    names = site["names"]
    pages = names.pages()
    for package in names.PACKAGES:
        for name in importlib.import_module(package).__all__:
            if name.startswith("_"):
                continue
            (dotted,) = re.findall(r"^::: ([\w.]+)$", pages[f"{package}.{name}.md"], re.MULTILINE)
            module, _, attribute = dotted.rpartition(".")
            found = getattr(importlib.import_module(module), attribute)
            assert found.__doc__, dotted


def test_the_guide_leads_to_every_page() -> None:
    text = "".join((DOCS / name).read_text() for name in ("guide.md", "decisions/index.md", "models/index.md"))
    pages = [page for folder in ("tutorials", "how-to", "concepts") for page in (DOCS / folder).glob("*.md")]
    missing = [page.name for page in pages if f"({page.parent.name}/{page.name})" not in text]
    missing += [page.name for page in (DOCS / "decisions").glob("0*.md") if f"({page.name})" not in text]
    missing += [model.name for model in models() if f"/{model.name}.md)" not in text]
    assert missing == []


def test_examples_are_code_on_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("griffe")
    monkeypatch.syspath_prepend(str(DOCS / "_site"))
    as_markdown = importlib.import_module("docstrings").as_markdown
    monkeypatch.delitem(sys.modules, "docstrings")
    text = "Does it.\n\nParameters\n----------\na, b: numbers\n\n>>> f(1)\n2\n>>> for k in x:\n...     g(k)\n\nEnd."
    code = "```pycon\n>>> f(1)\n2\n>>> for k in x:\n...     g(k)\n```"
    assert as_markdown(text) == f"Does it.\n\n**Parameters**\n\n- `a`, `b`: numbers\n\n{code}\n\nEnd."
