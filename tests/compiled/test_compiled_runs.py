"""`egnn-md md` with compiled force calls: found, noted, resumed alike, advised where they are missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egnn_md.cli import md
from egnn_md.dynamics.state import RestartState

RUN = ("--ensemble", "nve", "--timestep", 0.02, "--dtype", "float64", "--seed", 1, "--interval", 5)
pytestmark = pytest.mark.filterwarnings("ignore::egnn_md.predict.ExtrapolationWarning")


Run = Callable[..., tuple[int, str, list[str]]]


def done(result: tuple[int, str, list[str]]) -> str:
    """What a run that ended well said on stderr."""
    code, _, lines = result
    assert code == 0, lines
    return "\n".join(lines)


def positions(folder: Path) -> Any:
    return RestartState.load(folder / "state.npz").arrays["positions"]


def test_a_run_goes_on_as_it_began(packages: Path, call: Run, checkpoint_file: Path) -> None:
    start = ("md", "CH3CH2OH", "--model", checkpoint_file, *RUN)
    done(call(*start, "--steps", 20, "-o", "whole"))
    done(call(*start, "--steps", 10, "-o", "parts"))
    assert RestartState.load(Path("parts/state.npz")).information["compiled"] is True
    done(call("md", "--resume", "parts", "--steps", 20))
    assert np.array_equal(positions(Path("parts")), positions(Path("whole")))
    done(call(*start, "--no-compile", "--steps", 20, "-o", "eager"))
    assert RestartState.load(Path("eager/state.npz")).information["compiled"] is False
    np.testing.assert_allclose(positions(Path("eager")), positions(Path("whole")), atol=1e-9)


def test_a_run_begun_without_goes_on_without(
    made_packages: Path, call: Run, checkpoint_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ("md", "CH3CH2OH", "--model", checkpoint_file, *RUN)
    done(call(*start, "--steps", 20, "-o", "whole"))
    done(call(*start, "--steps", 10, "-o", "parts"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(made_packages))  # compiled in between
    make, asked = md.make_calculator, []

    def recorded(*words: Any) -> Any:
        calculator = make(*words)
        asked.append(calculator.compiled)
        return calculator

    monkeypatch.setattr(md, "make_calculator", recorded)
    done(call("md", "--resume", "parts", "--steps", 20))
    assert asked == [False]
    assert np.array_equal(positions(Path("parts")), positions(Path("whole")))


def test_a_package_that_is_gone(
    packages: Path, call: Run, checkpoint_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(call("md", "CH3CH2OH", "--model", checkpoint_file, *RUN, "--steps", 10, "-o", "run"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path.cwd()))
    assert "goes on without them, equal but for round-off" in done(call("md", "--resume", "run", "--steps", 20))


def test_a_long_run_says_what_compiling_would_save(
    made_packages: Path, call: Run, checkpoint_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ("md", "CH3CH2OH", "--model", checkpoint_file, *RUN, "--steps", 5, "--overwrite")
    assert "egnn-md compile" not in done(call(*start))
    monkeypatch.setattr(md, "LONG_SECONDS", 0.0)
    assert f"`egnn-md compile {checkpoint_file} --dtype float64` takes a minute or two, once" in done(call(*start))
    assert "egnn-md compile" not in done(call(*start, "--no-compile"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(made_packages))
    assert "egnn-md compile" not in done(call(*start))
