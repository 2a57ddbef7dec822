"""The task "flow-frames": a flow map of any molecules from single frames with forces, as potentials learn from.

Flow-map consistency as in `flow.py`, method "forces", with a central difference in place of the derivative: the end
must be the same from x moved by ±h along the true flow with sub-steps of s ∓ h. That is one call of the network on
twice the batch, which can be traced and compiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from egnn_md.checkpoint import load
from egnn_md.chemistry.molecules import surroundings
from egnn_md.chemistry.units import FS_PER_TIME_UNIT
from egnn_md.data.frame_files import read_frames
from egnn_md.data.frames import DataError, Frames, concatenate
from egnn_md.data.split import assign_split
from egnn_md.models.flow import FlowConfig, FlowMap
from egnn_md.nn.compilation import CompiledModule
from egnn_md.nn.ops import segment_sum
from egnn_md.options import DTYPES
from egnn_md.training.config import ConfigError, DataConfig, RunConfig, TrainingConfig
from egnn_md.training.flow import FlowErrors, FlowModelConfig, references, state_error
from egnn_md.training.flow_draws import Drawn, DrawnBatches, both_sides
from egnn_md.training.task import LearningCurve

HALF_WIDTH: Final = 0.1
"""fs, of the central difference: its error is some 1e-3 of the derivative's, its round-off in float32 less."""
VALIDATION_FRAMES: Final = 512
SEEN: Final = 3
"""Molecules in which an atom's surroundings must occur to count as known."""


class FlowFramesDataConfig(DataConfig):
    """Labelled frames of neutral molecules, npz or extxyz."""

    valid_fraction: float = Field(0.03, gt=0, lt=0.5)
    """Of the molecules; the best checkpoint is chosen on them."""
    test_fraction: float = Field(0.03, ge=0, lt=0.5)
    coldest: float = Field(200.0, gt=0)
    """K: momenta are drawn from Maxwell's distribution at temperatures between this and `hottest`."""
    hottest: float = Field(600.0, gt=0)
    deuterium: float = Field(0.2, ge=0, le=1)
    """Fraction of hydrogens that are deuterium in every second start."""


class FlowFramesTrainingConfig(TrainingConfig):
    """The optimisation."""

    conservation_weight: float = Field(2.0, ge=0)
    """Of the change of the model's total energy in a sub-step, eV."""
    compile: bool = False
    """Trace and compile the network: a minute or two at the start, then faster."""


class FlowFramesRun(RunConfig):
    """The whole file."""

    task: Literal["flow-frames"] = "flow-frames"
    name: str = "flow"
    data: FlowFramesDataConfig
    model: FlowModelConfig = FlowModelConfig()
    training: FlowFramesTrainingConfig


def difference_errors(call: Callable[..., Any], batch: Any, time: float = HALF_WIDTH) -> FlowErrors:
    """As `consistency_errors`, by a central difference of ±`time` fs; `energy` is zero: nothing is compared with it.

    call: a `FlowMap`, eager or compiled.
    """
    inputs = both_sides(batch, time)
    x, p, first, last = call(*inputs)
    n, n_molecules = len(batch.species), len(batch.energy)
    width = 2.0 * time / FS_PER_TIME_UNIT
    state = state_error((p[:n] - p[n:]) / width, (x[:n] - x[n:]) / width, batch.masses)
    change = (0.5 * (p.square() - inputs[1].square()) / inputs[3]).sum(-1) + last[1] - first[1]
    mean = segment_sum(0.5 * (change[:n] + change[n:]), batch.molecule, n_molecules)
    return FlowErrors(state, torch.zeros_like(mean), mean)


