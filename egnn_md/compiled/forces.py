"""Force calls compiled ahead of time: when they are made, found, checked and used.

One package serves every potential of the same shape in the same precision: the weights are its inputs. Compiling takes
a minute or two, once (`egnn-md compile`); after that every process of the user finds the package in the store.
"""

from __future__ import annotations

import json
import math
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from egnn_md.compiled import store
from egnn_md.compiled.package import CompilationError, Package, Sizes, Weights, check_compiler, compile_package
from egnn_md.models.charge_response import Totals
from egnn_md.models.long_range import Far, FarPairs
from egnn_md.models.potential import LocalCall, Potential

Compile = bool | Literal["auto"]
TOLERANCE: Final = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest difference to the eager call of any energy (eV), derivative and force (eV/Å) and extrapolation, over the
largest magnitude among them, or over 1."""
MOST_PAIRS: Final = 400_000
"""Beyond, the eager call in blocks: a package keeps the messages of all pairs, some 7 kB each in float32."""
MOST_FAR_PAIRS: Final = 2_000_000
"""The same of all pairs at any distance, for models with charges: some 0.1 kB each."""
_SIZES: Final[tuple[Sizes, ...]] = (
    *({0: "pairs"}, {0: "atoms"}, {1: "pairs"}, {0: "far pairs"}, {1: "far pairs"}),
    *({0: "atoms"}, {0: "structures"}, {0: "structures"}),
)
"""Of each input of the code, in its order (see `_inputs`): which dimensions vary, and the names of their sizes."""
_LIMITS: Final = {"pairs": MOST_PAIRS, "far pairs": MOST_FAR_PAIRS}
"""Largest of a size; from 2 on, since no package fits sizes 0 and 1."""
_EXAMPLE_ATOMS: Final = 12
_CHECKED_ATOMS: Final = (3, 5, 30, 150)
_Inputs = tuple[Tensor, ...]


class CompiledCall:
    """`Potential.local_call` of one model through a package, with the model's weights as they are at each call.

    A copy of the model, pickled or not, has None in its place: loaded code belongs to one process.
    """

    def __init__(self, model: Potential, path: Path) -> None:
        self._package = Package(path, _weights(model))
        self._eager, self._dtype = model.local_call, model.dtype

    def __call__(self, vectors: Tensor, species: Tensor, pairs: Tensor, far: Far | None = None) -> LocalCall:
        """As `Potential.local_call`, which also has what does not fit the package, periodic cells' waves among it."""
        inputs = _inputs(vectors, species, pairs, far)
        if inputs is None or not self._fits(inputs):
            return self._eager(vectors, species, pairs, far)
        energies, gradient, forces, extrapolation, *charges = self._package(*inputs)
        return LocalCall(energies, gradient, forces, extrapolation, charges[0] if charges else None)

    def _fits(self, inputs: _Inputs) -> bool:
        """Whether all sizes and precisions are those that the code was made for."""
        for value, sizes in zip(inputs, _SIZES, strict=False):
            if value.is_floating_point() and value.dtype != self._dtype:
                return False
            for dim, name in sizes.items():
                if not 2 <= value.shape[dim] <= _LIMITS.get(name, math.inf):
                    return False
        return True

    def part(self) -> None:
        """See `Package.part`: asked for before the model is copied."""
        self._package.part()

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()


def _nothing() -> None:
    return None


def _inputs(vectors: Tensor, species: Tensor, pairs: Tensor, far: Far | None = None) -> _Inputs | None:
    """Arguments of `Potential.local_call` as tensors in a row; None for those that have no such form."""
    if far is None:
        return vectors, species, pairs
    if far.pairs is None or far.waves or far.rows:
        return None
    return vectors, species, pairs, *far.pairs, *(far.totals or ())


def use_compiled(model: Potential, wanted: Compile, report: Callable[[str], None] = lambda line: None) -> bool:
    """Let the model's force calls go through a package, if there is one. True if they do.

    wanted: "auto": if it is in the store, and without a word if it is not. True: made now if need be. False: never.
    report: hears, in a line, what stands in the way: of True, or of a store that is not to be trusted. Force calls are
        eager then.
    """
    if wanted not in (True, False, "auto"):
        raise ValueError(f"compile must be True, False or 'auto', not {wanted!r}")
    model.drop_compiled()
    if wanted is False:
        return False
    try:
        path = find(model) or (Path(compile_forces(model)["package"]) if wanted is True else None)
        if path is not None:
            model.compiled = CompiledCall(model, path)
    except (store.UntrustedStore, CompilationError) as error:
        report(f"{error}; force calls are not compiled")
    return model.compiled is not None


def refusal(model: Potential) -> str | None:
    """Why this model's force calls cannot be compiled; None if they can."""
    if type(model) is not Potential:
        return f"{type(model).__name__} is not a Potential of this package"
    if model.device.type != "cpu":
        return f"packages are for the CPU, the model is on {model.device}"
    if model.dtype not in TOLERANCE:
        return f"packages are for float32 and float64, the model is {model.dtype}"
    return None


def find(model: Potential) -> Path | None:
    """The package for this model's force calls, if the user's store has it. Raises `store.UntrustedStore`."""
    if refusal(model):
        return None
    found = store.find(key_of(model))
    return None if found is None else found[0]


def key_of(model: Potential) -> dict[str, Any]:
    """All that the machine code depends on: the model's shape and its function, precision, torch and the processor."""
    config = asdict(model.config)
    config.pop("reference_energies")
    return {
        "function": "force call",
        "config": json.loads(json.dumps(config)),
        "weights": {name: list(value.shape) for name, value in _weights(model).items()},
        "dtype": str(model.dtype),
        "device": str(model.device),
        "torch": f"{torch.__version__} {torch.version.git_version}",
        "processor": _processor(),
        "source": _source(),
    }


