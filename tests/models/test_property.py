"""Laws of the property model: invariance, batch equals loop, the relations between properties; the authors' network."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from egnn_md.checkpoint import load, save
from egnn_md.chemistry.elements import UnsupportedElement
from egnn_md.chemistry.targets import NAMES
from egnn_md.models.property import FAR, PropertyConfig, PropertyModel
from egnn_md.models.property_networks import READOUTS
from egnn_md.neighbors import molecules_graph, neighbor_list
from egnn_md.paper.authors import ConversionError, from_authors

ORGANIC = (1, 6, 7, 8)
MOLECULES = ("CH3CH2OH", "CH4", "C6H6", "CH3CONH2", "H2O")


def make(network: str = "vectors", dtype: torch.dtype = torch.float64, **settings: Any) -> PropertyModel:
    torch.manual_seed(0)
    n = len(READOUTS) if network == "vectors" else len(NAMES)
    options: dict[str, Any] = {"hidden_dim": 16, "message_dim": 16, "n_layers": 2, "n_vectors": 4, "n_radial": 8}
    numbers = {"offsets": (1.0,) * n, "scales": (2.0,) * n, "references": (0.5,) * (n * len(ORGANIC))}
    config = PropertyConfig(ORGANIC, network=network, **{**numbers, **options, **settings})  # type: ignore[arg-type]
    model = PropertyModel(config).to(dtype).eval().requires_grad_(False)
    model.familiarity.fit(torch.randn(400, 16, dtype=dtype), torch.arange(4).repeat(100))
    return model


def of(names: tuple[str, ...] = MOLECULES) -> list[Atoms]:
    atoms = [molecule(name) for name in names]
    for k, structure in enumerate(atoms):
        structure.rattle(0.05, seed=k)
    return atoms


@pytest.mark.parametrize("network", ["vectors", "paper"])
def test_motions_and_order_change_nothing(network: str) -> None:
    model = make(network)
    atoms = molecule("CH3CONH2")
    before = model.predict(atoms, uncertainty=True)
    atoms.rotate(73, (1, 2, 3))
    atoms.translate((30.0, -4.0, 11.0))
    mirrored = Atoms(atoms.numbers, atoms.positions * [-1, 1, 1])
    for moved in (atoms, mirrored, atoms[::-1]):
        after = model.predict(moved, uncertainty=True)
        for name, value in before.items():
            assert after[name] == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), name


def test_the_geometry_matters() -> None:
    model, atoms = make(), molecule("CH3CONH2")
    before = model.predict(atoms)
    atoms.rattle(0.1, seed=1)
    after = model.predict(atoms)
    assert all(abs(after[name] - before[name]) > 1e-6 for name in NAMES)


@pytest.mark.parametrize("network", ["vectors", "paper"])
def test_batch_is_loop(network: str) -> None:
    model, atoms = make(network), of()
    together = model.predict(atoms, uncertainty=True)
    for k, structure in enumerate(atoms):
        alone = model.predict(structure, uncertainty=True)
        for name, value in alone.items():
            assert together[name][k] == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), name


def test_relations_between_properties_hold() -> None:
    values = make().predict(of())
    assert values["gap"] == pytest.approx(values["lumo"] - values["homo"])
    # H = U + RT for the molecule and for its free atoms: their references differ by 0.000945 Hartree an atom.
    n_atoms = np.array([len(atoms) for atoms in of()])
    shift = 8.314462618 * 298.15 / 96.48533212 - 0.000945 * 27211.386 * n_atoms
    assert values["h298"] - values["u298"] == pytest.approx(shift, rel=1e-3)
    assert (values["mu"] > 0).all()


def test_a_target_without_labels_is_nan() -> None:
    scales = [1.0] * len(READOUTS)
    scales[READOUTS.index("lumo")] = 0.0
    values = make(scales=tuple(scales)).predict(molecule("CH4"))
    assert {name for name in NAMES if math.isnan(values[name])} == {"lumo", "gap"}


def test_features_get_no_gradient_from_the_uncertainty() -> None:
    model = make().requires_grad_(True)
    atoms = molecule("CH3CH2OH")
    counts = torch.tensor([len(atoms)])
    graph = molecules_graph(torch.from_numpy(atoms.positions), torch.from_numpy(atoms.numbers), counts, 5.0)
    model(graph).uncertainty.sum().backward()
    assert all(p.grad is None for p in model.network.parameters())
    assert model.error_model is not None
    assert all(p.grad is not None for p in model.error_model.parameters())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a.set_atomic_numbers([9] * len(a)), UnsupportedElement, "F"),
        (lambda a: a.positions.__setitem__((0, 0), np.nan), ValueError, "NaN"),
        (lambda a: a.positions.__setitem__(1, a.positions[0]), ValueError, "closer"),
        (lambda a: a.set_pbc(True), ValueError, "periodic"),
        (lambda a: a.info.update(charge=1), ValueError, "charged"),
        (lambda a: a.info.update(spin=2), ValueError, "multiplicity"),
        (lambda a: a.__delitem__(slice(None)), ValueError, "atoms"),
    ],
)
def test_what_it_cannot_describe_is_refused(change: Any, error: type[Exception], message: str) -> None:
    model, atoms = make(), molecule("CH4")
    change(atoms)
    with pytest.raises(error, match=message):
        model.predict(atoms)
    with pytest.raises(error, match="structure 1"):
        model.predict([molecule("H2O"), atoms])


def test_pairs_of_many_molecules_are_those_of_each() -> None:
    atoms = of()
    positions = torch.from_numpy(np.concatenate([a.positions for a in atoms]))
    numbers = torch.from_numpy(np.concatenate([a.numbers for a in atoms]))
    counts = torch.tensor([len(a) for a in atoms])
    found = molecules_graph(positions, numbers, counts, 2.5).pairs
    first, expected = 0, []
    for a in atoms:
        expected.append(neighbor_list(a.positions, np.zeros((3, 3)), np.zeros(3, bool), 2.5)[0] + first)
        first += len(a)
    assert sorted(map(tuple, found.T.tolist())) == sorted(map(tuple, np.concatenate(expected, 1).T.tolist()))


def test_checkpoint_keeps_the_function(tmp_path: Path) -> None:
    model = make(dtype=torch.float32)
    save(model, tmp_path / "model.safetensors", {"name": "small"})
    again = load(tmp_path / "model.safetensors")
    assert isinstance(again, PropertyModel)
    assert again.config == model.config
    for name, values in model.predict(of(), uncertainty=True).items():
        assert again.predict(of(), uncertainty=True)[name].tolist() == values.tolist()


@pytest.fixture
def literal(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The authors' network, written out."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("_authors_qm9")


def test_the_authors_weights_give_the_authors_numbers(literal: Any) -> None:
    torch.manual_seed(3)
    theirs = literal.LiteralEGNN(width=128, n_layers=7)
    atoms = of()
    numbers = [torch.from_numpy(a.numbers) for a in atoms]
    expected = theirs(literal.pad(numbers, [torch.from_numpy(a.positions) for a in atoms]))[:, 0].detach()
    ours = from_authors(theirs.state_dict()).predict(atoms)["output"]
    assert np.abs(ours - expected.numpy()).max() <= 1e-5 * float(expected.abs().max())
    scaled = from_authors(theirs.state_dict(), "cv", 3.0, 2.0).predict(atoms)["cv"]
    assert scaled == pytest.approx(3.0 + 2.0 * ours + 2.981 * np.array([len(a) for a in atoms]), rel=1e-6)


def test_weights_of_another_network_are_refused(literal: Any) -> None:
    state = literal.LiteralEGNN(width=8, n_layers=2).state_dict()
    with pytest.raises(ConversionError, match="no state_dict"):
        from_authors([1, 2])
    with pytest.raises(ConversionError, match="lacks"):
        from_authors({"weight": torch.zeros(2)})
    with pytest.raises(ConversionError, match="0 layers"):
        from_authors({"embedding.weight": state["embedding.weight"], "gcl_x.weight": torch.zeros(2)})
    with pytest.raises(ConversionError, match="differ"):
        from_authors({key: value for key, value in state.items() if key != "node_dec.0.bias"})
    with pytest.raises(ConversionError, match="not all finite"):
        from_authors(state | {"node_dec.0.bias": torch.full((8,), torch.nan)})
    assert from_authors({f"module.{key}": value for key, value in state.items()}).config.n_layers == 2


def test_a_network_that_overflows_is_flagged() -> None:
    """The shipped model far from any minimum: where it gives no number, extrapolation says so."""
    model = load("qm9")
    assert isinstance(model, PropertyModel)
    random = np.random.default_rng(0)
    atoms = [molecule("C6H6") for _ in range(40)]
    for each in atoms:
        each.positions += 0.15 * random.normal(size=each.positions.shape)
    found = model.predict(atoms, uncertainty=True)
    assert (found["extrapolation"][~np.isfinite(found["u0"])] > FAR).all()
    assert not np.isnan(found["extrapolation"]).any()
