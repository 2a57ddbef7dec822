"""A training step there and back on torch's meta device, whose tensors have no values: what mixes devices fails, and so
does what asks for a value. (Fake tensors of a GPU, as in test_devices.py, have no way back where there is no GPU.)
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import crystal, make_graph, molecule, with_tensors
from torch import Tensor

from egnn_md.data.frame_batches import Batch, Charges
from egnn_md.graph import Graph
from egnn_md.models.long_range import far_layout
from egnn_md.models.potential import Potential, PotentialConfig
from egnn_md.training.potential_config import PotentialTrainingConfig
from egnn_md.training.potential_loss import PotentialLoss

GRAPHS = {
    "molecule": make_graph(*molecule("CH3CH2OH"), 5.0),
    "batch": Graph.collate([make_graph(*molecule(name), 5.0) for name in ("CH3CH2OH", "H2O")]),
    "crystal": make_graph(*crystal()[:2], 4.0, crystal()[2]),
}


def there(value: Any) -> Any:
    """Tensors, or those of a tuple or a dataclass, without values."""
    return with_tensors(value, lambda tensor: tensor.to("meta"))


def zeros(*shape: int, device: str = "meta") -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64, device=device)


def a_step(name: str, long_range: bool, forces: Tensor) -> Potential:
    """A loss and its way back; the labels of forces are given. What is looked at once for the same atoms was."""
    sizes = {"hidden_dim": 8, "message_dim": 8, "n_vectors": 4, "n_radial": 6, "n_tensors": 2, "cutoff": 4.0}
    options = dict.fromkeys(("long_range", "charge_response", "atomic_dipoles"), long_range)
    config = PotentialConfig((1, 6, 7, 8), (-1.0, -2.0, -3.0, -4.0), **sizes, **options, bound=10.0)
    model, graph = Potential(config).to("meta"), there(GRAPHS[name])
    numbers = graph.atomic_numbers
    model.species._last = (numbers, numbers._version, torch.zeros_like(numbers))
    if model.long_range is not None:
        model.long_range._remembered = (model.long_range._key(graph), there(far_layout(GRAPHS[name])))
    n, k = graph.n_atoms, graph.n_graphs
    charges = Charges(zeros(k), zeros(n), zeros(k, 3)) if long_range else None
    batch = Batch(graph, zeros(k), forces, zeros(k, 3, 3), zeros(2), charges)
    PotentialLoss(model, PotentialTrainingConfig(max_steps=1, stress_weight=0.1))(batch).total.backward()
    return model


@pytest.mark.parametrize("long_range", [False, True])
@pytest.mark.parametrize("name", GRAPHS)
def test_every_weight_has_its_gradient_on_its_device(name: str, long_range: bool) -> None:
    model = a_step(name, long_range, zeros(GRAPHS[name].n_atoms, 3))
    for weight_name, weight in model.named_parameters():
        assert weight.grad is not None, weight_name
        assert weight.grad.device.type == "meta"


def test_what_mixes_devices_fails() -> None:
    with pytest.raises(RuntimeError):
        a_step("molecule", True, zeros(GRAPHS["molecule"].n_atoms, 3, device="cpu"))
