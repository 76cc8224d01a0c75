"""Memory of this process, in bytes, anonymous and file-backed apart.

Source: Linux `proc(5)`, /proc/PID/smaps_rollup and /proc/PID/status. Elsewhere only the peak is
known.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """`anonymous` is this process's own; `file` is mapped files, which the system may drop.

    `peak` is the largest resident size so far, mapped files counted in, 0 where it is not known.
    """

    anonymous: int | None
    file: int | None
    peak: int


def now() -> Memory:
    """Read the counters. Fields that this system does not give are None."""
    rollup, status = Path("/proc/self/smaps_rollup"), Path("/proc/self/status")
    if not rollup.exists():
        try:
            import resource
        except ImportError:
            # Windows has no such module, and nothing asks it in another way: 0 is unknown.
            return Memory(None, None, 0)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Memory(None, None, peak if sys.platform == "darwin" else peak * 1024)
    parts = _kilobytes(rollup.read_text())
    peak = _kilobytes(status.read_text())["VmHWM"]
    anonymous = parts["Anonymous"]
    return Memory(anonymous, parts["Rss"] - anonymous, peak)


def _kilobytes(text: str) -> dict[str, int]:
    return {
        name: int(value) * 1024 for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.M)
    }
