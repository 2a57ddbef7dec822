"""What does a call cost a program that starts anew for every step? `egnn-md-orca` and a server, beside a fresh process.

Each call is a process of its own, as ORCA starts it: files in, files out. The fresh process imports torch, loads the
model and answers once. An empty Python stands beside them: no client in Python costs less. Medians over calls, which
take turns: wall-clock times, which say little while something else runs on the machine, and CPU times of the caller,
without the server's few milliseconds.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from _common import make_parser, parse, print_table, write_json
from ase.build import molecule
from ase.io import write

FRESH = """
import sys
from ase.io import read
from egnn_md.calculators import EGNNCalculator
atoms = read(sys.argv[1])
atoms.calc = EGNNCalculator(sys.argv[2])
print(atoms.get_potential_energy(), atoms.get_forces().tolist())
"""
CLIENT = "import re, sys; from egnn_md.calculators.orca_client import main; main()"
"""What pip makes of `egnn-md-orca`."""


def seconds_of(command: Sequence[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall-clock and CPU time of a process."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, cpu


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__ or "", data=False)
    parser.add_argument("--molecule", default="CH3CH2OH", help="a name that ase.build knows")
    parser.add_argument("--calls", type=int, default=5, help="of each kind; the client's are ten times as many")
    options = parse(parser, arguments)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        socket = home / "egnn.sock"
        environment = {**os.environ, "EGNN_MD_SERVER": str(socket)}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        write(home / "job_EXT.xyz", molecule(options.molecule))
        (home / "job_EXT.extinp.tmp").write_text("job_EXT.xyz\n0\n1\n1\n1\n")
        fresh = [sys.executable, "-c", FRESH, str(home / "job_EXT.xyz"), options.model]
        client = [sys.executable, "-c", CLIENT, str(home / "job_EXT.extinp.tmp")]
        serve = ["serve", options.model, "--socket", str(socket)]
        command = [sys.executable, "-c", "from egnn_md.cli import main; main()", *serve]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            print(server.stderr.readline().strip(), flush=True)
            times: dict[str, list[tuple[float, float]]] = {"fresh": [], "client": [], "empty": []}
            empty = [sys.executable, "-c", "pass"]
            for _ in range(options.calls):
                times["fresh"].append(seconds_of(fresh, environment))
                for _ in range(10):
                    times["client"].append(seconds_of(client, environment))
                    times["empty"].append(seconds_of(empty, environment))
            server.terminate()
    medians = {kind: [median(column) for column in zip(*values, strict=True)] for kind, values in times.items()}
    ratio, cpu_ratio = (fresh / ours for fresh, ours in zip(medians["fresh"], medians["client"], strict=True))
    rows = [("fresh process", *medians["fresh"]), ("egnn-md-orca", *medians["client"]), ("ratio", ratio, cpu_ratio)]
    rows.append(("an empty Python", *medians["empty"]))
    print_table(f"one call, {options.molecule}", ("way", "seconds", "CPU seconds"), rows)
    result = {**medians, "ratio": ratio, "cpu_ratio": cpu_ratio}
    write_json(options.json, result)
    return result


if __name__ == "__main__":
    main()
