"""Real compilations for all tests: a small potential's force call, and the two of one with charges, a minute each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from egnn_md.compiled import forces
from egnn_md.compiled.package import NoCompiler, check_compiler
from egnn_md.models.potential import Potential

CHARGED = {"long_range": True, "charge_response": True, "atomic_dipoles": True, "n_layers": 1}


@pytest.fixture(scope="session")
def made_packages(tmp_path_factory: pytest.TempPathFactory, make_random_potential: Callable[..., Potential]) -> Path:
    """A cache with the package of `random_potential()`."""
    return _compiled(make_random_potential(), tmp_path_factory, 1)


@pytest.fixture(scope="session")
def made_charged(tmp_path_factory: pytest.TempPathFactory, make_random_potential: Callable[..., Potential]) -> Path:
    """A cache with both packages of `random_potential(**CHARGED)`."""
    return _compiled(make_random_potential(**CHARGED), tmp_path_factory, 2)


def _compiled(model: Potential, tmp_path_factory: pytest.TempPathFactory, n_packages: int) -> Path:
    try:
        check_compiler()
    except NoCompiler as error:
        pytest.skip(str(error))
    cache = tmp_path_factory.mktemp("cache")
    cache.chmod(0o700)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        about = forces.compile_forces(model, said.append)
    assert about["difference"] <= about["tolerance"] == 1e-9
    assert len(about["packages"]) == n_packages
    assert all(path.is_relative_to(cache) for path in about["packages"].values())
    assert len(said) == 2 * n_packages
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
