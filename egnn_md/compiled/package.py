"""Functions compiled ahead of time, by AOTInductor, for inputs of any size.

    function(weights, *inputs) -> tensors

`weights` are inputs like the others, so that one package serves every model of the same shape. In a package they are
one tensor for each precision: passing fifty costs more than some of the products that they are for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Final

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]
Function = Callable[..., tuple[Tensor, ...]]
Sizes = Mapping[int, str]
"""Dimension of an input -> name of its size; sizes of the same name are equal, and any number from 2 on."""

OPTIONS: Final[dict[str, Any]] = {
    "cpp.threads": 1,  # sums over pairs are plain additions; with threads each would be an atomic one
    "pattern_matcher": False,  # it would make products and sums one again, see `_product_and_sum`
    "compile_threads": 1,
}


class CompilationError(RuntimeError):
    """No package could be made; the message says what to do."""


class NoCompiler(CompilationError):
    """This machine has no C++ compiler."""


def compile_package(
    function: Function, weights: Weights, inputs: Sequence[Tensor], sizes: Sequence[Sizes], path: Path
) -> None:
    """Write the package of `function` to `path` (.pt2), half a minute to some minutes' work.

    inputs: an example, with sizes from 3 on. sizes: for each input, which dimensions may vary.

    Raises NoCompiler, and CompilationError if torch or the compiler fails.
    """
    check_compiler()
    from torch._inductor.utils import fresh_cache
    from torch.export import Dim, export

    names = sorted({name for dims in sizes for name in dims.values()})
    dims = {name: Dim(name, min=2) for name in names}
    shapes = tuple({dim: dims[name] for dim, name in varying.items()} for varying in sizes)
    packed = pack(weights)
    try:
        with torch.no_grad(), _quiet(), fresh_cache(dir=str(path.parent)):
            # of its own, not /tmp/torchinductor_<user>: code in there could be anybody's
            traced = _traced(_unpacking(function, weights), packed, inputs)
            exported = export(_Module(traced), (packed, *inputs), dynamic_shapes=([None] * len(packed), shapes))
            exported = exported.run_decompositions({torch.ops.aten.addmm.default: _product_and_sum})
            torch._inductor.aoti_compile_and_package(exported, package_path=str(path), inductor_configs=OPTIONS)
    except (RuntimeError, OSError, ValueError, TypeError, AssertionError) as error:
        first = next(iter(str(error).strip().splitlines()), "")
        raise CompilationError(f"compiling failed ({type(error).__name__}: {first})") from error


def check_compiler() -> None:
    """Raise NoCompiler, saying what to install, unless there is a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # an InvalidCxxCompiler, from another place in each release
        raise NoCompiler(
            "compiling needs a C++ compiler: install g++ (apt install g++, dnf install gcc-c++, "
            "conda install cxx-compiler)"
        ) from error


class JoinedWeights:
    """The weights of one model as packages read them: parts of one tensor for each precision, so that what is written
    to them, through `.data` too, is read at the next call. Other tensors put in place of these are not seen.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._lock = Lock()
        self._joined: list[Tensor] = []
        self._places: list[int] = []

    def tensors(self) -> list[Tensor]:
        """The tensors that the code reads."""
        with self._lock:
            if self._places != self._places_now():  # at the first call, and where a weight was given other memory
                with torch.inference_mode(False):
                    self._joined = pack(self._weights)
                for names, joined in zip(_by_dtype(self._weights), self._joined, strict=True):
                    weights = [self._weights[name] for name in names]
                    parts = joined.split_with_sizes([weight.numel() for weight in weights])
                    for weight, part in zip(weights, parts, strict=True):
                        _lay(weight, part.view(weight.shape))
                self._places = self._places_now()
            return self._joined

    def part(self) -> None:
        """Give each weight memory of its own, until the next call: a copy of one is not to be a copy of them all."""
        with self._lock:
            for weight in self._weights.values():
                _lay(weight, weight.detach().clone())
            self._places = []

    def _places_now(self) -> list[int]:
        return [weight.data_ptr() for weight in self._weights.values()]


class Package:
    """`package(*inputs)` gives what `function(weights, *inputs)` would; CompilationError if it cannot be loaded."""

    def __init__(self, path: Path, weights: JoinedWeights) -> None:
        try:
            self._run = _load(path)
        except RuntimeError as error:
            raise CompilationError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from error
        self._weights = weights

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The code assumes precisions, devices and dense rows; dtypes are the caller's to keep."""
        return self._run([*self._weights.tensors(), *(value.contiguous() for value in inputs)])


def _lay(weight: Tensor, values: Tensor) -> None:
    """Let a weight lie where these values are: to autograd it is what it was."""
    place = (values.untyped_storage(), values.storage_offset(), values.shape, values.stride())
    if weight.is_inference():
        with torch.inference_mode():  # else torch lets nobody write to it
            weight.set_(*place)
    else:
        with torch.inference_mode(False):
            weight.data = torch.empty(0, dtype=values.dtype).set_(*place)


def pack(weights: Weights) -> list[Tensor]:
    """All values of each precision, one after the other, in the order of `weights`."""
    return [torch.cat([weights[name].detach().reshape(-1) for name in names]) for names in _by_dtype(weights)]


def _load(path: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    try:  # the public loader compiles a program, for half a minute, only to warn where versions differ
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    except (AttributeError, TypeError):
        loader = torch._inductor.aoti_load_package(str(path)).loader
    run: Callable[[list[Tensor]], list[Tensor]] = loader.run
    return run


def _by_dtype(weights: Weights) -> list[list[str]]:
    groups: dict[torch.dtype, list[str]] = {}
    for name, value in weights.items():
        groups.setdefault(value.dtype, []).append(name)
    return list(groups.values())


def _unpacking(function: Function, weights: Weights) -> Function:
    groups = _by_dtype(weights)
    shapes = {name: value.shape for name, value in weights.items()}

    def unpacked(packed: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        values: dict[str, Tensor] = {}
        for names, joined in zip(groups, packed, strict=True):
            parts = joined.split_with_sizes([shapes[name].numel() for name in names])
            values |= {name: part.view(shapes[name]) for name, part in zip(names, parts, strict=True)}
        return tuple(function(values, *inputs))

    return unpacked


def _traced(function: Function, packed: list[Tensor], inputs: Sequence[Tensor]) -> Callable[..., Any]:
    import torch.fx.experimental._config as fx_config
    from torch.fx.experimental.proxy_tensor import make_fx

    with fx_config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
        return make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(packed, *inputs)


class _Module(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, packed: list[Tensor], *inputs: Tensor) -> Any:
        return self.function(packed, *inputs)


def _product_and_sum(x: Tensor, rows: Tensor, matrix: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """addmm copies x before the product; a sum of its own joins the pointwise operations that follow."""
    product = rows @ matrix
    return x * beta + product * alpha if (beta, alpha) != (1.0, 1.0) else x + product


@contextmanager
def _quiet() -> Iterator[None]:
    """Deprecations inside torch are not the user's business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