class FlowFramesTask:
    """See `Task`. The score is the mean consistency error of an atom's state plus the weighted change of energy."""

    config_class: ClassVar[type[RunConfig]] = FlowFramesRun
    loss_names = ("loss", "state_loss", "conservation_loss")
    error_names = ("state_error", "energy_change")
    curve = LearningCurve("state_loss", "state_error", "sqrt(eV) per 10.18 fs")

    def __init__(self, config: FlowFramesRun, files: list[Path]) -> None:
        self.config, data = config, config.data
        if data.coldest > data.hottest:
            raise ConfigError("data.coldest must not be above data.hottest")
        frames = _usable(concatenate([read_frames(path) for path in files]))
        self.sources = frames.sources
        split = assign_split(frames, data.valid_fraction, data.test_fraction)
        self.sides = {side: frames.select(np.flatnonzero(split == side)) for side in ("train", "valid", "test")}
        for side in ("train", "valid"):
            if not len(self.sides[side]):
                raise DataError(f"no molecule falls on the {side} side: more molecules, or another valid_fraction")
        self.drawn = Drawn(data.coldest, data.hottest, data.deuterium)
        self._call: Callable[..., Any] | None = None

    def build_model(self) -> FlowMap:
        train, dtype = self.sides["train"], DTYPES[self.config.training.dtype]
        elements, known = tuple(int(z) for z in np.unique(train.atomic_numbers)), known_surroundings(train)
        if self.config.init_from is None:
            energies = references(train.composition(elements), np.nan_to_num(train.energy))
            settings = self.config.model.model_dump()
            return FlowMap(FlowConfig(elements, energies, surroundings=known, **settings)).to(dtype)
        model = load(self.config.init_from, dtype=dtype).requires_grad_(True)
        if not isinstance(model, FlowMap):
            raise ConfigError(f"init_from {self.config.init_from!r} is a {type(model).__name__}, no flow map")
        model.check_elements(torch.tensor(elements))
        both = tuple(sorted({*model.config.surroundings, *known}))
        model.config = replace(model.config, molecules=(), surroundings=both)
        return model

    def batches(self, model: FlowMap) -> tuple[DrawnBatches, DrawnBatches]:
        valid = self.sides["valid"]
        some = np.unique(np.linspace(0, len(valid) - 1, VALIDATION_FRAMES).astype(np.int64))
        train = DrawnBatches(self.sides["train"], model, self.drawn, seed=self.config.seed)
        return train, DrawnBatches(valid.select(some), model, self.drawn, draws=1)

    def loss(self, model: FlowMap, batch: Any, step: int) -> dict[str, Tensor]:
        if self._call is None:
            self._call = CompiledModule(model) if self.config.training.compile else model
        errors = difference_errors(self._call, batch)
        state = errors.state.double().sum() * batch.share[0]
        change = (errors.change.double().square() + 1e-6).sqrt().sum() * batch.share[1]
        loss = state + self.config.training.conservation_weight * change
        return {"loss": loss, "state_loss": state.detach(), "conservation_loss": change.detach()}

    @torch.no_grad()
    def error_sums(self, model: FlowMap, batch: Any) -> Tensor:
        """(4,): Σ error and atoms; Σ|change of the total energy| (eV) and molecules."""
        errors = difference_errors(model, batch)
        state, change = errors.state.double(), errors.change.double()
        counts = state.new_tensor([len(state), len(change)])
        return torch.stack([state.sum(), counts[0], change.abs().sum(), counts[1]])

    def errors(self, sums: Tensor) -> dict[str, Tensor]:
        state, change = sums[0] / sums[1], sums[2] / sums[3]
        score = state + self.config.training.conservation_weight * change
        return {"state_error": state, "energy_change": 1e3 * change, "score": score}

    def information(self) -> dict[str, Any]:
        data, train = self.config.data, self.sides["train"]
        counts = {"n_frames": len(train), "n_molecules": len(np.unique(train.group))}
        return {
            "split": {"valid": data.valid_fraction, "test": data.test_fraction},
            "training_data": {**counts, "files": list(self.sources)},
        }

    def finish(self, model: FlowMap) -> dict[str, Any]:
        """Errors of both held-out sides: the state's, and the change of the total energy (meV, mean absolute)."""
        found: dict[str, Any] = {}
        for side in ("valid", "test"):
            frames = self.sides[side]
            batches = DrawnBatches(frames, model, self.drawn, draws=1)
            parts = [range(k, min(k + 64, len(frames))) for k in range(0, min(len(frames), 1024), 64)]
            if parts:
                sums = torch.stack([self.error_sums(model, batches[list(part)]) for part in parts]).sum(0)
                found[side] = {name: float(value) for name, value in self.errors(sums).items()}
        return found

    def draw(self, model: FlowMap, folder: Path) -> None:
        """None but the learning curve."""


def _usable(frames: Frames) -> Frames:
    """Those with forces. Raises DataError for what a flow map cannot learn from."""
    if frames.pbc.any():
        raise DataError("flow maps learn from isolated molecules; some frames are periodic")
    if frames.forces is None:
        raise DataError("flow maps learn from forces; the files have none")
    frames.check_closed_shells()
    whole = np.ones(len(frames), bool)
    np.logical_and.at(whole, frames.frame_of_atom, np.isfinite(frames.forces).all(1))
    return frames.select(np.flatnonzero(whole & (frames.n_atoms > 1)))


def known_surroundings(frames: Frames) -> tuple[str, ...]:
    """Surroundings that atoms of at least `SEEN` molecules have in most of the frames of each; of one molecule in ten,
    where there are few.
    """
    groups, group_of = np.unique(frames.group, return_inverse=True)
    sizes, times = np.bincount(group_of), [Counter[str]() for _ in groups]
    for k, group in enumerate(group_of.tolist()):
        part = slice(frames.starts[k], frames.starts[k + 1])
        times[group].update(set(surroundings(frames.atomic_numbers[part], frames.positions[part])))
    seen = Counter(name for found, n in zip(times, sizes, strict=True) for name, m in found.items() if 2 * m > n)
    return tuple(sorted(name for name, n in seen.items() if n >= min(SEEN, max(1, len(groups) // 10))))
