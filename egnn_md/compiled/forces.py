"""Force calls compiled ahead of time: when they are made, found, checked and used.

One package serves every potential of the same shape in the same precision: the weights are its inputs. Compiling takes
a minute or two, once (`egnn-md compile`); after that every process of the user finds the package in the store. Models
with charges have two, since a periodic cell is another sum than the pairs of a molecule.
"""

from __future__ import annotations

import json
import math
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from egnn_md.compiled import store
from egnn_md.compiled.package import (
    CompilationError,
    JoinedWeights,
    Package,
    Sizes,
    Weights,
    check_compiler,
    compile_package,
)
from egnn_md.models.charge_response import Totals
from egnn_md.models.long_range import Far, FarPairs, FarWaves
from egnn_md.models.potential import LocalCall, Potential
from egnn_md.nn.far_field import Waves, waves_of

Compile = bool | Literal["auto"]
TOLERANCE: Final = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest difference to the eager call of any energy (eV), derivative and force (eV/Å) and extrapolation, over the
largest magnitude among them, or over 1."""
MOST_PAIRS: Final = 400_000
"""Beyond, the eager call in blocks: a package keeps the messages of all pairs, some 7 kB each in float32."""
MOST_FAR_PAIRS: Final = 2_000_000
"""The same of all pairs at any distance, for models with charges: some 0.1 kB each."""


class Form(NamedTuple):
    """A kind of structure, for which there is a package of its own."""

    name: str
    sizes: tuple[Sizes, ...]
    """Of each input of the code, in its order (see `_inputs`): which dimensions vary, and the names of their sizes."""


_NEAR: Final[tuple[Sizes, ...]] = ({0: "pairs"}, {0: "atoms"}, {1: "pairs"})
_TOTALS: Final[tuple[Sizes, ...]] = ({0: "atoms"}, {0: "structures"}, {0: "structures"})
ISOLATED: Final = Form("isolated", (*_NEAR, {0: "far_pairs"}, {1: "far_pairs"}, *_TOTALS))
"""Molecules, or a batch of them; of models without charges all structures, which have the first three inputs."""
PERIODIC: Final = Form("periodic", (*_NEAR, {0: "atoms", 1: "waves"}, *[{0: "waves"}] * 5, {}, *_TOTALS))
"""One periodic cell, of models with charges."""
_LIMITS: Final = {"pairs": MOST_PAIRS, "far_pairs": MOST_FAR_PAIRS}
"""Largest of a size; from 2 on, since no package fits sizes 0 and 1."""
_EXAMPLE_ATOMS: Final = 12
_CHECKED_ATOMS: Final = (3, 5, 30, 150)
_Inputs = tuple[Tensor, ...]


class CompiledCall:
    """`Potential.local_call` of one model through its packages, with the model's weights as they are at each call.

    A copy of the model, pickled or not, has None in its place: loaded code belongs to one process.
    """

    def __init__(self, model: Potential, paths: Mapping[str, Path]) -> None:
        """paths: the package of each `Form`, by its name."""
        self._weights = JoinedWeights(_weights(model))
        self._packages = {form: Package(path, self._weights) for form, path in paths.items()}
        self._eager, self._dtype = model.local_call, model.dtype

    def __call__(self, vectors: Tensor, species: Tensor, pairs: Tensor, far: Far | None = None) -> LocalCall:
        """As `Potential.local_call`, which also has what fits no package: large molecules, batches of cells."""
        form, inputs = _inputs(vectors, species, pairs, far)
        package = None if form is None else self._packages.get(form.name)
        if form is None or package is None or not self._fits(form, inputs):
            return self._eager(vectors, species, pairs, far)
        energies, gradient, forces, extrapolation, *others = package(*inputs)
        charges, *virials = others or (None,)
        return LocalCall(energies, gradient, forces, extrapolation, charges, tuple(virials))

    def _fits(self, form: Form, inputs: _Inputs) -> bool:
        """Whether all sizes and precisions are those that the code was made for."""
        if inputs[0].dtype != self._dtype:
            return False
        for value, sizes in zip(inputs, form.sizes, strict=False):
            for dim, name in sizes.items():
                if not 2 <= value.shape[dim] <= _LIMITS.get(name, math.inf):
                    return False
        return True

    def part(self) -> None:
        """See `JoinedWeights.part`: asked for before the model is copied."""
        self._weights.part()

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()


def _nothing() -> None:
    return None


def _inputs(vectors: Tensor, species: Tensor, pairs: Tensor, far: Far | None = None) -> tuple[Form | None, _Inputs]:
    """Arguments of `Potential.local_call` as tensors in a row, and which form it is; None for those that have none."""
    near = (vectors, species, pairs)
    if far is None:
        return ISOLATED, near
    totals = far.totals or ()
    if far.pairs is not None and not far.waves and not far.rows:
        return ISOLATED, (*near, *far.pairs, *totals)
    if len(far.waves) == 1 and far.pairs is None and not far.rows:
        return PERIODIC, (*near, far.waves[0].phases, *far.waves[0].waves, *totals)
    return None, near


def _arguments(form: Form, near: _Inputs, others: _Inputs) -> tuple[Any, ...]:
    """`_inputs` read backwards."""
    if not others:
        return near
    n_far = 2 if form is ISOLATED else 1 + len(Waves._fields)
    far, rest = others[:n_far], others[n_far:]
    totals = Totals(*rest) if rest else None
    if form is ISOLATED:
        return *near, Far(FarPairs(*far), totals=totals)
    return *near, Far(None, [FarWaves(0, 0, far[0], Waves(*far[1:]))], totals=totals)


def use_compiled(model: Potential, wanted: Compile, report: Callable[[str], None] = lambda line: None) -> bool:
    """Let the model's force calls go through a package, if there is one. True if they do.

    wanted: "auto": if it is in the store, and without a word if it is not. True: made now if need be. False: never.
    report: hears, in a line, what stands in the way: of True, or of a store that is not to be trusted. Force calls for
        which there is no package are eager then.
    """
    if wanted not in (True, False, "auto"):
        raise ValueError(f"compile must be True, False or 'auto', not {wanted!r}")
    model.drop_compiled()
    if wanted is False:
        return False
    try:
        paths = find(model)
        if paths:
            model.compiled = CompiledCall(model, paths)
        if wanted is True and len(paths) < len(forms_of(model)):
            paths |= compile_forces(model, without=paths)["packages"]
            model.compiled = CompiledCall(model, paths)
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


def forms_of(model: Potential) -> tuple[Form, ...]:
    """Those that this model needs a package for."""
    return (ISOLATED,) if model.long_range is None else (ISOLATED, PERIODIC)


def find(model: Potential) -> dict[str, Path]:
    """Packages for this model's force calls that the user's store has, by the names of their forms. Raises
    `store.UntrustedStore`.
    """
    if refusal(model):
        return {}
    found = {form.name: store.find(key_of(model, form)) for form in forms_of(model)}
    return {name: entry[0] for name, entry in found.items() if entry is not None}


def key_of(model: Potential, form: Form = ISOLATED) -> dict[str, Any]:
    """All that the machine code depends on: the model's shape and its function, precision, torch and the processor."""
    config = asdict(model.config)
    config.pop("reference_energies")
    return {
        "function": f"force call, {form.name}",
        "config": json.loads(json.dumps(config)),
        "weights": {name: list(value.shape) for name, value in _weights(model).items()},
        "dtype": str(model.dtype),
        "device": str(model.device),
        "torch": f"{torch.__version__} {torch.version.git_version}",
        "processor": _processor(),
        "source": _source(),
    }


