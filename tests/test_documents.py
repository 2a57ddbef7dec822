"""The documents say what is so: snippets run, configurations validate, commands, options, links and the map exist."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import pytest

from egnn_md import checkpoint

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"( *<!-- not run[^>]*-->\n)?^( *)```(\w*)\n(.*?)^\2```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    """(where, text) of every fenced block in this language, those marked as not to be run left out."""
    found = []
    for document in DOCUMENTS:
        for match in FENCE.finditer(document.read_text()):
            if match[3] == language and match[1] is None:
                line = document.read_text()[: match.start()].count("\n") + 1
                found.append((f"{document.name}:{line}", textwrap.dedent(match[4])))
    return found


def commands() -> list[tuple[str, list[str]]]:
    """(where, words) of every `egnn-md …` command in a shell block; several may stand on one line."""
    found = []
    for where, text in blocks("bash"):
        for line in text.splitlines():
            for part in re.split(r"\s{3,}", line.partition(" #")[0]):
                words = part.split()
                if words and words[0] in ("egnn-md", "torchrun"):
                    start = words.index("egnn_md.cli") if words[0] == "torchrun" else 0
                    found.append((where, words[start + 1 :]))
    return found


@cache
def help_of(*verb: str) -> str:
    """What `egnn-md VERB --help` prints, wide enough that nothing is cut."""
    script = "from egnn_md.cli import main; main()"
    environment = {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *verb, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"egnn-md {' '.join(verb)}: {done.stderr}"
    return done.stdout


@pytest.mark.filterwarnings("ignore::egnn_md.predict.ExtrapolationWarning")
@pytest.mark.parametrize(("where", "text"), blocks("python"))
def test_python_snippet_runs(
    where: str, text: str, checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "organic-xtb" not in checkpoint.shipped_models():  # a random potential stands in
        monkeypatch.setattr(checkpoint, "shipped_models", lambda: {"organic-xtb": checkpoint_file})
    exec(compile(text, where, "exec"), {})


@pytest.mark.parametrize(("where", "text"), blocks("toml"))
def test_configuration_is_valid(where: str, text: str, tmp_path: Path) -> None:
    from egnn_md.training.tasks import load_config

    (tmp_path / "config.toml").write_text(text)
    assert load_config(tmp_path / "config.toml").data.files


def test_documents_name_every_configuration_key() -> None:
    from egnn_md.training.tasks import TASKS, task_class

    text = (ROOT / "docs" / "how-to" / "train.md").read_text()
    table = text[text.index("## All keys") :]
    for task in TASKS:
        for section in ("data", "model", "training"):
            annotation = task_class(task).config_class.model_fields[section].annotation
            assert annotation is not None
            for key in annotation.model_fields:  # type: ignore[attr-defined]
                assert re.search(rf"`(?:{section}\.)?{key}`", table), f"{task}: {section}.{key} is not explained"


@pytest.mark.parametrize(("where", "words"), commands())
def test_command_and_its_options_exist(where: str, words: list[str]) -> None:
    known = help_of(*words[: 2 if words[0] == "data" else 1])
    for option in (word for word in words[1:] if re.fullmatch(r"-{1,2}[a-z][\w-]*", word)):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", known), f"{where}: egnn-md {words[0]} has no {option}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        card_to_come = path.name == "organic-xtb.md" and not checkpoint.shipped_models()
        assert path.exists() or card_to_come, f"{document.name}: {target} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{document.name}: no heading for #{anchor}"


def test_map_of_the_house_is_right() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (house,) = re.findall(r"## Map\n\n```\n(.*?)```", text, re.DOTALL)
    mapped, folder = set(), ""
    for line in house.splitlines():
        name = line.split()[0]
        folder = name if not line.startswith(" ") else folder
        path = name if name == folder else folder + name
        assert (ROOT / path).exists(), f"the map names {path}"
        mapped.add(path)
    ignored = {"__init__.py", "calculators", "__pycache__", "py.typed"}
    parts = {f"egnn_md/{p.name}{'/' * p.is_dir()}" for p in (ROOT / "egnn_md").iterdir() if p.name not in ignored}
    assert parts <= mapped, f"the map lacks {sorted(parts - mapped)}"
