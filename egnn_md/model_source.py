"""What an engine keeps of a model: enough to load it again in another process, and nothing that cannot be pickled."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from egnn_md import checkpoint
from egnn_md.models.potential import Potential


@dataclass(frozen=True)
class ModelSource:
    """A shipped potential by its name; any other by the bytes of its checkpoint, as they were when it was given."""

    label: str
    """The name or path, for messages."""
    data: bytes | None = field(repr=False, default=None)
    """Content of the checkpoint; None for a shipped potential."""
    ions: bool = field(default=False, compare=False)
    """Whether the model has charges, and so takes charged structures."""

    @staticmethod
    def of(model: str | Path | Potential | ModelSource) -> ModelSource:
        """Raises CheckpointError for unknown names and unreadable files, TypeError for anything but the three."""
        if isinstance(model, ModelSource):
            return model
        if isinstance(model, Potential):
            if model.terms:
                raise ValueError("a checkpoint keeps no added terms: give them to the engine instead, terms=[...]")
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.safetensors"
                checkpoint.save(model, path)
                return ModelSource("a Potential in memory", path.read_bytes(), model.config.long_range)
        if not isinstance(model, str | Path):
            raise TypeError(f"model must be a name, a path or a Potential, not {type(model).__name__}")
        if (name := checkpoint.shipped_name(model)) is not None:
            return ModelSource(name, ions=_ions(checkpoint.read_header(name)))
        header = checkpoint.check(model)  # refuses what is no checkpoint, however large, before it is read
        return ModelSource(str(model), checkpoint.resolve(model).read_bytes(), _ions(header))

    def load(self, device: torch.device, dtype: torch.dtype) -> Potential:
        """A potential of its own, ready to predict. Raises CheckpointError; ValueError for other kinds of model."""
        if self.data is None:
            model = checkpoint.load(self.label, device=device, dtype=dtype)
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / Path(self.label).name
                path.write_bytes(self.data)
                model = checkpoint.load(path, device=device, dtype=dtype)
        if not isinstance(model, Potential):
            raise ValueError(f"{self.label} holds a {type(model).__name__}; an engine needs a Potential")
        return model


def _ions(header: dict[str, Any]) -> bool:
    return bool(header["config"].get("long_range", False))