def compile_forces(
    model: Potential, report: Callable[[str], None] = lambda line: None, without: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """Compile, hold to the eager call, keep. "packages", by form, and of all of them "seconds", the largest
    "difference" and its "tolerance"; each package's own stand in its about.json. `without`: forms that are there.

    Raises CompilationError (NoCompiler where there is none) and `store.UntrustedStore`; nothing is kept then of the
    form that failed.
    """
    reason = refusal(model)
    if reason:
        raise CompilationError(reason)
    folder = store.make_folder()
    check_compiler()
    made = {
        form.name: _compile(model, form, folder, report) for form in forms_of(model) if form.name not in (without or {})
    }
    return {
        "seconds": sum(one["seconds"] for one in made.values()),
        "difference": max(one["difference"] for one in made.values()),
        "tolerance": TOLERANCE[model.dtype],
        "packages": {name: one["package"] for name, one in made.items()},
    }


def _compile(model: Potential, form: Form, folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    began = time.perf_counter()
    which = f" of {form.name} structures" if len(forms_of(model)) > 1 else ""
    report(f"compiling the force call{which}, a minute or two, once")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".work-") as work:
        path = Path(work) / store.PACKAGE
        _, inputs = _inputs(*example(model, _EXAMPLE_ATOMS, form))
        compile_package(_function(model, form), _weights(model), inputs, form.sizes[: len(inputs)], path)
        seconds = time.perf_counter() - began
        report(f"compiled in {seconds:.0f} s; holding it to the eager call")
        compiled = CompiledCall(model, {form.name: path})
        difference = check(model, compiled, form)
        compiled.part()
        about = {"seconds": seconds, "difference": difference, "tolerance": TOLERANCE[model.dtype]}
        kept = store.keep(key_of(model, form), path, about)
    return {**about, "package": kept}


@torch.no_grad()
def check(model: Potential, compiled: Callable[..., LocalCall], form: Form = ISOLATED) -> float:
    """Hold compiled force calls to eager ones on structures of 3 to 150 atoms; the largest difference, see `TOLERANCE`.

    Energies, derivatives by each pair's vector (so the stress), forces, extrapolation, charges, virials. Raises
    CompilationError beyond the tolerance.
    """
    largest = 0.0
    for n_atoms in _CHECKED_ATOMS:
        inputs = example(model, n_atoms, form)
        for ours, eager in zip(_tensors(compiled(*inputs)), _tensors(model.local_call(*inputs)), strict=True):
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


def _tensors(call: LocalCall) -> tuple[Tensor, ...]:
    return *(value for value in call if isinstance(value, Tensor)), *call.virials


def example(model: Potential, n_atoms: int, form: Form = ISOLATED) -> tuple[Any, ...]:
    """Arguments of `Potential.local_call`: a piece of a crystal of mixed elements, atoms 2.5 Å apart and shaken; for
    `PERIODIC` charges see all images of it, in a cell with room around it.
    """
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
    totals = None
    if model.config.charge_response:
        of_one = torch.zeros(2, dtype=model.dtype)
        totals = Totals(torch.zeros_like(species), of_one + torch.nan, of_one)
    if form is PERIODIC:
        waves = waves_of((2.5 * len(side) + 3.0) * torch.eye(3, dtype=torch.float64))
        phases = (positions @ waves.vectors.mT).to(model.dtype)
        return vectors, species, pairs, Far(None, [FarWaves(0, 0, phases, waves)], totals=totals)
    index = torch.triu_indices(n_atoms, n_atoms, 1)
    far = FarPairs((positions[index[1]] - positions[index[0]]).to(model.dtype), index)
    return vectors, species, pairs, Far(far, totals=totals)


class _LocalCall(nn.Module):
    """`Potential.local_call` as a module, which torch.func.functional_call asks for."""

    def __init__(self, model: Potential, form: Form = ISOLATED) -> None:
        super().__init__()
        self.model, self.form = model, form

    def forward(self, vectors: Tensor, species: Tensor, pairs: Tensor, *far: Tensor) -> tuple[Tensor, ...]:
        return _tensors(self.model.local_call(*_arguments(self.form, (vectors, species, pairs), far)))


def _weights(model: Potential) -> Weights:
    """All numbers of the model, by name: parameters, constants, statistics, reference energies."""
    call = _LocalCall(model)
    named = (*call.named_parameters(), *call.named_buffers())
    return {name: value for name, value in named if value.is_floating_point()}


def _function(model: Potential, form: Form) -> Callable[..., tuple[Tensor, ...]]:
    call = _LocalCall(model, form)

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
