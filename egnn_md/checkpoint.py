"""One safe file per model: safetensors weights with everything else as JSON in the header.

Loading runs no code from the file: the header names one of the kinds of model registered here, its configuration is
checked field by field, and tensors are compared with what that configuration asks for before any is allocated.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_type_hints, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from egnn_md.forks import survive_forks
from egnn_md.options import DTYPES
from egnn_md.storage import write_whole

if TYPE_CHECKING:
    from egnn_md.models.flow import FlowMap
    from egnn_md.models.potential import Potential
    from egnn_md.models.propagator import IntegratorPropagator, VelocityEGNN
    from egnn_md.models.property import PropertyModel

FORMAT_VERSION: Final = 1
MAX_FILE_BYTES: Final = 2 * 1024**3
MAX_HEADER_BYTES: Final = 4 * 1024**2
TABLES: Final = 2**20
"""Numbers that a model may allocate beside its weights."""
_MAKERS: Final = {torch.empty, torch.full, torch.ones, torch.rand, torch.randn, torch.tensor, torch.zeros}
LARGEST: Final = {"cutoff": 100.0, "layers": 1000, "dim": 65_536}
"""Of settings with these words in their names; Å for a cutoff."""
LARGEST_NUMBER: Final = 1e8
"""Of all others: the energy of the heaviest atom is 1e6 eV."""
_KEY: Final = "egnn_md"

KINDS: Final[dict[str, tuple[str, str, str]]] = {
    # kind: (module, model class, configuration class)
    "potential": ("egnn_md.models.potential", "Potential", "PotentialConfig"),
    "velocity-egnn": ("egnn_md.models.propagator", "VelocityEGNN", "VelocityEGNNConfig"),
    "integrator": ("egnn_md.models.propagator", "IntegratorPropagator", "IntegratorConfig"),
    "property": ("egnn_md.models.property", "PropertyModel", "PropertyConfig"),
    "flow": ("egnn_md.models.flow", "FlowMap", "FlowConfig"),
    "graph-autoencoder": ("egnn_md.paper.autoencoder", "GraphAutoencoder", "GraphAutoencoderConfig"),
}

UNITS: Final = {"energy": "eV", "length": "angstrom", "mass": "amu", "time": "fs"}


class CheckpointError(ValueError):
    """A file that is no usable checkpoint, or a name that no model has; the message says what to do."""


def shipped_models() -> dict[str, Path]:
    """Name -> file of the models that come with the package.

    >>> shipped_models()["organic-xtb"].name
    'organic-xtb.safetensors'
    """
    folder = Path(str(files("egnn_md") / "pretrained"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def shipped_name(name: str | Path) -> str | None:
    """The shipped model of this name; without a number ("egnn-xtb") the newest of those that have one; None without.

    >>> shipped_name("organic-xtb"), shipped_name("no-such-model")
    ('organic-xtb', None)
    """
    shipped, name = shipped_models(), str(name)
    if name in shipped:
        return name
    versions = [int(end) for model in shipped if (end := model.removeprefix(f"{name}-")) != model and end.isdecimal()]
    return f"{name}-{max(versions)}" if versions else None


def resolve(name_or_path: str | Path) -> Path:
    """The file behind a shipped name (see `shipped_name`) or a path. Raises CheckpointError, naming what there is."""
    shipped, name = shipped_models(), shipped_name(name_or_path)
    if name is not None:
        return shipped[name]
    path = Path(name_or_path)
    if path.is_file():
        return path
    raise CheckpointError(
        f"no model {str(name_or_path)!r}: shipped models are {', '.join(shipped) or 'none'}; "
        "anything else must be the path of a .safetensors checkpoint"
    )


def save(model: nn.Module, path: str | Path, information: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint atomically: the old file stays whole until the new one is.

    `information` (JSON values) is kept under its keys: name, description, licence, training_data, held_out, command, …
    Raises ValueError if it redefines what the model itself says, CheckpointError for an unregistered model, OSError if
    there is no room.
    """
    from egnn_md import __version__

    path = Path(path)
    config: Any = model.config
    header: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "kind": _kind_of(model),
        "config": asdict(config),
        "units": getattr(model, "units", UNITS),
    }
    taken = (header.keys() | {"sha256"}) & (information or {}).keys()
    if taken:
        raise ValueError(f"information must not redefine {', '.join(sorted(taken))}: the model does")
    header.update(information or {})
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    header["sha256"] = _digest(header["kind"], header["config"], tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={_KEY: json.dumps(header)})
        except SafetensorError as error:  # a full disk, which is an OSError elsewhere
            raise OSError(errno.EIO, f"cannot be written: {error}", str(path)) from error


