"""One real compilation for all tests: a small potential's force call, about a minute."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from egnn_md.compiled import forces
from egnn_md.compiled.package import NoCompiler, check_compiler
from egnn_md.models.potential import Potential


@pytest.fixture(scope="session")
def made_packages(tmp_path_factory: pytest.TempPathFactory, make_random_potential: Callable[..., Potential]) -> Path:
    """A cache with the package of `random_potential()`."""
    try:
        check_compiler()
    except NoCompiler as error:
        pytest.skip(str(error))
    cache = tmp_path_factory.mktemp("cache")
    cache.chmod(0o700)
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(cache)
    said: list[str] = []
    try:
        about = forces.compile_forces(make_random_potential(), said.append)
    finally:
        if before is None:
            del os.environ["XDG_CACHE_HOME"]
        else:
            os.environ["XDG_CACHE_HOME"] = before
    assert about["difference"] <= about["tolerance"] == 1e-9
    assert Path(about["package"]).is_relative_to(cache)
    assert len(said) == 2
    return cache


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, to be written to."""
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache


@pytest.fixture
def packages(made_packages: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as this test's cache. Not to be written to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(made_packages))
    return made_packages
