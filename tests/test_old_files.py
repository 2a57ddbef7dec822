"""Checkpoints of every kind and format, kept for good in tests/files: they load and give the numbers they gave.

The numbers, and those of the shipped models, were computed in float64 by the library that wrote the files. A new format
adds files with its number in their names; none is ever replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import atomic_masses
from numpy.typing import NDArray

from egnn_md.checkpoint import FORMAT_VERSION, KINDS, load, read_header, shipped_models
from egnn_md.dynamics.flow_strides import Strider
from egnn_md.models.propagator import Particles
from egnn_md.neighbors import GraphBuilder
from egnn_md.paper.autoencoder import GraphInput

FILES = Path(__file__).parent / "files"
STORED = dict(np.load(FILES / "answers.npz"))
STRIDE = 8.0
pytestmark = pytest.mark.filterwarnings("ignore:.* has no checksum")
Arrays = Mapping[str, NDArray[Any]]


def given(name: str) -> NDArray[Any]:
    return np.asarray(STORED[f"in.{name}"])


def molecules() -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    return [(given(f"numbers.{k}"), given(f"positions.{k}")) for k in range(3)]


def of_potential(model: Any) -> Arrays:
    build, nothing = GraphBuilder(model.config.cutoff), np.zeros((3, 3))
    found = {}
    for k, (numbers, positions) in enumerate(molecules()):
        answer = model(build(positions, numbers, nothing, np.zeros(3, bool)))
        found |= {f"{k}.{name}": getattr(answer, name).numpy() for name in ("energies", "forces", "extrapolation")}
    inside = (given("crystal.positions"), given("crystal.numbers"), given("crystal.cell"), np.ones(3, bool))
    answer = model(build(*inside), stress=True)
    return found | {f"crystal.{name}": getattr(answer, name).numpy() for name in ("energies", "forces", "stress")}


def of_particles(model: Any, duration: float) -> Arrays:
    start = Particles(*(torch.from_numpy(given(name)) for name in ("positions", "velocities", "couplings")))
    x, v = model(start, duration)
    return {"x": x.numpy()} | ({} if v is None else {"v": v.numpy()})


def of_properties(model: Any) -> Arrays:
    found = {}
    for k, (numbers, positions) in enumerate(molecules()):
        answer = model.predict(Atoms(numbers, positions), uncertainty=True)
        found[str(k)] = np.array([answer[name] for name in sorted(answer)])
    return found


def of_flow(model: Any) -> Arrays:
    numbers, positions = molecules()[0]
    stride = Strider(model, numbers, atomic_masses[numbers], STRIDE)
    x, p = stride(positions, given("momenta"))
    return {"x": x, "p": p, "energy": np.array(stride.energy(positions))}


def of_autoencoder(model: Any) -> Arrays:
    parts = [torch.from_numpy(given(name)) for name in ("pairs", "adjacency", "noise")]
    return {"": model(GraphInput(*parts[:2], torch.zeros(5, dtype=torch.int64), parts[2])).numpy()}


def answers(name: str) -> Arrays:
    path = FILES / f"{name}.safetensors"
    model = load(path if path.exists() else name, dtype=torch.float64)
    kind = read_header(path if path.exists() else name)["kind"]
    if kind in ("velocity-egnn", "integrator"):
        return of_particles(model, 1.0 if path.exists() else 0.05)
    of_kind = {"potential": of_potential, "property": of_properties, "flow": of_flow}
    return of_kind.get(kind, of_autoencoder)(model)


NAMES = sorted({re.match(r"out\.([\w-]+)", key)[1] for key in STORED if key.startswith("out.")})  # type: ignore[index]


@pytest.mark.parametrize("name", NAMES)
def test_an_old_file_gives_the_numbers_it_gave(name: str) -> None:
    if not (FILES / f"{name}.safetensors").exists() and name not in shipped_models():
        pytest.skip("the shipped checkpoint is not in this tree")
    found = answers(name)
    stored = {key.removeprefix(f"out.{name}").lstrip("."): values for key, values in STORED.items()}
    stored = {key: values for key, values in stored.items() if f"out.{name}{'.' * bool(key)}{key}" in STORED}
    assert found.keys() == stored.keys()
    for key, values in found.items():
        np.testing.assert_allclose(values, stored[key], rtol=1e-12, atol=1e-12 * np.nanmax(np.abs(stored[key])))


def test_every_kind_and_format_has_a_file() -> None:
    kept = {(read_header(path)["kind"], read_header(path)["format_version"]) for path in FILES.glob("*.safetensors")}
    assert kept == {(kind, version) for kind in KINDS for version in range(1, FORMAT_VERSION + 1)}
    assert {path.stem for path in FILES.glob("*.safetensors")} <= set(NAMES)
