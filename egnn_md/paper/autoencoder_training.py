"""The task "autoencoder": a graph autoencoder from random graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from egnn_md.checkpoint import load
from egnn_md.data.frames import DataError
from egnn_md.nn.compilation import CompiledModule
from egnn_md.options import DTYPES
from egnn_md.paper import random_graphs
from egnn_md.paper.autoencoder import Encoder, GraphAutoencoder, GraphAutoencoderConfig, GraphInput
from egnn_md.paper.autoencoder_metrics import (
    EdgeMetrics,
    GraphBatch,
    GraphBatches,
    edge_sums,
    evaluate_side,
    plot_logits,
)
from egnn_md.training.config import ConfigError, DataConfig, Depth, RunConfig, Section, TrainingConfig, Width
from egnn_md.training.task import LearningCurve


class AutoencoderDataConfig(DataConfig):
    """One file of `egnn-md data community` or `erdos-renyi`, which is divided already."""

    n_train: int | None = Field(None, ge=1)
    """Train on the first so many graphs, and validate and test on them too: how much can be stored."""


class AutoencoderModelConfig(Section):
    """The network; see `GraphAutoencoderConfig`."""

    encoder: Encoder = "egnn"
    embedding_dim: Width = 8
    hidden_dim: Width = 64
    n_layers: Depth = 4
    soft_edges: bool = False

    @model_validator(mode="after")
    def _fits(self) -> AutoencoderModelConfig:
        GraphAutoencoderConfig(**self.model_dump())
        return self


class AutoencoderTrainingConfig(TrainingConfig):
    """The training, and whether to compile it."""

    compile: bool = False
    """Trace and compile the network: half a minute at the start, then about 1.3 times as fast on a CPU."""


class AutoencoderRun(RunConfig):
    """The whole file."""

    task: Literal["autoencoder"] = "autoencoder"
    name: str = "autoencoder"
    data: AutoencoderDataConfig
    model: AutoencoderModelConfig = AutoencoderModelConfig()
    training: AutoencoderTrainingConfig


class AutoencoderTask:
    """See `Task`. The score is the binary cross-entropy of the validation side."""

    config_class: ClassVar[type[RunConfig]] = AutoencoderRun
    loss_names = ("loss",)
    error_names = ("error_percent", "f1", "score")
    curve = LearningCurve("loss", "score", "binary cross-entropy per graph")

    def __init__(self, config: AutoencoderRun, files: list[Path]) -> None:
        if len(files) != 1:
            raise DataError("task autoencoder reads one file, which holds all sides of the data")
        self.config = config
        self.sides = {side: random_graphs.read(files[0], side) for side in random_graphs.SIDES}
        if config.data.n_train is not None:
            self.sides = dict.fromkeys(self.sides, self.sides["train"].select(config.data.n_train))
        self._network: Callable[[GraphInput], Tensor] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the network and its noise."""
        return DTYPES[self.config.training.dtype]

    def build_model(self) -> nn.Module:
        model = GraphAutoencoder(GraphAutoencoderConfig(**self.config.model.model_dump()))
        if self.config.init_from is not None:
            start = load(self.config.init_from, dtype=self.dtype)
            if not isinstance(start, GraphAutoencoder) or start.config != model.config:
                raise ConfigError(f"init_from {self.config.init_from!r} is another network or size")
            model.load_state_dict(start.state_dict())
        return model.to(self.dtype)

    def batches(self, model: GraphAutoencoder) -> tuple[GraphBatches, GraphBatches]:
        train, valid = (
            GraphBatches(self.sides[side], model.config.embedding_dim, self.dtype) for side in ("train", "valid")
        )
        return train, valid

    def loss(self, model: GraphAutoencoder, batch: GraphBatch, step: int) -> dict[str, Tensor]:
        """Mean cross-entropy per graph, with noise that depends on the seed, the step and the first graph alone."""
        shape = batch.graphs.noise.shape
        rng = np.random.default_rng([self.config.seed, step, batch.numbers[0]])
        noise = torch.from_numpy(rng.standard_normal(shape, np.float32)).to(batch.graphs.noise)
        graphs = batch.graphs._replace(noise=noise)
        if self._network is None:
            self._network = CompiledModule(model) if self.config.training.compile else model
        bce = nn.functional.binary_cross_entropy_with_logits(self._network(graphs), graphs.adjacency, reduction="sum")
        return {"loss": bce.double() * batch.share[0]}

    def error_sums(self, model: GraphAutoencoder, batch: GraphBatch) -> Tensor:
        """See `edge_sums`."""
        with torch.no_grad():
            return edge_sums(model(batch.graphs), batch.graphs)

    def errors(self, sums: Tensor) -> dict[str, Tensor]:
        found = EdgeMetrics.of(sums.cpu().numpy())
        named = {"error_percent": found.error_percent, "f1": found.f1, "score": found.bce}
        return {name: sums.new_tensor(value) for name, value in named.items()}

    def information(self) -> dict[str, Any]:
        train = self.sides["train"]
        sides = "as in the file" if self.config.data.n_train is None else "all are the training graphs"
        return {
            "split": {"sides": sides} | {f"{side}_repeats": graphs.repeats for side, graphs in self.sides.items()},
            "training_data": {"files": list(train.sources), "family": train.family, "n_graphs": len(train)},
        }

    def finish(self, model: GraphAutoencoder) -> dict[str, Any]:
        held_out = {side: self.sides[side] for side in ("valid", "test")}
        return {side: asdict(EdgeMetrics.of(evaluate_side(model, graphs))) for side, graphs in held_out.items()}

    def draw(self, model: GraphAutoencoder, folder: Path) -> None:
        plot_logits(model, self.sides["test"], folder / "logits.png")