def compile_forces(model: Potential, report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Compile, hold to the eager call, keep. What stands in the package's about.json, and "package": where it is.

    Raises CompilationError (NoCompiler where there is none) and `store.UntrustedStore`; nothing is kept then.
    """
    reason = refusal(model)
    if reason:
        raise CompilationError(reason)
    folder, key = store.make_folder(), key_of(model)
    check_compiler()
    began = time.perf_counter()
    report("compiling the force call, a minute or two, once")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".work-") as work:
        path = Path(work) / store.PACKAGE
        inputs = _inputs(*example(model, _EXAMPLE_ATOMS))
        assert inputs is not None
        compile_package(_function(model), _weights(model), inputs, _SIZES[: len(inputs)], path)
        seconds = time.perf_counter() - began
        report(f"compiled in {seconds:.0f} s; holding it to the eager call")
        compiled = CompiledCall(model, path)
        difference = check(model, compiled)
        compiled.part()
        about = {"seconds": seconds, "difference": difference, "tolerance": TOLERANCE[model.dtype]}
        kept = store.keep(key, path, about)
    return {**about, "package": str(kept)}


@torch.no_grad()
def check(model: Potential, compiled: Callable[..., LocalCall]) -> float:
    """Hold compiled force calls to eager ones on structures of 3 to 150 atoms; the largest difference, see `TOLERANCE`.

    Energies, derivatives by each pair's vector (so the stress), forces, extrapolation. Raises CompilationError beyond
    the tolerance.
    """
    largest = 0.0
    for n_atoms in _CHECKED_ATOMS:
        inputs = example(model, n_atoms)
        pairs = zip(compiled(*inputs), model.local_call(*inputs), strict=True)
        for ours, eager in ((ours, eager) for ours, eager in pairs if isinstance(eager, Tensor)):
            assert isinstance(ours, Tensor)
            known = ~torch.isnan(eager)  # extrapolation, of a model without statistics
            scale = eager[known].abs().max().clamp(min=1.0) if bool(known.any()) else 1.0
            difference = torch.where(known | ~torch.isnan(ours), ours - eager, 0.0).abs().max() / scale
            largest = max(largest, float(difference)) if bool(torch.isfinite(difference)) else math.inf
    if largest > TOLERANCE[model.dtype]:
        raise CompilationError(
            f"the compiled code differs from the eager call by {largest:.1e} (tolerance {TOLERANCE[model.dtype]:.0e}) "
            f"and was thrown away: torch {torch.__version__} or the C++ compiler is at fault, try other versions"
        )
    return largest


def example(model: Potential, n_atoms: int) -> tuple[Any, ...]:
    """Arguments of `Potential.local_call`: a piece of a crystal of mixed elements, atoms 2.5 Å apart and shaken."""
    random = torch.Generator().manual_seed(n_atoms)
    side = range(math.ceil(n_atoms ** (1 / 3)))
    lattice = torch.tensor([(x, y, z) for x in side for y in side for z in side][:n_atoms], dtype=torch.float64)
    positions = 2.5 * lattice + 0.3 * (torch.rand(n_atoms, 3, generator=random, dtype=torch.float64) - 0.5)
    species = torch.randint(len(model.config.elements), (n_atoms,), generator=random)
    near = torch.cdist(positions, positions) < model.config.cutoff
    pairs = near.triu(1).nonzero().T.contiguous()
    vectors = (positions[pairs[1]] - positions[pairs[0]]).to(model.dtype)
    if model.long_range is None:
        return vectors, species, pairs
    index = torch.triu_indices(n_atoms, n_atoms, 1)
    far = FarPairs((positions[index[1]] - positions[index[0]]).to(model.dtype), index)
    if not model.config.charge_response:
        return vectors, species, pairs, Far(far)
    of_one = torch.zeros(2, dtype=model.dtype)
    return vectors, species, pairs, Far(far, totals=Totals(torch.zeros_like(species), of_one + torch.nan, of_one))


class _LocalCall(nn.Module):
    """`Potential.local_call` as a module, which torch.func.functional_call asks for."""

    def __init__(self, model: Potential) -> None:
        super().__init__()
        self.model = model

    def forward(self, vectors: Tensor, species: Tensor, pairs: Tensor, *far: Tensor) -> tuple[Tensor, ...]:
        far_pairs, totals = far[:2], far[2:]
        made = Far(FarPairs(*far_pairs), totals=Totals(*totals) if totals else None) if far_pairs else None
        call = self.model.local_call(vectors, species, pairs, made)
        return tuple(value for value in call if isinstance(value, Tensor))


def _weights(model: Potential) -> Weights:
    """All numbers of the model, by name: parameters, constants, statistics, reference energies."""
    call = _LocalCall(model)
    named = (*call.named_parameters(), *call.named_buffers())
    return {name: value for name, value in named if value.is_floating_point()}


def _function(model: Potential) -> Callable[..., tuple[Tensor, ...]]:
    call = _LocalCall(model)

    def local_call(weights: Weights, *inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.func.functional_call(call, dict(weights), inputs)  # type: ignore[no-any-return]

    return local_call


@cache
def _processor() -> str:
    """Kind of processor and what it can do: code for one may not run on another that shares the home folder."""
    flags = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags = line
                break
    except OSError:
        flags = platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.system()} {platform.machine()} {capability} {sha256(flags.encode()).hexdigest()[:16]}"


@cache
def _source() -> str:
    """Of the code that the package was made of: no version number is forgotten when the physics changes."""
    found = sha256()
    for folder in ("nn", "models", "compiled"):
        for file in sorted(Path(str(files("egnn_md") / folder)).glob("*.py")):
            found.update(file.read_bytes())
    return found.hexdigest()[:16]
