"""The task "nbody": a propagator from pairs of frames of particles, and nothing else of their trajectories."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.utils.data import Dataset

from egnn_md.checkpoint import load
from egnn_md.data import nbody
from egnn_md.data.frames import DataError
from egnn_md.evaluation.nbody import NBodyMetrics, particles_at, plot_errors, squared_errors
from egnn_md.models.propagator import (
    IntegratorConfig,
    IntegratorPropagator,
    Particles,
    VelocityEGNN,
    VelocityEGNNConfig,
)
from egnn_md.options import DTYPES
from egnn_md.training.config import ConfigError, DataConfig, Depth, RunConfig, Section, TrainingConfig, Width
from egnn_md.training.task import LearningCurve


class NBodyDataConfig(DataConfig):
    """One file of `egnn-md data nbody`, which is divided already, and the two frames."""

    start_frame: int = Field(30, ge=0)
    end_frame: int = Field(40, ge=1)


class NBodyModelConfig(Section):
    """The network."""

    network: Literal["integrator", "egnn"] = "integrator"
    """A learned acceleration in velocity Verlet, or the paper's layers that jump."""
    hidden_dim: Width = 32
    n_layers: Depth = 2
    """Hidden layers of the acceleration, or EGCLs."""
    soft_edges: bool = False
    """Of the paper's layers: infer which pairs matter, eq. 8."""

    @model_validator(mode="after")
    def _has_messages_to_weigh(self) -> NBodyModelConfig:
        if self.soft_edges and self.network != "egnn":
            raise ValueError('soft_edges needs network = "egnn": a force acts between all pairs')
        return self


class NBodyTrainingConfig(TrainingConfig):
    """The loss, and for an integrator how finely it steps."""

    loss: Literal["bounded", "mse"] = "bounded"
    """Of a trajectory with root mean square error s: s / (s + loss_scale), or s²."""
    loss_scale: float = Field(0.1, gt=0)
    velocity_weight: float = Field(0.1, ge=0)
    """Of the squared error of velocities in s², where the network predicts them."""
    substeps: list[int] = Field([20, 40, 80], min_length=1)
    """Sub-steps over the two frames: stages of equal length, from coarse to fine."""
    gradient_bound: float = Field(10.0, gt=0)
    """Longest gradient that flows back through one trajectory."""

    @field_validator("substeps")
    @classmethod
    def _at_least_one(cls, values: list[int]) -> list[int]:
        if min(values) < 1:
            raise ValueError("every stage needs at least one sub-step")
        return values


class NBodyRun(RunConfig):
    """The whole file."""

    task: Literal["nbody"] = "nbody"
    name: str = "nbody"
    data: NBodyDataConfig
    model: NBodyModelConfig = NBodyModelConfig()
    training: NBodyTrainingConfig


@dataclass(frozen=True, eq=False)
class ParticleBatch:
    """Systems at the first of the two frames, and where they are at the second."""

    start: Particles
    end: Particles
    share: Tensor
    """(1,): 1/systems of the whole step."""

    def to(self, device: torch.device | str) -> ParticleBatch:
        """The same batch on another device."""
        return ParticleBatch(self.start.to(device), self.end.to(device), self.share.to(device))


class ParticleBatches(Dataset[ParticleBatch]):
    """The systems of one side as `Batches`."""

    def __init__(self, start: Particles, end: Particles) -> None:
        self.start, self.end = start, end

    def __len__(self) -> int:
        return len(self.start.positions)

    def __getitem__(self, indices: list[int]) -> ParticleBatch:
        start, end = (Particles(*(part[indices] for part in whole)) for whole in (self.start, self.end))
        return ParticleBatch(start, end, self.shares(indices))

    def shares(self, indices: list[int]) -> Tensor:
        """(1,): 1/systems."""
        return torch.tensor([1.0 / len(indices)], dtype=torch.float64)


