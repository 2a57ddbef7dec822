"""Shared fixtures: small random potentials, real molecules, the shipped model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from egnn_md.checkpoint import save, shipped_models
from egnn_md.models.potential import Potential, PotentialConfig
from egnn_md.nn.familiarity import Familiarity

Call = Callable[..., tuple[int, str, list[str]]]
ORGANIC = (1, 6, 7, 8, 9)
REFERENCE_ENERGIES = (-13.6, -1029.0, -1485.0, -2042.0, -2715.0)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def _empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("no-packages")


@pytest.fixture(autouse=True)
def _no_packages(_empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer has compiled stays out of the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(_empty_cache))


@pytest.fixture(scope="session")
def make_random_potential() -> Callable[..., Potential]:
    """Make a small potential with random weights: make(seed=0, dtype=torch.float64, **config)."""

    def make(seed: int = 0, dtype: torch.dtype = torch.float64, **settings: object) -> Potential:
        torch.manual_seed(seed)
        options: dict[str, object] = {
            "elements": ORGANIC,
            "reference_energies": REFERENCE_ENERGIES,
            "hidden_dim": 16,
            "message_dim": 16,
            "n_vectors": 4,
            "n_layers": 2,
            "n_radial": 8,
            "cutoff": 4.0,
        }
        model = Potential(PotentialConfig(**{**options, **settings}))  # type: ignore[arg-type]
        fit_familiarity(model.familiarity)
        model.expected_error.table.copy_(torch.stack([torch.linspace(0.0, 4.0, 12), torch.linspace(0.01, 0.1, 12)]))
        model.valences.ranges.copy_(torch.tensor([-1e3, 1e3]))  # any bonds will do: structures are random too
        return model.to(dtype).eval().requires_grad_(False)

    return make


@pytest.fixture
def random_potential(make_random_potential: Callable[..., Potential]) -> Callable[..., Potential]:
    return make_random_potential


def fit_familiarity(familiarity: Familiarity) -> None:
    """Statistics of random features, so that the extrapolation signal is a number."""
    n_elements, dim = familiarity.mean.shape
    familiarity.fit(torch.randn(50 * n_elements, dim), torch.arange(n_elements).repeat(50))


@pytest.fixture
def checkpoint_file(random_potential: Callable[..., Potential], tmp_path: Path) -> Path:
    """A checkpoint of a small random potential."""
    path = tmp_path / "random.safetensors"
    save(random_potential(), path, {"name": "random", "licence": "MIT"})
    return path


@pytest.fixture
def shipped() -> str:
    """Name of the shipped potential; skips in a tree without its checkpoint."""
    if "organic-xtb" not in shipped_models():
        pytest.skip("the shipped checkpoint is not in this tree")
    return "organic-xtb"


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run `egnn-md …` in an empty folder: exit code, stdout, lines of stderr."""
    from egnn_md.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, list[str]]:
        capfd.readouterr()
        code = 0
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, out, err.splitlines()

    return run
