"""`egnn-md md` with compiled force calls: found, noted, resumed alike, advised where they are missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egnn_md.cli import md
from egnn_md.dynamics.state import RestartState

RUN = ("--ensemble", "nve", "--dtype", "float64", "--seed", 1, "--interval", 5)
pytestmark = pytest.mark.filterwarnings("ignore::egnn_md.predict.ExtrapolationWarning")


def positions(folder: Path) -> Any:
    return RestartState.load(folder / "state.npz").arrays["positions"]


def test_a_run_goes_on_as_it_began(packages: Path, call: Callable[..., Any], checkpoint_file: Path) -> None:
    start = ("md", "CH3CH2OH", "--model", checkpoint_file, *RUN)
    assert call(*start, "--steps", 20, "-o", "whole").code == 0
    assert call(*start, "--steps", 10, "-o", "parts").code == 0
    assert RestartState.load(Path("parts/state.npz")).information["compiled"] is True
    assert call("md", "--resume", "parts", "--steps", 20).code == 0
    assert np.array_equal(positions(Path("parts")), positions(Path("whole")))
    assert call(*start, "--no-compile", "--steps", 20, "-o", "eager").code == 0
    assert RestartState.load(Path("eager/state.npz")).information["compiled"] is False
    assert not np.array_equal(positions(Path("eager")), positions(Path("whole")))
    np.testing.assert_allclose(positions(Path("eager")), positions(Path("whole")), atol=1e-9)


def test_a_run_begun_without_goes_on_without(
    made_packages: Path, call: Callable[..., Any], checkpoint_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ("md", "CH3CH2OH", "--model", checkpoint_file, *RUN)
    assert call(*start, "--steps", 20, "-o", "whole").code == 0
    assert call(*start, "--steps", 10, "-o", "parts").code == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(made_packages))  # compiled in between
    assert call("md", "--resume", "parts", "--steps", 20).code == 0
    assert np.array_equal(positions(Path("parts")), positions(Path("whole")))


def test_a_package_that_is_gone(
    packages: Path, call: Callable[..., Any], checkpoint_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("md", "CH3CH2OH", "--model", checkpoint_file, *RUN, "--steps", 10, "-o", "run").code == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path.cwd()))
    result = call("md", "--resume", "run", "--steps", 20)
    assert result.code == 0
    assert "goes on without them, equal but for round-off" in result.err


def test_a_long_run_says_what_compiling_would_save(
    made_packages: Path, call: Callable[..., Any], checkpoint_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ("md", "CH3CH2OH", "--model", checkpoint_file, *RUN, "--steps", 5, "--overwrite")
    assert "egnn-md compile" not in call(*start).err
    monkeypatch.setattr(md, "LONG_SECONDS", 0.0)
    assert f"`egnn-md compile {checkpoint_file} --dtype float64` takes a minute or two, once" in call(*start).err
    assert "egnn-md compile" not in call(*start, "--no-compile").err
    monkeypatch.setenv("XDG_CACHE_HOME", str(made_packages))
    assert "egnn-md compile" not in call(*start).err
