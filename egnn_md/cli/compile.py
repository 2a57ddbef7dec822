"""`egnn-md compile`: force calls as machine code, once."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from egnn_md.cli.options import Json, Overwrite, check_device, parse_dtype
from egnn_md.cli.outcome import Outcome, UserError, say, verb


@verb
def compile(
    model: Annotated[str, typer.Argument(help="A shipped potential's name, or a checkpoint.")] = "organic-xtb",
    dtype: Annotated[
        str, typer.Option(help="float32, which egnn-md md uses, or float64, EGNNCalculator's default.")
    ] = "float32",
    device: Annotated[str, typer.Option(help="cpu; packages for GPUs are not made yet.")] = "cpu",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> Outcome:
    """Compile a potential's force call, once: all later runs on this machine are two to four times as fast.

    Takes a minute or two and a C++ compiler (g++); twice that for models with charges, which have one package for
    molecules and one for periodic cells. The package lies in your cache (~/.cache/egnn-md, or under
    XDG_CACHE_HOME) and serves every potential of the same shape, your own training's too; `egnn-md md`, `relax`,
    EGNNCalculator and the OpenMM force find it there. Before it is kept it is held to the uncompiled call. A new
    version of torch or of egnn-md, or another kind of processor, needs a new one.

    Example:  egnn-md compile organic-xtb

    and then  egnn-md md aspirin.xyz --steps 100000

    or with   egnn-md compile my-model.safetensors --dtype float64
    """
    precision = parse_dtype(dtype)
    check_device(device)
    import torch

    from egnn_md import checkpoint
    from egnn_md.compiled import forces, store
    from egnn_md.compiled.package import CompilationError
    from egnn_md.models.potential import Potential

    potential = checkpoint.load(model, device=device, dtype=precision)
    if not isinstance(potential, Potential):
        raise UserError(f"{model} is a {type(potential).__name__}; only force calls of potentials are compiled")
    torch.set_num_threads(1)
    try:
        found = {} if overwrite else forces.find(potential)
        made: dict[str, Any] = {"packages": {}}
        if len(found) < len(forces.forms_of(potential)):
            made = forces.compile_forces(potential, say, without=found)
        packages = found | made["packages"]
        speed = _speed(potential, forces.CompiledCall(potential, packages))
    except (CompilationError, store.UntrustedStore) as error:
        raise UserError(str(error)) from error
    made["packages"] = {form: str(path) for form, path in packages.items()}
    values = {"model": model, "dtype": dtype, "device": device, "made": "seconds" in made, **made, **speed}
    return Outcome(values, lambda: _show(values), as_json)


def _speed(model: Any, compiled: Any) -> dict[str, float]:
    """Milliseconds of one thread's time for a force call of 20 atoms, eager and compiled: the best of some."""
    import torch

    from egnn_md.compiled.forces import example

    inputs = example(model, 20)
    seconds: dict[str, list[float]] = {"eager_ms": [], "compiled_ms": []}
    with torch.no_grad():
        for _ in range(20):
            for name, call in (("eager_ms", model.local_call), ("compiled_ms", compiled)):
                began = time.thread_time()
                call(*inputs)
                seconds[name].append(time.thread_time() - began)
    return {name: 1e3 * min(values) for name, values in seconds.items()}


def _show(values: dict[str, Any]) -> None:
    for form, path in values["packages"].items():
        print(f"{form} structures: {path}" if len(values["packages"]) > 1 else path)
    if values["made"]:
        print(f"made in {values['seconds']:.0f} s")
        print(f"differs from the eager call by {values['difference']:.0e} (tolerance {values['tolerance']:.0e})")
    else:
        print("there already (--overwrite makes it anew)")
    ratio = values["eager_ms"] / values["compiled_ms"]
    print(
        f"a force call of 20 atoms, {values['dtype']}: {values['compiled_ms']:.2f} ms instead of "
        f"{values['eager_ms']:.2f} ms ({ratio:.1f} x)"
    )
