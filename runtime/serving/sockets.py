"""Connections that ask for nothing: closed after a while, so that they keep no place from others.

uvicorn 0.54 gives a connection any time for its first request, and for the rest of a head that has
begun (`uvicorn/protocols/http/h11_impl.py`); its limit of connections answers honest clients with
503 while idle ones hold the places.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

# Seconds for the head of a request, connections at a time, bytes of a head.
HEAD_SECONDS, MOST_CONNECTIONS, MOST_HEAD = 10.0, 512, 1 << 14


class Protocol(H11Protocol):
    """One connection. Of too many the one that has asked for nothing for the longest is closed."""

    _late: asyncio.TimerHandle | None = None
    _since = 0.0

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._watch()
        idle = [one for one in self.connections if isinstance(one, Protocol) and one.waits]
        if len(self.connections) > MOST_CONNECTIONS and idle:
            min(idle, key=lambda one: one._since).transport.close()

    @property
    def waits(self) -> bool:
        """Return whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Read on; a head that is not whole has the time that one has, however it comes."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        if self._late:
            self._late.cancel()

    def _watch(self) -> None:
        if not self.waits and self._late:
            self._since = self.loop.time()
            self._late.cancel()
            self._late = None
        elif self.waits and self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(HEAD_SECONDS, self._close)

    def _close(self) -> None:
        self._late = None
        if self.waits:
            self.transport.close()
