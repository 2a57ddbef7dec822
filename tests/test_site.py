"""The site has a page for every verb and every public name, and the guide leads to every page that people wrote."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import browser
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


@pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no browser here")
def test_a_browser_sees_what_is_wrong_with_a_page(tmp_path: Path) -> None:
    """`make look` opens the whole site so; here are pages with one defect each, and one with none."""
    wrong = {
        "script": ("<script>nowhere()</script>", "1280: script: ReferenceError: nowhere is not defined"),
        "console": ("<script>console.error('oh')</script>", "1280: console: oh"),
        "wide": (
            "<p>Some <b class=long>words</b></p><style>.long {padding-left: 2000px}</style>",
            'class="long"> "words"',
        ),
        "narrow": ("<p style='width: 600px'>Words</p>", "390 light: 210 px too wide"),
        "image": ("<img src=none.png>", "1280 light: no image: file://"),
        "link": ("<a href=none.html>Words</a>", "link to nothing: file://"),
        "anchor": ("<a href='good.html#none'>Words</a>", "link to no place of its page: file://"),
        "elsewhere": (
            "<img src='http://127.0.0.1:9/a.png' loading=lazy>",
            "1280: fetched from elsewhere: http://127.0",
        ),
        "faint": ("<p style='color: #888; background: #777'>Words</p>", "1280 light: contrast 1.3: <p"),
        "bright": ("<style>body {background: white !important}</style>", "1280: as bright in the dark"),
    }
    head = (
        "<!DOCTYPE html><meta name=viewport content='width=device-width'><meta name=color-scheme content='light dark'>"
    )
    dark = "<style>body {margin: 0} @media (prefers-color-scheme: dark) {body {background: #222}}</style>"
    good = "<h1 id=top>Words</h1><pre style='overflow: auto'>" + 500 * "-" + "</pre><a href='good.html#top'>more</a>"
    pages = []
    for name, (body, _) in {"good": (good, ""), **wrong}.items():
        pages.append(tmp_path / f"{name}.html")
        pages[-1].write_text(f"{head}{dark}<body>{body}</body>")
    with browser.Browser() as window:
        found = browser.look(window, pages)
        endless = tmp_path / "endless.html"
        endless.write_text("<script>for (;;);</script>")
        found |= browser.look(window, [endless], seconds=3.0)
        found |= browser.look(window, pages[:1])  # and a page after that is as good as before
    told = {Path(path).stem: problems for path, problems in found.items()}
    assert told.keys() == {*wrong, "endless"}
    assert "1280: no end of loading in time" in told["endless"]
    for name, (_, expected) in wrong.items():
        assert any(expected in problem for problem in told[name]), (name, told[name])
