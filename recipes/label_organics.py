"""GFN2-xTB labels of molecules, ions and contacts of 18 elements: what `egnn-xtb` learns from."""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter
from pathlib import Path

import numpy as np
from _gfn2 import Dropped, Frame, write_frames
from _kinds import KINDS, Source
from _merge import merge

CYCLE = (
    "ions small thermal contacts torsions states ionic bound clusters distortions metals thermal relabelled test "
    "contacts droplets torsions metals thermal collisions peptides testframes contacts states clusters torsions "
    "thermal ligands test "
).split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--molecules", type=Path, required=True)
    parser.add_argument("--conformations", type=Path, required=True)
    parser.add_argument("--frames", type=Path, required=True)
    parser.add_argument("--exclude", type=Path)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=CYCLE)
    options = parser.parse_args()
    parts = options.out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    source = Source(options)
    merged = stop = time.monotonic()
    stop += 3600 * options.hours
    for kind in itertools.cycle(options.kinds):
        if time.monotonic() > stop:
            break
        label_chunk(parts, kind, options.seed, source)
        if time.monotonic() > merged + 480:
            merge(options.out)
            merged = time.monotonic()
    merge(options.out)


def label_chunk(parts: Path, kind: str, seed: int, source: Source) -> None:
    """The first chunk of a kind that is not there yet; what it holds depends on kind, seed and number only."""
    paths = (parts / f"{kind}-{seed}-{chunk:04d}.npz" for chunk in itertools.count())
    chunk, path = next((chunk, path) for chunk, path in enumerate(paths) if not path.exists())
    jobs, size = KINDS[kind]
    rng = np.random.default_rng([seed, chunk, *kind.encode()])
    frames: list[Frame] = []
    dropped: Counter[str] = Counter()
    start = time.process_time()
    for job in jobs(source, rng, chunk):
        try:
            for item in job():
                if isinstance(item, Dropped):
                    dropped[str(item)] += 1
                else:
                    frames.append(item)
        except Dropped as reason:
            dropped[str(reason)] += 1
        if len(frames) >= size:
            break
    if frames:
        write_frames(path, frames, dropped)
    print(f"{path.name} {len(frames)} frames, {time.process_time() - start:.0f} s, {dict(dropped)}", flush=True)


if __name__ == "__main__":
    main()