def _digest(kind: str, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of all that decides a model's numbers."""
    digest = hashlib.sha256(json.dumps([kind, config], sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _kind_of(model: nn.Module) -> str:
    for kind, (_, class_name, _) in KINDS.items():
        if type(model).__name__ == class_name:
            return kind
    raise CheckpointError(f"{type(model).__name__} is not a registered kind of model: {', '.join(KINDS)}")


def read_header(name_or_path: str | Path) -> dict[str, Any]:
    """The header of a checkpoint, as a dictionary; no tensor is read.

    Raises CheckpointError for files that are truncated, oversized, not ours, or made by a newer library.
    """
    path = resolve(name_or_path)
    size = path.stat().st_size
    if not 8 <= size <= MAX_FILE_BYTES:
        raise CheckpointError(f"{path} is {'empty or cut off' if size < 8 else 'too large'} for a checkpoint")
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if header_bytes > min(MAX_HEADER_BYTES, size):
        raise CheckpointError(f"{path} is not a safetensors file, or is cut off")
    try:
        with safe_open(path, framework="pt") as archive:
            metadata = archive.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file, or is cut off: {error}") from error
    if _KEY not in metadata:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of egnn-md")
    try:
        header = json.loads(metadata[_KEY])
        version = header["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged header: {error}") from error
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{path} has a damaged header: format version {version!r}")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {version}; this library (format {FORMAT_VERSION}) is older: pip install -U egnn-md"
        )
    return dict(header)


@overload  # every shipped name stands in one of these: editors complete by them
def load(
    name_or_path: Literal[
        "egnn-xtb", "egnn-xtb-0", "egnn-xtb-1", "egnn-xtb-2", "egnn-xtb-3", "egnn-xtb-4", "organic-xtb"
    ],
    *,
    device: str | torch.device = ...,
    dtype: torch.dtype | str | None = ...,
) -> Potential: ...
@overload
def load(
    name_or_path: Literal["qm9"], *, device: str | torch.device = ..., dtype: torch.dtype | str | None = ...
) -> PropertyModel: ...
@overload
def load(
    name_or_path: Literal["ethanol-flow", "organics-flow", "organics-flow-1", "organics-flow-2"],
    *,
    device: str | torch.device = ...,
    dtype: torch.dtype | str | None = ...,
) -> FlowMap: ...
@overload
def load(
    name_or_path: Literal["nbody-charged5"], *, device: str | torch.device = ..., dtype: torch.dtype | str | None = ...
) -> IntegratorPropagator: ...
@overload
def load(
    name_or_path: str | Path, *, device: str | torch.device = ..., dtype: torch.dtype | str | None = ...
) -> Potential | PropertyModel | FlowMap | IntegratorPropagator | VelocityEGNN | Any: ...
def load(
    name_or_path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | str | None = None
) -> Potential | PropertyModel | FlowMap | IntegratorPropagator | VelocityEGNN | Any:
    """A model ready to predict, from a shipped name or a path: a `Potential`, a `PropertyModel`, a `FlowMap`, or a
    propagator of particles, by what the file says.

    `dtype` torch.float32 or torch.float64, or their names, is the precision of the network; None keeps the file's.
    Weights do not require gradients. Raises CheckpointError.

    >>> model = load("organic-xtb", dtype="float64")
    >>> model.dtype, model.config.cutoff, model.header["licence"]
    (torch.float64, 5.0, 'MIT')
    >>> load("organic-xbt")
    Traceback (most recent call last):
    ...
    egnn_md.checkpoint.CheckpointError: no model 'organic-xbt': ...
    """
    survive_forks()
    name = str(dtype).removeprefix("torch.")
    if dtype is not None and name not in DTYPES:
        raise CheckpointError(f"dtype must be float32 or float64, not {dtype}")
    path = resolve(name_or_path)
    header = read_header(path)
    with torch.inference_mode(False):  # weights that the caller can change and differentiate by
        model = _filled(path, header)
        model.header = header  # type: ignore[assignment]  # what it says of itself in a notebook
        return model.to(device=device, dtype=DTYPES.get(name)).eval().requires_grad_(False)


def _filled(path: Path, header: dict[str, Any]) -> nn.Module:
    """The model with the file's tensors, in their precision, on the CPU."""
    model, precision, names = _checked(path, header)
    try:
        with safe_open(path, framework="pt") as archive:
            stored = {name: archive.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file, or is cut off: {error}") from error
    _check_digest(path, header, stored)
    given = {names[name]: value for name, value in stored.items()}
    model.to(precision).load_state_dict({**model.state_dict(), **given})
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise CheckpointError(f"{path} has weights that are not finite: its training diverged")
    return model


class _Room(TorchFunctionMode):
    """Within this context at most so many numbers are allocated: a configuration may ask for more than its file holds.

    (On torch's "meta" device nothing would be allocated either, but that imports its compiler: seconds.)
    """

    def __init__(self, path: Path, room: int) -> None:
        super().__init__()
        self.path, self.room = path, room

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in _MAKERS:
            self.room -= made.numel()
            if self.room < 0:
                raise CheckpointError(f"{self.path}: tensors do not fit its configuration, which asks for more")
        return made


def _renamed(model_class: type[nn.Module], name: str) -> str:
    """What a tensor of an older file is called now."""
    renamed: Mapping[str, str] = getattr(model_class, "RENAMED", {})
    for old, new in renamed.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def check(name_or_path: str | Path) -> dict[str, Any]:
    """Refuse what `load` would refuse, but for damaged weights, without reading a tensor; returns the header.

    Raises CheckpointError.
    """
    path = resolve(name_or_path)
    header = read_header(path)
    _checked(path, header)
    return header


def _checked(path: Path, header: dict[str, Any]) -> tuple[nn.Module, torch.dtype, dict[str, str]]:
    """An untrained model of the configuration, the precision of the file's tensors, and what each of these is called
    now: all compared with each other before a tensor is read.
    """
    model_class, config = _configured(path, header)
    try:
        with safe_open(path, framework="pt") as archive:
            names = {name: _renamed(model_class, name) for name in archive.keys()}  # noqa: SIM118 (no mapping)
            slices = {name: archive.get_slice(name) for name in names}
            found = {names[name]: tuple(part.get_shape()) for name, part in slices.items()}
            precisions = {part.get_dtype() for part in slices.values()}
        room = sum(math.prod(shape) for shape in found.values())
        # Initial weights must not disturb the caller's random numbers.
        with torch.random.fork_rng(devices=[]), _Room(path, room + TABLES):
            model = model_class(config)
    except CheckpointError:
        raise
    except Exception as error:  # a configuration from anywhere: whatever the model's constructor trips on
        raise CheckpointError(f"{path} has an invalid configuration: {error or type(error).__name__}") from error
    optional = getattr(model_class, "OPTIONAL", ())
    state = model.state_dict()
    expected = {name: tuple(value.shape) for name, value in state.items() if name in found or name not in optional}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise CheckpointError(f"{path}: tensors do not fit its configuration: {', '.join(wrong[:5])}")
    if precisions not in ({"F32"}, {"F64"}):
        raise CheckpointError(f"{path}: tensors must all be float32 or all float64, not {sorted(precisions)}")
    return model, torch.float64 if precisions == {"F64"} else torch.float32, names


def _check_digest(path: Path, header: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    """Raise CheckpointError unless kind, configuration and tensors are those that were saved."""
    if "sha256" not in header:
        if path not in shipped_models().values():
            warnings.warn(
                f"{path} has no checksum: it was saved by an earlier egnn-md; damage is not found", stacklevel=3
            )
    elif header["sha256"] != _digest(header["kind"], header["config"], state):
        raise CheckpointError(f"{path} is damaged: its weights or its configuration are not those that were saved")


def _configured(path: Path, header: dict[str, Any]) -> tuple[type[nn.Module], Any]:
    """The model's class and its configuration, checked field by field."""
    kind, raw = header.get("kind"), header.get("config")
    if not isinstance(kind, str) or kind not in KINDS or not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds a model of kind {kind!r}; this library knows {', '.join(KINDS)}")
    module_name, class_name, config_name = KINDS[kind]
    module = importlib.import_module(module_name)
    config_class = getattr(module, config_name)
    for setting, only in getattr(config_class, "RETIRED", {}).items():
        if raw.pop(setting, only) != only:
            raise CheckpointError(f"{path} needs {setting} other than {only!r}, which egnn-md no longer has")
    unknown = raw.keys() - {field.name for field in fields(config_class)}
    if unknown:
        raise CheckpointError(f"{path} has unknown settings {sorted(unknown)}: it needs a newer egnn-md")
    hints = get_type_hints(config_class)
    try:
        for name, value in raw.items():
            _check_bounds(name, value, may_be_bool=hints[name] is bool)
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
        return getattr(module, class_name), config_class(**values)
    except Exception as error:  # whatever the checks of a configuration trip on in values of any type
        raise CheckpointError(f"{path} has an invalid configuration: {error or type(error).__name__}") from error


def _check_bounds(name: str, value: Any, may_be_bool: bool) -> None:
    """Raise ValueError for a number in a configuration that no model can have."""
    if isinstance(value, list):
        for item in value:
            _check_bounds(name, item, may_be_bool=False)
    elif isinstance(value, bool):
        if not may_be_bool:
            raise ValueError(f"{name} is {value}, no number")
    elif isinstance(value, int | float):
        largest = next((bound for word, bound in LARGEST.items() if word in name), LARGEST_NUMBER)
        if not abs(value) <= largest:
            raise ValueError(f"{name} is {value}: no model has that")
