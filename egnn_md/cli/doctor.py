"""`egnn-md doctor`: what is installed here, and whether it works."""

from __future__ import annotations

import os
import platform
import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from egnn_md.cli.options import Json
from egnn_md.cli.outcome import Outcome, table, verb

DTYPES: Final = ("float32", "float64")
NEEDED: Final = ("torch", "numpy", "ase", "vesin", "safetensors", "openmm", "mdtraj")
EXTRAS: Final = {
    # package: what it is for
    "lightning": "training: pip install 'egnn-md[train]'",
    "openmmml": "MLPotential: pip install 'egnn-md[openmm]'",
    "tables": "h5 trajectories: pip install 'egnn-md[hdf5]'",
    "rdkit": "SMILES: pip install rdkit",
}
COMPILERS: Final = ("g++", "clang++", "c++")
CALLS: Final = 20
LARGEST_ERROR: Final = 1e-4
"""eV/Å, of forces beside finite differences of the energy."""


@verb
def doctor(as_json: Json = False) -> Outcome:
    """Say what is installed here, and test that it works: ten seconds. Put its output into reports of problems.

    Example:  egnn-md doctor
    """
    values = {"packages": _packages(), **_machine(), "self_test": _self_test()}
    healthy = values["self_test"]["passed"]
    return Outcome(values, lambda: table("", ["", ""], _rows(values)), as_json, code=0 if healthy else 1)


def _packages() -> dict[str, str | None]:
    """Versions; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("egnn-md", *NEEDED, *EXTRAS):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _machine() -> dict[str, Any]:
    import torch

    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return {
        "compiled_calls": _store(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "compiler": compiler,
        "gpus": gpus,
    }


def _store() -> dict[str, Any]:
    """Where compiled force calls are kept, and whether the shipped potential's is among them, by precision."""
    from egnn_md.checkpoint import load
    from egnn_md.compiled import forces, store

    try:
        kept = {name: bool(forces.find(load("organic-xtb", dtype=name))) for name in DTYPES}
        return {"folder": str(store.store_folder()), "organic_xtb": kept}
    except (store.UntrustedStore, ValueError) as problem:
        return {"folder": None, "problem": str(problem)}


def _self_test() -> dict[str, Any]:
    """The shipped potential on ethanol: forces beside finite differences, time of a call."""
    import numpy as np
    from ase.build import molecule

    from egnn_md.calculators import EGNNCalculator

    try:
        atoms = molecule("CH3CH2OH")
        atoms.calc = EGNNCalculator("organic-xtb")
        force, step = atoms.get_forces()[2, 0], 1e-3
        energies = []
        for shift in (-step, step):
            moved = atoms.copy()
            moved.positions[2, 0] += shift
            moved.calc = atoms.calc
            energies.append(moved.get_potential_energy())
        error = abs(force + (energies[1] - energies[0]) / (2 * step))
        seconds = []
        for k in range(CALLS):
            atoms.positions += 1e-4 * (-1) ** k
            start = time.perf_counter()
            atoms.get_forces()
            seconds.append(time.perf_counter() - start)
        milliseconds = 1e3 * min(seconds)  # the others were disturbed
    except Exception as problem:  # whatever it is, that is the finding
        return {"passed": False, "problem": f"{type(problem).__name__}: {problem}"}
    passed = bool(np.isfinite(error) and error < LARGEST_ERROR)
    return {"passed": passed, "force_error_eV_per_A": float(error), "ms_per_call": milliseconds, "n_atoms": len(atoms)}


def _rows(values: dict[str, Any]) -> list[list[str]]:
    rows = [[n, found or f"not installed ({EXTRAS.get(n, 'needed')})"] for n, found in values["packages"].items()]
    cores = f"{values['cores']} cores, torch uses {values['torch_threads']} threads"
    rows.append(["system", f"{values['system']}, {cores}"])
    rows.append(["C++ compiler", values["compiler"] or "none: training and force calls cannot be compiled"])
    rows.append(["compiled calls", _told(values["compiled_calls"])])
    rows.append(["GPU", ", ".join(values["gpus"]) or "none that torch sees: everything runs on the CPU"])
    test = values["self_test"]
    if "problem" in test:
        rows.append(["self-test", f"FAILED: {test['problem']}"])
    else:
        text = f"forces within {test['force_error_eV_per_A']:.1e} eV/Å of finite differences, "
        text += f"{test['ms_per_call']:.1f} ms a call ({test['n_atoms']} atoms, float64)"
        rows.append(["self-test", ("passed: " if test["passed"] else "FAILED: ") + text])
    return rows


def _told(compiled: dict[str, Any]) -> str:
    if "problem" in compiled:
        return f"none: {compiled['problem']}"
    kept = [name for name, known in compiled["organic_xtb"].items() if known]
    what = f"organic-xtb in {', '.join(kept)}" if kept else "none of organic-xtb yet (egnn-md compile makes one)"
    return f"{what}; in {compiled['folder']}"
