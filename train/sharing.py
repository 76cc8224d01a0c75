"""How many threads a training computes with while other processes want the cores too.

Threads wait for each other at the end of every product. One whose core another process has holds
up all of them, thousands of times a step: on two cores two threads are then four times slower than
one (docs/training.md).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

# Seconds between two looks at the cores.
LOOK = 0.5
# Cores in use by others from which on a thread is given up, and below which it is taken back: a
# process that never waits has at least a third of a core beside as many threads as there are cores.
GIVEN_UP, TAKEN_BACK = 0.35, 0.2


@dataclass(frozen=True)
class Reading:
    """Seconds since some start: of the clock, of all cores' work and of this process's alone."""

    clock: float
    busy: float
    own: float


def reading() -> Reading:
    """Read the cores that this process may use; work of a hypervisor's other guests counts."""
    import psutil

    cores = psutil.cpu_times(percpu=True)
    if hasattr(os, "sched_getaffinity"):
        mine = os.sched_getaffinity(0)
        cores = [times for at, times in enumerate(cores) if at in mine]
    # Guests' time is part of the user's, and what waits for a disk is free for others.
    idle = ("idle", "iowait", "guest", "guest_nice")
    busy = sum(
        value for times in cores for name, value in times._asdict().items() if name not in idle
    )
    own = os.times()
    return Reading(time.monotonic(), busy, own.user + own.system)


class Share:
    """Says how many of `most` threads have a core for themselves, by looking every half second.

    One is given up at once and taken back after two looks in a row.
    """

    def __init__(self, most: int, cores: int, read: Callable[[], Reading] = reading) -> None:
        self.most, self.cores, self.threads = most, cores, most
        self._read, self._before, self._free = read, read(), 0

    def look(self) -> int:
        """Return the number of threads from now on."""
        now = self._read()
        passed = now.clock - self._before.clock
        if passed < LOOK:
            return self.threads
        others = (now.busy - self._before.busy - now.own + self._before.own) / passed
        self._before = now
        least, more = self._left(others - GIVEN_UP), self._left(others - TAKEN_BACK)
        self._free = self._free + 1 if more > self.threads else 0
        if least < self.threads:
            self.threads = least
        elif self._free > 1:
            self.threads, self._free = more, 0
        return self.threads

    def _left(self, others: float) -> int:
        return min(self.most, max(1, self.cores - math.ceil(max(0.0, others))))
