"""The validated configuration of a training run: a TOML file, every key checked.

Here is what the trainings of all tasks share; each task adds sections and keys of its own (see `task.py`). An unknown
key is an error that names the nearest known one.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from egnn_md.models.bounds import LARGEST

Width = Annotated[int, Field(ge=1, le=LARGEST["hidden_dim"])]
"""Channels of a network."""
Depth = Annotated[int, Field(ge=1, le=LARGEST["n_layers"])]
"""Layers of a network."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message lists every problem."""


class Section(BaseModel):
    """A table of the file: frozen, no unknown keys, finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class DataConfig(Section):
    """Where the data comes from."""

    files: list[str] = Field(min_length=1)
    """Relative to --data, $EGNN_MD_DATA or the configuration's folder."""

    @property
    def all_files(self) -> list[str]:
        """Those of `files`, then whatever else a task reads."""
        return self.files


class TrainingConfig(Section):
    """The optimisation."""

    max_steps: int = Field(10**7, ge=1)
    """Required if there are no `max_minutes`."""
    max_minutes: float | None = Field(None, gt=0)
    """Budget in time, by the clock; whichever of the two ends first ends the training."""
    batch_size: int = Field(16, ge=1)
    """Samples (structures, systems) per step, over all processes together."""
    optimizer: Literal["muon", "adam"] = "muon"
    learning_rate: float = Field(3e-3, gt=0)
    """Peak; falls to zero over `max_steps` or `max_minutes` after `warmup_steps`."""
    warmup_steps: int = Field(200, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    ema_decay: float = Field(0.999, ge=0, lt=1)
    keep: Literal["best", "last"] = "best"
    """Which averaged weights become the model: those with the least validation error, or the last, where a few hard
    samples rule that error."""
    clip_norm: float = Field(5.0, gt=0)
    """Longest gradient over all weights."""
    dtype: Literal["float32", "float64"] = "float32"
    validate_every: int = Field(1000, ge=1)
    checkpoint_every: int = Field(500, ge=1)
    """Steps between resumable checkpoints."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many validations without a better score; None: never."""

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if "max_steps" not in self.model_fields_set and self.max_minutes is None:
            raise ValueError("max_steps or max_minutes is required: when does the training end?")
        return self


class RunConfig(Section):
    """The whole file. A task narrows `task` and the three sections."""

    task: str
    seed: int = 0
    name: str
    init_from: str | None = None
    """Start from the weights of this shipped model or checkpoint (fine-tuning)."""
    output: str | None = None
    """Run folder; -o/--output goes first."""
    description: str = ""
    licence: str = ""
    """Licence of the trained model, written into its checkpoint."""
    data: DataConfig
    model: Section
    training: TrainingConfig
