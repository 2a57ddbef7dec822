"""The potential's configuration, copies and outputs, and its sense of what it has not seen."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
from graphs import make_graph, molecule

from egnn_md.checkpoint import load
from egnn_md.graph import Graph, Prediction
from egnn_md.models.potential import Familiarity, Potential, PotentialConfig

Make = Callable[..., Potential]


def ethanol() -> Graph:
    return make_graph(*molecule("CH3CH2OH"), 4.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"elements": (6, 1)},
        {"elements": ()},
        {"elements": (0, 1)},
        {"elements": (1, 400)},
        {"elements": (1.0, 6.0)},
        {"reference_energies": (1.0,)},
        {"reference_energies": (math.nan, 0.0)},
        {"cutoff": 0.0},
        {"cutoff": math.inf},
        {"core_start": 0.8},
        {"repulsion_reach": 0.5},
        {"hidden_dim": 0},
        {"message_dim": 10**9},
        {"n_layers": 10**6},
        {"n_radial": True},
        {"bound": 0.0},
        {"bound": math.nan},
    ],
    ids=str,
)
def test_impossible_configurations_are_refused(settings: dict[str, object]) -> None:
    valid: dict[str, object] = {"elements": (1, 6), "reference_energies": (0.0, 0.0)}
    PotentialConfig(**valid)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must|one|finite"):
        PotentialConfig(**(valid | settings))  # type: ignore[arg-type]


def test_familiarity_knows_its_training_data() -> None:
    torch.manual_seed(0)
    species = torch.randint(0, 2, (20_000,))
    mixing = torch.randn(6, 6, dtype=torch.float64) * torch.tensor([1, 10, 0.1, 1, 5, 1], dtype=torch.float64)
    features = torch.randn(20_000, 6, dtype=torch.float64) @ mixing + species[:, None] * 30.0
    familiarity = Familiarity(6, 3).double()
    assert torch.isnan(familiarity(features[:5], species[:5])).all()
    familiarity.fit(features, species)
    ratio = familiarity(features, species)
    for element in (0, 1):
        mine = ratio[species == element]
        assert 0.9985 <= float((mine <= 1).double().mean()) <= 0.9995
    away = features[:100] + 20.0 * mixing[0]
    assert (familiarity(away, species[:100]) > 1).all()
    exchanged = familiarity(features[species == 0][:100], torch.ones(100, dtype=torch.int64))
    assert (exchanged > 1).all()  # one element's atoms beside the other's
    assert torch.isnan(familiarity(features[:5], torch.full((5,), 2))).all()  # an element without training atoms


def test_familiarity_does_not_depend_on_the_features_units() -> None:
    torch.manual_seed(1)
    features, species = torch.randn(5000, 4, dtype=torch.float64), torch.zeros(5000, dtype=torch.int64)
    mixing = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0] * torch.tensor([1.0, 3.0, 0.5, 20.0]).double()
    one, other = Familiarity(4, 1).double(), Familiarity(4, 1).double()
    one.fit(features, species)
    other.fit(features @ mixing - 7.0, species)
    assert torch.allclose(one(features, species), other(features @ mixing - 7.0, species), rtol=1e-6)


def test_the_shipped_model_knows_ethanol_and_not_a_heap(shipped: str) -> None:
    model = cast(Potential, load(shipped, dtype=torch.float64))
    known = model(make_graph(*molecule("CH3CH2OH", spread=0.02), model.config.cutoff)).extrapolation
    heap = np.stack(np.meshgrid(*[np.arange(3) * 0.9] * 3), -1).reshape(-1, 3)
    strange = model(make_graph([9, 1, 7] * 9, heap, model.config.cutoff)).extrapolation
    assert (known < 1).all()
    assert (strange > 1).all()


def test_copies_and_pickles_predict_the_same(random_potential: Make) -> None:
    model = random_potential()
    expected = model(ethanol())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        found = twin(ethanol())
        assert torch.equal(found.energy, expected.energy)
        assert torch.equal(found.forces, expected.forces)


def test_a_prediction_has_the_same_fields_always(random_potential: Make) -> None:
    prediction = random_potential()(Graph.collate([ethanol(), ethanol()]), stress=True)
    assert isinstance(prediction, Prediction)
    assert prediction.energy.shape == (2,)
    assert prediction.forces.shape == (18, 3)
    assert prediction.energies.shape == prediction.extrapolation.shape == (18,)
    assert torch.allclose(prediction.extrapolation[:9], prediction.extrapolation[9:], rtol=1e-12)
