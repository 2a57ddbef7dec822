"""A compiled force call is the eager one, whatever the structure's size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import make_graph, molecule

from egnn_md.chemistry.elements import UnsupportedElement
from egnn_md.models.potential import Potential

CUTOFF = 4.0


@pytest.fixture
def compiled(random_potential: Callable[..., Potential], monkeypatch: pytest.MonkeyPatch) -> Potential:
    """A potential that predicts through its trace; the compiler behind it is left out, it takes a minute."""

    def trace_only(function: Any, **_: Any) -> Any:
        return function

    monkeypatch.setattr(torch, "compile", trace_only)
    model = random_potential()
    model.compile_forces()
    return model


def test_compiled_and_eager_agree(compiled: Potential, random_potential: Callable[..., Potential]) -> None:
    eager = random_potential()
    for name in ("CH3CH2OH", "H2O", "C6H6", "H2"):
        graph = make_graph(*molecule(name), CUTOFF)
        expected, found = eager(graph), compiled(graph)
        assert torch.allclose(found.energy, expected.energy, rtol=1e-13)
        assert torch.allclose(found.forces, expected.forces, rtol=1e-11, atol=1e-11)
        assert torch.allclose(found.extrapolation, expected.extrapolation, rtol=1e-10)


def test_another_precision_makes_another_trace(compiled: Potential) -> None:
    graph = make_graph(*molecule("H2O"), CUTOFF)
    double = compiled(graph)
    single = compiled.to(torch.float32)(graph)
    assert single.forces.dtype == torch.float32
    assert torch.allclose(single.forces.double(), double.forces, atol=1e-4)


def test_unknown_elements_are_refused_all_the_same(compiled: Potential) -> None:
    graph = make_graph(*molecule("SiH4"), CUTOFF)
    with pytest.raises(UnsupportedElement, match="Si"):
        compiled(graph)
