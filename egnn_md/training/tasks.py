"""The registry of tasks, and the reading of a configuration for whichever it names.

An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
import importlib
import tomllib
from pathlib import Path
from typing import Any, Final, cast

from pydantic import BaseModel, ValidationError

from egnn_md.checkpoint import LARGEST
from egnn_md.training.config import ConfigError, RunConfig
from egnn_md.training.task import Task

TASKS: Final[dict[str, tuple[str, str]]] = {
    # task of the configuration: (module, class)
    "potential": ("egnn_md.training.potential", "PotentialTask"),
    "nbody": ("egnn_md.training.nbody", "NBodyTask"),
    "property": ("egnn_md.training.property", "PropertyTask"),
    "flow": ("egnn_md.training.flow", "FlowTask"),
    "flow-frames": ("egnn_md.training.flow_frames", "FlowFramesTask"),
    "autoencoder": ("egnn_md.paper.autoencoder_training", "AutoencoderTask"),
}


LARGEST_NUMBER: Final = 2**63 - 1
"""Of a number for which the checkpoints' bounds have no word."""
MOST_BYTES: Final = 2**20
"""Of a configuration."""


def task_class(name: str) -> type[Task]:
    """The class behind a task's name in `TASKS`."""
    module, class_name = TASKS[name]
    return cast(type[Task], getattr(importlib.import_module(module), class_name))


def load_config(path: str | Path) -> RunConfig:
    """Read and validate a TOML configuration of any task. Raises ConfigError with one line per problem."""
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path} has {path.stat().st_size} bytes: no configuration is that long")
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"no such configuration: {path}") from None
    except (OSError, ValueError, RecursionError) as error:  # numbers of thousands of digits, nesting without end
        raise ConfigError(f"{path} is not readable TOML: {' '.join(str(error).split())[:300]}") from error
    config_class = _config_class(path, raw.get("task", "potential"))
    try:
        config = config_class.model_validate(raw)
        _check_numbers(path, config.model_dump())
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(path, config_class, error))) from None
    except (OverflowError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def _check_numbers(path: Path, values: Any, where: str = "") -> None:
    """Raise ConfigError for a number that is none, or larger than anything a training has."""
    if isinstance(values, dict):
        for name, value in values.items():
            _check_numbers(path, value, f"{where}.{name}" if where else str(name))
    elif isinstance(values, list | tuple):
        for value in values:
            _check_numbers(path, value, where)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        largest = next((bound for word, bound in LARGEST.items() if word in where), LARGEST_NUMBER)
        if not abs(values) <= largest:
            raise ConfigError(f"{path}: {where} is {_said(values)[:30]}; it can be at most {largest:g}")


def _said(value: Any) -> str:
    """Whatever a file has, Python's limit on the digits of whole numbers included."""
    try:
        return str(value)
    except ValueError:
        return "thousands of digits"


def _config_class(path: Path, task: Any) -> type[RunConfig]:
    if isinstance(task, str) and task in TASKS:
        return task_class(task).config_class
    said = _said(task)[:100]
    near = difflib.get_close_matches(said, TASKS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known tasks: {', '.join(TASKS)}"
    raise ConfigError(f"{path}: unknown task {said!r}; {hint}")


def _explain(path: Path, config_class: type[RunConfig], error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        location = [str(part) for part in problem["loc"]]
        if problem["type"] == "extra_forbidden":
            section: type[BaseModel] = config_class
            for part in location[:-1]:
                section = section.model_fields[part].annotation  # type: ignore[assignment]
            near = difflib.get_close_matches(location[-1], section.model_fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(section.model_fields)}"
            lines.append(f"{path}: unknown key {'.'.join(location)!r}; {hint}")
        else:
            lines.append(f"{path}: {'.'.join(location)}: {problem['msg']}")
    return lines
