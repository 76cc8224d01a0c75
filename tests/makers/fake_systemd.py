"""Systemd's end of a service's messages."""

from __future__ import annotations

import socket


class Manager:
    """A socket at a path, or with "@" at a name without a file."""

    def __init__(self, place: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + place[1:] if place.startswith("@") else place)

    def heard(self, seconds: float = 20.0) -> list[str]:
        """The lines of the next datagram."""
        self._socket.settimeout(seconds)
        return self._socket.recv(4096).decode().split("\n")

    def close(self) -> None:
        self._socket.close()
