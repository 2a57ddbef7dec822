"""The tutorial's commands run as they stand there, in its folder, one after the other; its figures are made small."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from egnn_md.cli import main
from egnn_md.distill import card, rounds

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "distil-your-own.md"
SMALLER = {"--rounds": "1", "--labels": "10", "--steps": "4", "--ps": "0.02", "--copies": "4"}
"""Of the first command, whose figures take minutes."""


@pytest.mark.filterwarnings("ignore::egnn_md.predict.ExtrapolationWarning")
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tblite")
    pytest.importorskip("rdkit")
    monkeypatch.chdir(tmp_path)
    for name, value in (("NVE_PS", 0.02), ("STABILITY_PS", 0.02)):
        monkeypatch.setattr(card, name, value)
    monkeypatch.setattr(rounds, "TEST_FRAMES", 4)
    text = PAGE.read_text().partition("## In earnest")[0]
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line)[1:] for kind, block in blocks if kind == "bash" for line in block.splitlines()]
    distill, simulate = (words for words in commands if words[0] in ("distill", "md"))
    for option, value in SMALLER.items():
        distill[distill.index(option) + 1] = value
    main(distill)
    assert "meV/Å on unseen frames at 300 K" in capsys.readouterr().out
    for name in re.findall(r"`(chloromethane/[\w.]+)`", text):
        assert (tmp_path / name).stat().st_size > 100
    main(simulate)
    assert "finished" in capsys.readouterr().out
    (python,) = (block for kind, block in blocks if kind == "python")
    exec(compile(python, str(PAGE), "exec"), {})
    assert capsys.readouterr().out.endswith(" eV\n")
