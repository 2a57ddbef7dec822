"""The validated configuration of a training run: a TOML file, every key checked.

An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ConfigError(ValueError):
    """A configuration that cannot be used; the message lists every problem."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class DataConfig(_Section):
    """Where the labelled structures come from and how they are divided."""

    files: list[str] = Field(min_length=1)
    """npz of ragged arrays, or anything ase reads; relative to --data, $EGNN_MD_DATA or the configuration's folder."""
    valid_fraction: float = Field(0.05, gt=0, lt=0.5)
    """Fraction of the groups (molecules) that choose the best checkpoint."""
    test_fraction: float = Field(0.05, ge=0, lt=0.5)
    """Fraction of the groups that training never reads; `egnn-md evaluate --split test` finds them again."""
    exclude_tags: list[str] = []
    """Kinds of frames to leave out altogether."""


class ModelConfig(_Section):
    """The network; the elements and reference energies come from the data."""

    network: Literal["vectors", "invariant", "coordinates"] = "vectors"
    cutoff: float = Field(5.0, gt=0)
    """Å."""
    hidden_dim: int = Field(64, ge=1)
    message_dim: int = Field(64, ge=1)
    n_layers: int = Field(3, ge=1)
    n_vectors: int = Field(16, ge=1)
    n_radial: int = Field(20, ge=1)


class TrainingConfig(_Section):
    """The optimisation."""

    max_steps: int = Field(ge=1)
    batch_size: int = Field(16, ge=1)
    """Structures per step, over all processes together."""
    optimizer: Literal["muon", "adam"] = "muon"
    learning_rate: float = Field(3e-3, gt=0)
    """Peak; falls to zero over `max_steps` after `warmup_steps`."""
    warmup_steps: int = Field(200, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    loss: Literal["l1", "mse"] = "l1"
    energy_weight: float = Field(1.0, ge=0)
    """Of the energy error per atom, eV."""
    force_weight: float = Field(1.0, ge=0)
    """Of the length of an atom's force error, eV/Å."""
    stress_weight: float = Field(0.0, ge=0)
    """Of the stress error, eV/Å³; 0 leaves stress out."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    clip_norm: float = Field(5.0, gt=0)
    """Longest gradient over all weights."""
    dtype: Literal["float32", "float64"] = "float32"
    compile: bool = False
    """Trace and compile the training step: a minute or two at the start, then about 2.5x faster on a CPU."""
    validate_every: int = Field(1000, ge=1)
    checkpoint_every: int = Field(500, ge=1)
    """Steps between resumable checkpoints."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many validations without a better force error; None: never."""


class RunConfig(_Section):
    """The whole file."""

    task: Literal["potential"] = "potential"
    seed: int = 0
    name: str = "potential"
    init_from: str | None = None
    """Start from the weights of this shipped model or checkpoint (fine-tuning)."""
    output: str | None = None
    """Run folder; -o/--output goes first."""
    description: str = ""
    licence: str = ""
    """Licence of the trained model, written into its checkpoint."""
    data: DataConfig
    model: ModelConfig = ModelConfig()
    training: TrainingConfig


def load_config(path: str | Path) -> RunConfig:
    """Read and validate a TOML configuration. Raises ConfigError with one line per problem."""
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no such configuration: {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} is not readable TOML: {error}") from error
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(path, error))) from None


def _explain(path: Path, error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        if problem["type"] == "extra_forbidden":
            section: type[BaseModel] = RunConfig
            for part in location[:-1]:
                section = section.model_fields[part].annotation  # type: ignore[assignment]
            near = difflib.get_close_matches(location[-1], section.model_fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(section.model_fields)}"
            lines.append(f"{path}: unknown key {'.'.join(location)!r}; {hint}")
        else:
            lines.append(f"{path}: {'.'.join(location)}: {problem['msg']}")
    return lines