class NBodyTask:
    """See `Task`. The score is the loss itself over the validation side, with the finest sub-steps of the training."""

    config_class: ClassVar[type[RunConfig]] = NBodyRun
    loss_names = ("loss",)
    error_names = ("mse", "score")

    def __init__(self, config: NBodyRun, files: list[Path]) -> None:
        if len(files) != 1:
            raise DataError("task nbody reads one file, which holds all sides of the data")
        self.config, self.path = config, files[0]
        self.frames = (config.data.start_frame, config.data.end_frame)
        if self.frames[0] >= self.frames[1]:
            raise ConfigError(f"end_frame must come after start_frame: {self.frames}")
        self.train, self.valid = (nbody.read(self.path, side) for side in ("train", "valid"))
        self.curve = LearningCurve("loss", "score", config.training.loss)

    @property
    def dtype(self) -> torch.dtype:
        """Of the network and its data."""
        return DTYPES[self.config.training.dtype]

    def build_model(self) -> nn.Module:
        settings = self.config.model
        duration, sizes = nbody.duration(*self.frames), (settings.hidden_dim, settings.n_layers)
        model: nn.Module = (
            VelocityEGNN(VelocityEGNNConfig(duration, *sizes, soft_edges=settings.soft_edges))
            if settings.network == "egnn"
            else IntegratorPropagator(IntegratorConfig(duration, *sizes))
        )
        if self.config.init_from is not None:
            start = load(self.config.init_from, dtype=self.dtype)
            if type(start) is not type(model) or start.config != model.config:
                raise ConfigError(f"init_from {self.config.init_from!r} is another network, size or duration")
            model.load_state_dict(start.state_dict())
        return model.to(self.dtype)

    def batches(self, model: nn.Module) -> tuple[ParticleBatches, ParticleBatches]:
        train, valid = (
            ParticleBatches(*(particles_at(side, frame, self.dtype) for frame in self.frames))
            for side in (self.train, self.valid)
        )
        return train, valid

    def loss(self, model: nn.Module, batch: ParticleBatch, step: int) -> dict[str, Tensor]:
        settings = self.config.training
        stage = min(step * len(settings.substeps) // settings.max_steps, len(settings.substeps) - 1)
        bound = (settings.gradient_bound * batch.share).to(self.dtype)
        positions, velocities = model(
            batch.start, nbody.duration(*self.frames), n_substeps=settings.substeps[stage], gradient_bound=bound
        )
        squared = (positions - batch.end.positions).square().mean((1, 2))
        if velocities is not None:
            squared = squared + settings.velocity_weight * (velocities - batch.end.velocities).square().mean((1, 2))
        return {"loss": (self._penalty(squared).double() * batch.share).sum()}

    def _penalty(self, squared: Tensor) -> Tensor:
        if self.config.training.loss == "mse":
            return squared
        root = (squared + 1e-12).sqrt()
        return root / (root + self.config.training.loss_scale)

    def error_sums(self, model: nn.Module, batch: ParticleBatch) -> Tensor:
        """(3,): sums of the squared error and of the loss, number of systems."""
        finest = max(self.config.training.substeps)
        with torch.no_grad():
            positions, _ = model(batch.start, nbody.duration(*self.frames), n_substeps=finest)
        squared = (positions - batch.end.positions).square().mean((1, 2)).double()
        return torch.stack([squared.sum(), self._penalty(squared).sum(), squared.new_tensor(len(squared))])

    def errors(self, sums: Tensor) -> dict[str, Tensor]:
        return {"mse": sums[0] / sums[2], "score": sums[1] / sums[2]}

    def information(self) -> dict[str, Any]:
        data = self.config.data
        return {
            "split": {"sides": "as in the file", "start_frame": data.start_frame, "end_frame": data.end_frame},
            "training_data": {
                "files": list(self.train.sources),
                "law": self.train.law,
                "n_systems": len(self.train),
                "n_particles": self.train.positions.shape[2],
            },
        }

    def finish(self, model: nn.Module) -> dict[str, Any]:
        return {side: asdict(NBodyMetrics.of(found)) for side, found in self._errors(model).items()}

    def draw(self, model: nn.Module, folder: Path) -> None:
        *_, last = self._errors(model).values()
        plot_errors(last, folder / "errors.png")

    def _errors(self, model: nn.Module) -> dict[str, Any]:
        errors = {"valid": squared_errors(model, self.valid, self.frames)}
        with suppress(DataError):  # a file may have no test side
            errors["test"] = squared_errors(model, nbody.read(self.path, "test"), self.frames)
        return errors
