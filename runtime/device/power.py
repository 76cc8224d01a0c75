"""How a machine's power is set: a Jetson's mode, the governor, cores online. Nothing is set here.

Sources: NVIDIA Jetson Linux Developer Guide, "Power Mode Control"; Linux' admin-guide/pm/cpufreq
and Documentation/ABI/testing/sysfs-devices-system-cpu.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tel_edge.runtime.device.system import System

# Jetson's program, and the line of its answer that has the mode's name.
PROGRAM = ("nvpmodel", "-q")
LINE = re.compile(r"NV Power Mode:[ \t]*(\S.*)")
# It answers at once or hangs on its driver. How often it is asked, and when again after it hung.
SECONDS, EVERY, LATER = 5.0, 30.0, 600.0
CORES = "sys/devices/system/cpu"


@dataclass(frozen=True)
class Power:
    """A Jetson's mode, such as "15W", the governor and how many cores are online; None if unknown.

    Where groups of cores have several governors their names are joined by "+".
    """

    mode: str | None = None
    governor: str | None = None
    online: int | None = None

    @property
    def key(self) -> str:
        """Return what settings were measured under, in words.

        Empty where neither mode nor governor is known: the machine's own name has its cores.
        """
        if self.mode is None and self.governor is None:
            return ""
        cores = None if self.online is None else f"{self.online} cores online"
        return ", ".join(part for part in (self.mode, self.governor, cores) if part)


def now(system: System | None = None) -> Power:
    """Return how power is set, the program asked."""
    system = system or System()
    return Power(mode(system), governor(system), online(system))


def mode(system: System | None = None) -> str | None:
    """Return the name of a Jetson's power mode.

    None where there is no `nvpmodel`, or where it fails, says no mode or does not end in time.
    """
    said = (system or System()).said(*PROGRAM, seconds=SECONDS)
    found = LINE.search(said or "")
    return found[1].strip() if found else None


def governor(system: System) -> str | None:
    """Return what decides the clock rates, None where nothing says."""
    files = system.found(f"{CORES}/cpufreq/policy*/scaling_governor")
    names = {name for file in files if (name := system.text(file))}
    return "+".join(sorted(names)) or None


def online(system: System) -> int | None:
    """Return how many cores are online."""
    return count(system.text(f"{CORES}/online"))


def count(text: str | None) -> int | None:
    """Return how many a list such as "0-3,5" names; None for what is no such list."""
    total = 0
    for part in (text or "").split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            return None
        total += int(last or first) - int(first) + 1
    return total


class Watch:
    """What `now` says, with the program asked seldom; several threads may ask.

    A program that hung is left alone for a while, and one that says nothing has not said that the
    mode is another: what it said last stands.
    """

    def __init__(
        self, system: System | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._system, self._clock = system or System(), clock
        self._lock = threading.Lock()
        self._mode: str | None = None
        self._next = -math.inf
        self._noted: Power | None = None

    def now(self) -> Power:
        """Return how power is set, the mode as of at most `EVERY` seconds ago."""
        with self._lock:
            began = self._clock()
            if began >= self._next:
                self._mode = mode(self._system) or self._mode
                ended = self._clock()
                self._next = ended + (LATER if ended - began >= SECONDS else EVERY)
            return Power(self._mode, governor(self._system), online(self._system))

    def change(self) -> str | None:
        """Return what there is to say once of a change since this was asked last, None if none."""
        before, self._noted = self._noted, self.now()
        if before is None or before.key == self._noted.key:
            return None
        return (
            f"warning: the device's power is now {self._noted.key or 'unknown'}, it was "
            f"{before.key or 'unknown'}; settings stay those of before until the next start"
        )


@contextmanager
def told(watch: Watch, say: Callable[[str], None], every: float = EVERY) -> Iterator[None]:
    """Have each change of the power said once, as long as the context lasts."""
    ended = threading.Event()

    def look() -> None:
        # Beside everything else: a program that hangs holds nobody up.
        while True:
            if said := watch.change():
                say(said)
            if ended.wait(every):
                return

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
