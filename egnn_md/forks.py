"""Children of a fork (multiprocessing's default pools on Linux before Python 3.14) must not wait for threads that only
their parent has.

OpenMP's threads do not survive a fork: torch's next parallel loop in the child would wait for them for ever.
"""

from __future__ import annotations

import os
from functools import cache


@cache
def survive_forks() -> None:
    """From now on a forked child of this process computes on one thread."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_one_thread)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
