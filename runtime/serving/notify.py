"""What systemd is told of the service: a datagram to the socket that it names, nothing elsewhere.

Sources: sd_notify(3), sd_watchdog_enabled(3), systemd.service(5).
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable

from tel_edge.runtime.serving.link import Link
from tel_edge.runtime.serving.problems import Failed

READY, STOPPING, ALIVE = "READY=1", "STOPPING=1", "WATCHDOG=1"
# Of the time in which systemd wants to hear something: how often it does, and how long the engine's
# process may take to say how it is.
OFTEN = 4
# Seconds in which an engine's process opens its bundle, before something is wrong.
OPENING = 600.0


def notify(*lines: str) -> bool:
    """Tell systemd something; return whether anybody could be told."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place or not hasattr(socket, "AF_UNIX"):
        return False
    # A name without a file begins with a NUL, which variables cannot hold.
    address = "\0" + place[1:] if place.startswith("@") else place
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        # A manager that does not read holds nothing up.
        out.setblocking(False)
        try:
            out.sendto("\n".join(lines).encode(), address)
        except OSError:
            return False
    return True


def reloading() -> bool:
    """Tell that the bundle is exchanged; `READY` has to follow."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog() -> float | None:
    """Return the seconds after which systemd ends a service that says nothing, None without one."""
    own = os.environ.get("WATCHDOG_PID")
    if own not in (None, str(os.getpid())):
        return None
    try:
        seconds = int(os.environ.get("WATCHDOG_USEC", "")) / 1e6
    except ValueError:
        return None
    return seconds if seconds > 0 else None


class Health:
    """Whether the engine computes: all that is begun has an end within `limit` seconds."""

    def __init__(
        self, link: Link, limit: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._link, self._limit, self._clock = link, limit, clock
        self._opening: float | None = None

    async def well(self) -> bool:
        """Ask the engine's process; one that is being opened has time for that."""
        if self._link.info is None:
            self._opening = self._clock() if self._opening is None else self._opening
            return self._clock() - self._opening < OPENING
        self._opening = None
        try:
            async with asyncio.timeout(self._limit / OFTEN):
                stats = await self._link.ask({"op": "stats"})
        except Failed:
            # Between two processes; the next time there is one or it is being opened.
            return True
        except TimeoutError:
            # Whoever checks a new bundle's files answers nothing else meanwhile.
            return self._link.reloading
        return float(stats.get("still_seconds", 0.0)) < self._limit


async def feed(link: Link) -> None:
    """Tell systemd again and again that all is well, as long as it is, if it wants to hear that."""
    if (seconds := watchdog()) is None:
        return
    health = Health(link, seconds)
    while True:
        if await health.well():
            notify(ALIVE)
        await asyncio.sleep(seconds / OFTEN)
