"""Freed memory is kept, unless the user has chosen otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from egnn_md.memory import SWITCH

CLEAN = {
    name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_")) and name != SWITCH
}
WORK = """
import resource
import torch
from egnn_md.memory import keep_freed_memory

kept = keep_freed_memory()
def work():
    for _ in range(3):
        torch.ones(4, 1000, 1000)  # 16 MB, some 4,000 pages
for _ in range(5):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**environment: str) -> tuple[str, int]:
    """Whether memory is kept, and page faults of the work."""
    command = [sys.executable, "-c", WORK]
    done = subprocess.run(command, env=CLEAN | environment, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_memory_is_kept_for_the_next_call() -> None:
    kept, faults = run()
    assert kept == "True"
    assert faults < 10_000  # of 120,000


@pytest.mark.parametrize(
    "environment",
    [{SWITCH: "0"}, {"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}],
)
def test_the_environment_decides(environment: dict[str, str]) -> None:
    kept, _ = run(**environment)
    assert kept == "False"


def test_loading_a_model_leaves_the_allocator_alone_and_the_command_line_does_not() -> None:
    """What the process does with its memory is the program's choice, not the library's."""
    code = """
from egnn_md import load, shipped_models
from egnn_md.calculators import EGNNCalculator
from egnn_md.memory import keep_freed_memory
for name in shipped_models():
    load(name)
if "organic-xtb" in shipped_models():
    EGNNCalculator("organic-xtb")
import egnn_md.cli
before = keep_freed_memory.cache_info().currsize
egnn_md.cli.main(["models", "--json"])
print(before, keep_freed_memory.cache_info().currsize)
"""
    done = subprocess.run([sys.executable, "-c", code], env=CLEAN, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 1"
