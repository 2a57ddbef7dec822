"""Do time and memory grow linearly? One force call on periodic liquid water of 3,000 and of 12,000 atoms.

Each size runs in its own process, through the ase calculator, in float32. Time: the median of several calls, the atoms
moved a little in between so that the list holds (the first call, which builds it, is given apart); the processor's time
beside it, which other programs on the machine disturb less. Memory: the peak of the process beyond what it held before
the first call; freed memory is kept for the next call, as `egnn-md` does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import calculator, make_parser, print_table, write_json
from _liquids import lattice

STEP = 0.003  # Å
SHAPES = {24: (2, 2, 2), 81: (3, 3, 3), 3000: (10, 10, 10), 12000: (20, 20, 10)}
"""Molecules of water along each side, by number of atoms."""


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(options: Namespace) -> dict[str, float]:
    """Time and memory of force calls on `options.child` atoms, in this process."""
    import torch

    from egnn_md.memory import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(options.threads)
    engine, rng = calculator(options.model, "float32", compiled=options.compile), np.random.default_rng(0)
    warm = lattice("H2O", (2, 2, 2))
    warm.calc = engine
    warm.get_forces()
    atoms = lattice("H2O", SHAPES[options.child])
    start, before = atoms.positions.copy(), peak_memory()
    seconds, cpu_seconds = [], []
    atoms.calc = engine
    for _ in range(options.calls + 1):
        atoms.positions = start + STEP * rng.normal(size=start.shape)
        began, cpu_began = time.perf_counter(), time.process_time()
        atoms.get_forces()
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - cpu_began)
    return {
        "n_atoms": len(atoms),
        "first_call": seconds[0],
        "seconds": float(np.median(seconds[1:])),
        "cpu_seconds": float(np.median(cpu_seconds[1:])),
        "bytes": float(peak_memory() - before),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__ or "", data=False)
    parser.add_argument("--sizes", type=int, nargs="+", choices=sorted(SHAPES), default=[3000, 12000], help="atoms")
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compiled force calls, made first if need be")
    parser.add_argument("--child", type=int, choices=sorted(SHAPES), help="measure this size here and print JSON")
    options = parser.parse_args(arguments)
    if options.child:
        figures = measure(options)
        print(json.dumps(figures))
        return figures
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # the same package, found alike
    rows = []
    for size in options.sizes:
        command = [sys.executable, str(Path(__file__).resolve()), "--model", options.model, "--child", str(size)]
        command += ["--calls", str(options.calls), "--threads", str(options.threads)]
        command += ["--compile"] * options.compile
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
        rows.append(json.loads(answer.splitlines()[-1]))
    small, large = rows[0], rows[-1]
    print_table(
        "Periodic liquid water, one force call",
        ("atoms", "first call s", "call s", "CPU s", "µs per atom", "peak MiB", "KiB per atom"),
        [
            (row["n_atoms"], row["first_call"], row["seconds"], row["cpu_seconds"],
             1e6 * row["seconds"] / row["n_atoms"], row["bytes"] / 2**20, row["bytes"] / row["n_atoms"] / 2**10)
            for row in rows
        ],
    )  # fmt: skip
    result = {
        "sizes": rows,
        "time_ratio": large["seconds"] / small["seconds"],
        "cpu_ratio": large["cpu_seconds"] / small["cpu_seconds"],
        "memory_ratio": large["bytes"] / max(small["bytes"], 1.0),
        "atoms_ratio": large["n_atoms"] / small["n_atoms"],
    }
    print("\n{atoms_ratio:.3g} times the atoms cost {time_ratio:.3g} times the time, {cpu_ratio:.3g} times the "
          "processor's time and {memory_ratio:.3g} times the memory".format_map(result))  # fmt: skip
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
