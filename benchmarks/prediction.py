"""`egnn-md predict` on real molecules: structures a second, memory at two lengths of the file, and a kill in between.

Writes --count molecules of --data's qm9.npz (over and over, if there are fewer) as an xyz file and predicts it in a
process of its own; then four times as many. The last run is killed on its way and resumed: every index must be there
once.

    python benchmarks/prediction.py --data DIR --threads 2
    python benchmarks/prediction.py --data DIR --threads 2 --count 250000      # a million in the longer file
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _common import RESERVED_INDEX, make_parser, parse, print_table, write_json

SYMBOLS = {1: "H", 6: "C", 7: "N", 8: "O"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, model="qm9")
    parser.add_argument("--count", type=int, default=5000, help="molecules in the shorter file")
    options = parse(parser, arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = []
        for count in (options.count, 4 * options.count):
            write_molecules(options.data / "qm9.npz", folder / f"{count}.xyz", count)
            summary, peak = predict(folder / f"{count}.xyz", options)
            rows.append([count, summary["structures_per_second"], summary["cpu_per_structure_ms"], peak])
        print_table(
            f"{options.model}, {options.threads} threads",
            ["structures", "a second", "processor ms each", "largest memory, MiB"],
            rows,
        )
        once = killed_and_resumed(folder / f"{4 * options.count}.xyz", 4 * options.count, options)
    print(f"\nkilled and resumed: {'every structure once' if once else 'STRUCTURES LOST OR DOUBLED'}")
    names = ("count", "structures_per_second", "cpu_ms", "peak_mib")
    write_json(options.json, {"runs": [dict(zip(names, row, strict=True)) for row in rows], "resume_exact": once})


def write_molecules(source: Path, target: Path, count: int) -> None:
    """The first `count` molecules without fluorine, over and over if they do not suffice."""
    with np.load(source) as archive:
        index, n_atoms = archive["index"], archive["n_atoms"].astype(int)
        numbers, positions = archive["atomic_numbers"].astype(int), archive["positions"]
    ends = np.cumsum(n_atoms)
    texts: list[str] = []
    for row in np.flatnonzero(index % 20 != RESERVED_INDEX):
        atoms = slice(ends[row] - n_atoms[row], ends[row])
        if len(texts) == count:
            break
        if set(numbers[atoms].tolist()) <= SYMBOLS.keys():
            lines = [
                f"{SYMBOLS[z]} {x:.6f} {y:.6f} {w:.6f}\n"
                for z, (x, y, w) in zip(numbers[atoms].tolist(), positions[atoms].tolist(), strict=True)
            ]
            texts.append(f"{len(lines)}\n\n{''.join(lines)}")
    with target.open("w") as file:
        for k in range(count):
            file.write(texts[k % len(texts)])


def command(source: Path, options: Any, *words: str) -> list[str]:
    output = ["-o", str(source.with_suffix(".csv")), "--model", options.model, "--threads", str(options.threads)]
    return [sys.executable, "-m", "egnn_md.cli", "predict", str(source), *output, "--json", *words]


def predict(source: Path, options: Any) -> tuple[dict[str, Any], float]:
    """The verb's summary, with processor time, and its largest memory, MiB."""
    process = subprocess.Popen(command(source, options, "--overwrite"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as printed:
        summary = json.loads(printed.read())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu = usage.ru_utime + usage.ru_stime
    return {**summary, "cpu_per_structure_ms": 1e3 * cpu / summary["n"]}, usage.ru_maxrss / 1024


def killed_and_resumed(source: Path, count: int, options: Any) -> bool:
    """Whether the indices of an output are all of them, once, after SIGKILL and the same command again."""
    parts = source.with_suffix(".csv.parts")
    source.with_suffix(".csv").unlink(missing_ok=True)
    process = subprocess.Popen(command(source, options), stdout=subprocess.DEVNULL)
    while process.poll() is None and sum(part.stat().st_size for part in parts.glob("*.jsonl*")) < 50_000:
        time.sleep(0.02)
    process.kill()
    process.wait()
    subprocess.run(command(source, options), check=True, stdout=subprocess.DEVNULL)
    with source.with_suffix(".csv").open() as file:
        next(file)
        return [int(line.split(",", 1)[0]) for line in file] == list(range(count))


if __name__ == "__main__":
    main()
