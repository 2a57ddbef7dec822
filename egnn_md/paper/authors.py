"""Weights of the authors' QM9 network (github.com/vgsatorras/egnn, class EGNN of qm9/models.py) in ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from egnn_md.chemistry.targets import BY_NAME, ELEMENTS
from egnn_md.models.property import PropertyConfig, PropertyModel

N_POWERS: Final = 3
OUTPUT: Final = "output"
"""Name of a prediction whose property is not known: (y - mean) / mean absolute deviation, without a unit."""
_RENAMED: Final = {
    "node_mlp.0": "node_model.0",
    "node_mlp.2": "node_model.2",
    "edge_mlp.2": "edge_model.output",
    "att_mlp.0": "soft_edge",
}


class ConversionError(ValueError):
    """Weights that are not those of the authors' class; the message says what is wrong."""


def from_authors(state: Any, target: str | None = None, mean: float = 0.0, deviation: float = 1.0) -> PropertyModel:
    """The property model with the function of the authors' EGNN class, given its state_dict.

    `mean` and `deviation` are those its labels were normalised with (their compute_mean_mad), in the unit of `target`
    in `egnn_md.chemistry.targets` (meV where they have eV). Without a target the prediction is the network's plain
    output, called "output". Layers, width and attention are read off the shapes. Raises ConversionError.
    """
    state = _plain(state)
    n_layers = 1 + max((int(found[1]) for key in state if (found := re.match(r"gcl_(\d+)\.", key))), default=-1)
    width = _shape(state, "embedding.weight")
    if n_layers == 0 or width[1] != N_POWERS * len(ELEMENTS):
        raise ConversionError(
            f"{n_layers} layers and an embedding of {width[1]} inputs: the authors' QM9 network has layers gcl_0, "
            f"gcl_1, … and {N_POWERS * len(ELEMENTS)} inputs (five elements, charges to the powers 0, 1, 2)"
        )
    if target is not None and target not in BY_NAME:
        raise ConversionError(f"unknown property {target!r}: use one of {', '.join(BY_NAME)}")
    known = BY_NAME.get(target or "")
    added = [0.0 if known is None or known.relative else known.factor * known.atoms.get(z, 0.0) for z in ELEMENTS]
    config = PropertyConfig(
        elements=ELEMENTS,
        offsets=(float(mean),),
        scales=(float(deviation),),
        references=tuple(added),
        targets=(target or OUTPUT,),
        network="paper",
        hidden_dim=width[0],
        n_layers=n_layers,
        soft_edges="gcl_0.att_mlp.0.weight" in state,
    )
    model = PropertyModel(config)
    _load(model, _translated(state, config.hidden_dim))
    return model.eval().requires_grad_(False)


def _plain(state: Any) -> dict[str, Tensor]:
    """The weights alone: out of a wrapping dictionary, without DataParallel's prefix and unused coordinate layers."""
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ConversionError("the file holds no state_dict, a dictionary of tensors: save it with model.state_dict()")
    weights = {str(key).removeprefix("module."): value for key, value in state.items()}
    return {key: value.to(torch.float32) for key, value in weights.items() if ".coord_mlp." not in key}


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, int]:
    if key not in state or state[key].dim() != 2:
        raise ConversionError(f"the state_dict lacks the matrix {key}: it is not of the authors' EGNN class")
    return state[key].shape[0], state[key].shape[1]


def _translated(state: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    """Their names to ours; the first map of φ_e, on [h_i; h_j; d²], in its three parts."""
    ours = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        name, _, kind = rest.rpartition(".")
        if not head.startswith("gcl_"):
            ours[f"network.{key.replace('node_dec', 'node_decoder').replace('graph_dec', 'graph_decoder')}"] = value
            continue
        layer = f"network.layers.{head[4:]}."
        if name != "edge_mlp.0":
            ours[f"{layer}{_RENAMED.get(name, name)}.{kind}"] = value
        elif kind == "bias":
            ours[f"{layer}edge_model.source.bias"] = value
        else:
            if value.shape != (width, 2 * width + 1):
                raise ConversionError(f"{key} has shape {tuple(value.shape)}: edge attributes are not supported")
            parts = torch.split(value, [width, width, 1], 1)
            for part, weight in zip(("source", "target", "pair"), parts, strict=True):
                ours[f"{layer}edge_model.{part}.weight"] = weight.contiguous()
    return ours


def _load(model: PropertyModel, weights: dict[str, Tensor]) -> None:
    expected = {key: value for key, value in model.state_dict().items() if key.startswith("network.")}
    wrong = sorted(
        key for key in expected.keys() | weights.keys()
        if key not in expected or key not in weights or expected[key].shape != weights[key].shape
    )  # fmt: skip
    if wrong:
        raise ConversionError(
            f"the weights do not fit the authors' EGNN class (node_attr=0): {', '.join(wrong[:4])} differ"
        )
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise ConversionError("the weights are not all finite: their training diverged")
    model.load_state_dict(weights, strict=False)
