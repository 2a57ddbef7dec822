"""Keep freed memory for the next call.

glibc hands freed memory back to the system at once, and the next call of a network gets it again page by page, each
cleared by the kernel: up to half of the time of a call on a CPU (docs/decisions/0013-memory.md).
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from typing import Final

SWITCH: Final = "EGNN_MD_KEEP_MEMORY"
_KEPT: Final = {-1: 2**30, -4: 0}
"""mallopt's M_TRIM_THRESHOLD: bytes free at the top of the heap before they go back; M_MMAP_MAX: how many arrays may be
mapped by themselves, to be unmapped when they are freed. (M_MMAP_THRESHOLD ends at 32 MB: messages of 65,000 pairs.)"""


@cache
def keep_freed_memory() -> bool:
    """Ask the allocator of this process not to give memory back, once. True if it will do so.

    It stays as it is where the environment sets it up already (MALLOC_*_ or GLIBC_TUNABLES), with
    EGNN_MD_KEEP_MEMORY=0, and where the C library has no mallopt.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen or os.environ.get(SWITCH) == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    accepted = [mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in _KEPT.items()]
    return all(accepted)
