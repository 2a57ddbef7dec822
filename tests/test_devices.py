"""On another device, where there is none: torch's fake tensors know which device they are on and have no values. What
mixes devices fails, and so does what asks for a value in the middle of a call, for which a GPU would have to be waited
for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from flow_maps import inputs, moving, random_flow
from graphs import crystal, make_graph, molecule, with_tensors
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from egnn_md.chemistry.targets import NAMES
from egnn_md.data.frame_batches import Batch, Charges
from egnn_md.graph import Graph
from egnn_md.models.long_range import FarLayout, far_layout
from egnn_md.models.potential import Potential, PotentialConfig
from egnn_md.models.property import PropertyConfig, PropertyModel
from egnn_md.models.property_networks import READOUTS
from egnn_md.nn import EGNN
from egnn_md.training.potential_config import PotentialTrainingConfig
from egnn_md.training.potential_loss import PotentialLoss

SIZES = {"hidden_dim": 8, "message_dim": 8, "n_vectors": 4, "n_radial": 6}


class OnNoDevice(TorchFunctionMode):
    """Where torch was built without a GPU a few functions ask for one even of fake tensors: a fake CPU answers them."""

    ASKING = (Tensor.to, Tensor.double, Tensor.float, Tensor.cpu, Tensor.__getitem__)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self.ASKING or args[0].device.type == "cpu":
            return func(*args, **kwargs)
        if func is Tensor.__getitem__:
            found = func(here(args[0]), here(args[1]))
            return there(found)
        named = [*args[1:], *kwargs.values()]
        leaves = func is Tensor.cpu or any(str(value) == "cpu" for value in named)
        found = func(here(args[0]), *here(args[1:]), **{name: here(value) for name, value in kwargs.items()})
        return found if leaves else there(found)


def here(value: Any) -> Any:
    """Tensors of the device that is not there on the CPU; and what is said to be there."""
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    if isinstance(value, (tuple, list)):
        return type(value)(here(part) for part in value)
    return "cpu" if isinstance(value, (torch.device, str)) else value


@pytest.fixture
def _fake() -> Iterator[None]:
    with torch.no_grad(), FakeTensorMode(), OnNoDevice():  # autograd's own code needs the device
        yield


pytestmark = pytest.mark.usefixtures("_fake")


def there(value: Any) -> Any:
    """Tensors, or those of a module, a tuple or a dataclass, on the device that is not there."""
    if isinstance(value, nn.Module):
        for module in value.modules():
            for name, parameter in module._parameters.items():
                module._parameters[name] = None if parameter is None else nn.Parameter(there(parameter))
            for name, buffer in module._buffers.items():
                module._buffers[name] = there(buffer)
        return value
    return with_tensors(value, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda"))


def graphs() -> dict[str, Graph]:
    """Made with values, before any test's fake tensors."""
    ethanol, water = make_graph(*molecule("CH3CH2OH"), 5.0), make_graph(*molecule("H2O"), 5.0)
    numbers, positions, cell = crystal()
    return {
        "molecule": ethanol,
        "batch": Graph.collate([ethanol, water]),
        "crystal": make_graph(numbers, positions, 4.0, cell),
    }


GRAPHS = graphs()
FLOW = random_flow()
FLOW_INPUTS = inputs(FLOW, moving(), 1.0)
LAYOUTS = {name: far_layout(graph) for name, graph in GRAPHS.items()}


def potential(**settings: Any) -> Potential:
    config = PotentialConfig((1, 6, 7, 8), (-13.0, -1000.0, -1400.0, -2000.0), n_tensors=2, **SIZES, **settings)
    return there(Potential(config).eval())  # type: ignore[no-any-return]


def knowing(model: Potential | PropertyModel, graph: Graph) -> None:
    """Elements are looked at once, step after step of the same atoms no more."""
    species = model.species
    numbers = graph.atomic_numbers
    species._last = (numbers, numbers._version, torch.zeros_like(numbers))


@pytest.mark.parametrize("long_range", [False, True])
@pytest.mark.parametrize("name", GRAPHS)
def test_force_calls_stay_on_their_device_and_wait_for_nothing(name: str, long_range: bool) -> None:
    model = potential(long_range=long_range, charge_response=long_range, cutoff=4.0)
    graph = there(GRAPHS[name])
    knowing(model, graph)
    if long_range:
        remember_layout(model, LAYOUTS[name], graph)
    prediction = model(graph, stress=True)
    found = {field.name: getattr(prediction, field.name) for field in fields(prediction)}
    assert {name for name, value in found.items() if value is None} == (
        set() if long_range else {"charges", "charge", "shown_charge", "dipole"}
    )
    assert all(value.device.type == "cuda" for value in found.values() if value is not None)
    assert found["forces"].shape == graph.positions.shape


def remember_layout(model: Potential, layout: FarLayout, graph: Graph) -> None:
    """Which pairs and waves there are is found once for the same atoms."""
    assert model.long_range is not None
    model.long_range._remembered = (model.long_range._key(graph), there(layout))


def test_flow_maps() -> None:
    model, arguments = there(FLOW), there(FLOW_INPUTS)
    positions, momenta, *kicks = model(*arguments, n_substeps=2)
    assert {tensor.device.type for tensor in (positions, momenta, *kicks[0], *kicks[1])} == {"cuda"}


@pytest.mark.parametrize("network", ["vectors", "paper"])
def test_properties(network: str) -> None:
    names = NAMES if network == "vectors" else ("mu", "gap")
    outputs = len(READOUTS) if network == "vectors" else 2
    sizes = SIZES if network == "vectors" else {"hidden_dim": 8}
    config = PropertyConfig(
        (1, 6, 8), (0.0,) * outputs, (1.0,) * outputs, (0.0,) * (3 * outputs), targets=names, network=network, **sizes
    )
    model, graph = there(PropertyModel(config).eval()), there(GRAPHS["batch"])
    model._constants = {name: there(constant) for name, constant in model._constants.items()}
    knowing(model, graph)
    prediction = model(graph)
    assert prediction.values.device.type == prediction.uncertainty.device.type == "cuda"


@pytest.mark.parametrize("velocities", [False, True])
def test_the_papers_layers(velocities: bool) -> None:
    network = there(EGNN(8, 8, 8, 2, velocities=velocities))
    edges, h, x = there((torch.zeros(2, 20, dtype=torch.int64), torch.zeros(5, 8), torch.zeros(5, 3)))
    state = network(h, x, edges, velocities=x if velocities else None)
    assert {part.device.type for part in vars(state).values() if part is not None} == {"cuda"}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_training_step(name: str) -> None:
    model, graph = potential(long_range=True, charge_response=True, cutoff=4.0), there(GRAPHS[name])
    knowing(model, graph)
    remember_layout(model, LAYOUTS[name], graph)
    n, k = graph.n_atoms, graph.n_graphs
    numbers = [torch.zeros(k), torch.zeros(n, 3), torch.zeros(k, 3, 3), torch.zeros(2), torch.zeros(k), torch.zeros(n)]
    energy, forces, stress, share, charge, charges = there([number.double() for number in numbers])
    dipole = there(torch.zeros(k, 3, dtype=torch.float64))
    batch = Batch(graph, energy, forces, stress, share, Charges(charge, charges, dipole))
    loss = PotentialLoss(model, PotentialTrainingConfig(max_steps=1, stress_weight=0.1))
    terms = loss(batch)
    assert {term.device.type for term in terms} == {"cuda"}
