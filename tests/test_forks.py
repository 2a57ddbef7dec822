"""A pool of forks after torch has used threads in the parent: torch alone would hang."""

import os
import subprocess
import sys

import pytest

POOL = """
import multiprocessing
import torch
from ase.build import molecule
from egnn_md.predict import Predictor

water, predictor = molecule("H2O"), Predictor("organic-xtb", compile=False)

def work(number):
    (torch.rand(300, 300) @ torch.rand(300, 300)).exp()
    torch.rand(2_000_000).exp_()  # in as many threads as there are
    return predictor(water.positions, water.numbers).energy

torch.set_num_threads(2)
parent = work(0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(work, range(2)).get(timeout=60) == [parent] * 2
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_forks_of_a_process_that_has_computed_do_not_hang() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", POOL], env=environment, timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]
