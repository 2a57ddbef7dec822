"""Models with charges have a package for molecules and one for a periodic cell, which read the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CHARGED

from egnn_md.compiled import forces
from egnn_md.compiled.package import CompilationError
from egnn_md.models.long_range import LongRange
from egnn_md.models.potential import Potential
from egnn_md.predict import Predictor

Make = Callable[..., Potential]
CELL = np.array([[6.0, 0.0, 0.0], [0.5, 6.5, 0.0], [0.0, -0.4, 7.0]])
PERIODIC = np.ones(3, dtype=bool)


@pytest.fixture
def model(made_charged: Path, random_potential: Make, monkeypatch: pytest.MonkeyPatch) -> Potential:
    """Weights that were not compiled, all of them other than zero: heads start at zero."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(made_charged))
    model = random_potential(seed=4, **CHARGED)
    with torch.no_grad():
        for weight in model.long_range.parameters():  # type: ignore[union-attr]
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def structure(n_atoms: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(n_atoms)
    lattice = np.array([(x, y, z) for x in range(4) for y in range(4) for z in range(4)], float)[:n_atoms]
    return 1.5 * lattice + 0.2 * rng.normal(size=(n_atoms, 3)), rng.choice([1, 6, 7, 8, 9], n_atoms)


@pytest.fixture
def eager_sums(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each force call in which charges were summed eagerly."""
    calls: list[int] = []
    forward = LongRange.forward

    def counted(self: LongRange, *inputs: Any) -> Any:
        calls.append(1)
        return forward(self, *inputs)

    monkeypatch.setattr(LongRange, "forward", counted)
    return calls


@pytest.mark.parametrize("where", [(), (CELL, PERIODIC)])
def test_molecules_and_cells_are_compiled(model: Potential, eager_sums: list[int], where: tuple[Any, ...]) -> None:
    compiled, eager = Predictor(model), Predictor(model, compile=False)
    positions, numbers = structure(17)
    found = compiled(positions, numbers, *where, stress=bool(where))
    assert eager_sums == []
    expected = eager(positions, numbers, *where, stress=bool(where))
    assert eager_sums == [1]
    for name in ("energy", "forces", "stress", "charges", "extrapolation"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9, err_msg=name)


def test_both_read_the_weights_of_now(model: Potential) -> None:
    """A call to one does not take the weights from the other."""
    assert forces.use_compiled(model, "auto")
    molecule, cell = (forces.example(model, 8, form) for form in (forces.ISOLATED, forces.PERIODIC))
    assert model.compiled is not None
    places = []
    for _ in range(2):
        for inputs in (molecule, cell):
            torch.testing.assert_close(model.compiled(*inputs).energies, model.local_call(*inputs).energies)
        places.append([weight.data_ptr() for weight in model.parameters()])
        with torch.no_grad():
            model.network.readout[2].weight.mul_(1.5)
    assert places[0] == places[1]


def test_what_has_no_package_is_eager(model: Potential, eager_sums: list[int]) -> None:
    (isolated,) = (path for name, path in forces.find(model).items() if name == "isolated")
    model.compiled = forces.CompiledCall(model, {"isolated": isolated})
    inputs = forces.example(model, 8, forces.PERIODIC)
    call = model.compiled(*inputs)
    assert eager_sums == [1]
    assert len(call.virials) == 1


def test_what_is_there_is_used_where_the_rest_cannot_be_made(model: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    found = forces.find(model)
    assert set(found) == {"isolated", "periodic"}
    monkeypatch.setattr(forces, "find", lambda model: {"periodic": found["periodic"]})

    def refuse(model: Potential, **_: object) -> None:
        raise CompilationError("the compiler is on strike")

    monkeypatch.setattr(forces, "compile_forces", refuse)
    said: list[str] = []
    assert forces.use_compiled(model, True, said.append)
    assert len(said) == 1
    assert "the compiler is on strike" in said[0]
