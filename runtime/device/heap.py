"""The C library's heap: large blocks that are freed stay with the process, or go back when asked.

Source: mallopt(3) and malloc_trim(3); the numbers of the parameters are those of glibc's malloc.h.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from tel_edge.runtime.device import facts
from tel_edge.runtime.device.system import System

# M_TRIM_THRESHOLD and M_TOP_PAD in bytes, M_MMAP_MAX in blocks.
KEPT = {-1: 2_000_000_000, -2: 256_000_000, -4: 0}
# Resident bytes above which `give_back` gives.
HELD = 2_500_000_000


def keep() -> None:
    """Let this process keep large blocks that it frees, for those that it asks for next.

    By default glibc maps most blocks of megabytes anew, so that the system fills their pages with
    zeros at every operation of torch. Does nothing on other systems, and where the environment
    already says how memory is got.
    """
    said = os.environ.get("GLIBC_TUNABLES", ""), *(n for n in os.environ if n.startswith("MALLOC_"))
    mallopt = _function("mallopt")
    if mallopt is None or any("malloc" in one.lower() for one in said):
        return
    for parameter, value in KEPT.items():
        mallopt(parameter, value)


def give_back() -> None:
    """Give free memory back to the system if much is held, and more than others have left."""
    counts = Path("/proc/self/statm")
    if not counts.exists():
        return
    resident = int(counts.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if resident <= HELD:
        return
    free = facts.memory(System()).free
    trim = _function("malloc_trim")
    if trim is not None and (free is None or free < resident):
        trim(0)


def _function(name: str) -> ctypes._NamedFuncPointer | None:
    """Return a function of the C library, None where it has none of this name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
