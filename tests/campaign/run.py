"""Try to break it: `python tests/campaign/run.py [--minutes 5] [--seed N] [part …]`, or `make campaign MINUTES=600`.

Each part prints what it did and what it found; the exit code is 1 if anything broke. With the same seed and a part's
number a case comes back. Parts: readers, bombs, kills, disks, read-only, company, hostile, cells, refusals,
soak.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "jobs"))  # its teachers cost nothing
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import physics
import readers
import runs
import soak
from harness import Tally

only = ""
"""What the names of the verbs hold that are killed."""
Part = Callable[[Path, float, int], list[Tally]]
PARTS: dict[str, tuple[float, Part]] = {
    # name: (share of the time, function of a folder, seconds and seed)
    "readers": (0.4, lambda folder, seconds, seed: readers.run(folder, seconds, seed)),
    "bombs": (0.0, lambda folder, seconds, seed: [readers.bombs(folder)]),
    "kills": (0.3, lambda folder, seconds, seed: [runs.kills(folder, seconds, seed, only)]),
    "disks": (0.1, lambda folder, seconds, seed: [runs.full_disks(folder, seconds, seed)]),
    "read-only": (0.0, lambda folder, seconds, seed: [runs.read_only(folder)]),
    "company": (0.0, lambda folder, seconds, seed: [runs.company(folder)]),
    "hostile": (0.0, lambda folder, seconds, seed: [runs.hostile(folder)]),
    "cells": (0.1, lambda folder, seconds, seed: [physics.cells(seconds, seed)]),
    "refusals": (0.02, lambda folder, seconds, seed: [physics.refusals(seconds, seed)]),
    "soak": (0.08, lambda folder, seconds, seed: [soak.soak(folder, seconds, seed)]),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--minutes", type=float, default=5.0, help="for the parts that can go on for ever")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the time, if not given")
    parser.add_argument("--only", default="", help="kills: of verbs with this in their names (distill, workers)")
    arguments = parser.parse_args()
    global only
    only = arguments.only
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"unknown parts {', '.join(sorted(unknown))}")
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import lightning  # noqa: F401  (forks have it at once)
    import mdtraj  # noqa: F401
    import openmm  # noqa: F401

    chosen = arguments.parts or list(PARTS)
    shares = sum(PARTS[name][0] for name in chosen) or 1.0
    tallies = []
    print(f"seed {arguments.seed}, {arguments.minutes:g} minutes", flush=True)
    for name in chosen:
        share, part = PARTS[name]
        with tempfile.TemporaryDirectory(prefix="egnn-md-campaign-") as folder:
            tallies += part(Path(folder), 60.0 * arguments.minutes * share / shares, arguments.seed)
    broken = sum(sum(map(len, tally.faults.values())) for tally in tallies)
    print(f"{sum(tally.counts.total() for tally in tallies)} tries, {broken} faults")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
