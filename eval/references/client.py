"""JSON requests to a server, sent again where they fail for the moment."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from tel_edge.runtime.errors import InputError, WorkError

# What a server answers for a path that it has not.
NO_PATH = (404, 405, 501)
MOST_BYTES = 1 << 26
LONGEST_PAUSE = 60.0


class Refused(InputError):
    """The server refused a request for good; `status` is that of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Transient(Exception):
    """A request that may go well the next time; `pause` is what the server asks for, in seconds."""

    def __init__(self, text: str, pause: float = 0.0) -> None:
        super().__init__(text)
        self.pause = pause


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows none: the key would be sent along to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class Client:
    """Requests to one server. `base` is the URL that ends in `/v1`, `key` is sent as bearer.

    `option` is what `base` was given by, `variable` where the key is from.

    A request that fails for the moment (429, 5xx, no connection, longer than `timeout` seconds) is
    sent up to `attempts` times, with pauses that double from `pause` seconds on.
    """

    base: str
    key: str = field(default="", repr=False)
    timeout: float = 300.0
    attempts: int = 6
    pause: float = 1.0
    option: str = "--reference"
    variable: str = "TEL_API_KEY"

    def __post_init__(self) -> None:
        """Raise `InputError` for what is no URL, or one that holds more than it should."""
        try:
            parts = urlsplit(self.base)
            _ = parts.port
        except ValueError as error:
            raise InputError(f"{self.option} {self.base}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"{self.option} {self.base}: no http:// or https:// URL of a server")
        if parts.username or parts.password:
            raise InputError(
                f"{self.option}: no user or password in the URL; set {self.variable} instead"
            )
        if parts.query or parts.fragment:
            raise InputError(
                f"{self.option}: the URL that ends in /v1 is needed, nothing behind it"
            )
        if not (self.key.isascii() and self.key.isprintable()):
            raise InputError(f"{self.variable} holds characters that no header can")

    @property
    def local(self) -> bool:
        """Return whether the server is on this machine."""
        host = urlsplit(self.base).hostname or ""
        return host in ("localhost", "::1") or host.startswith("127.")

    def models(self) -> list[str]:
        """Return the names of the server's models."""
        try:
            document = self.request("/models")
        except Refused as error:
            if error.status not in NO_PATH:
                raise
            raise InputError(f"{error}; is this the URL that ends in /v1?") from None
        listed = document.get("data")
        rows = listed if isinstance(listed, list) else []
        return [str(row["id"]) for row in rows if isinstance(row, dict) and row.get("id")]

    def request(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the reply to a POST of `body`, or to a GET without one.

        Raises `Refused` where the server does not want the request, `WorkError` where it cannot be
        reached or fails time after time.
        """
        for attempt in range(self.attempts):
            try:
                return self._once(path, body)
            except _Transient as error:
                failure = error
            if attempt + 1 < self.attempts:
                time.sleep(min(LONGEST_PAUSE, max(failure.pause, self.pause * 2**attempt)))
        raise WorkError(
            f"{self.base}{path}: {failure} ({self.attempts} attempts); what was done is kept, "
            "run the same command to go on"
        )

    def _once(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        where = f"{self.base.rstrip('/')}{path}"
        headers = {"Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(where, data, headers)
        # A proxy of the environment is for other machines.
        proxies = [urllib.request.ProxyHandler({})] if self.local else []
        opener = urllib.request.build_opener(_NoRedirect, *proxies)
        try:
            with opener.open(request, timeout=self.timeout) as reply:
                text = reply.read(MOST_BYTES)
        except urllib.error.HTTPError as error:
            raise self._failure(where, error) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise _Transient(self._hidden(str(reason) or type(error).__name__)) from None
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise InputError(f"{where}: no JSON object comes back; is this the URL ending in /v1?")
        return document

    def _failure(self, where: str, error: urllib.error.HTTPError) -> Exception:
        said = self._hidden(_message(error))
        if error.code == 429 or (error.code >= 500 and error.code not in NO_PATH):
            after = error.headers.get("Retry-After", "")
            return _Transient(f"{error.code} {said}", float(after) if after.isdigit() else 0.0)
        if error.code in (401, 403):
            said = f"{said}; set {self.variable} to a key of this server"
        return Refused(error.code, f"{where}: {error.code} {said}")

    def _hidden(self, text: str) -> str:
        """Return one line of at most 300 characters without the key, which servers like to echo."""
        line = " ".join(text.split())
        return (line.replace(self.key, "***") if self.key else line)[:300]


def connect(base: str, option: str, say: Callable[[str], None]) -> Client:
    """Return the client of a URL, with the key of the environment.

    OPENAI_API_KEY, which is there for other programs, is never sent unencrypted to other machines;
    TEL_API_KEY is, and `say` is told a warning.
    """
    server = Client(base.rstrip("/"), option=option)
    secret = server.local or server.base.startswith("https:")
    key = os.environ.get("TEL_API_KEY", "").strip()
    if key and not secret:
        say(f"warning: TEL_API_KEY goes to {server.base} unencrypted; use https")
    if not key and secret:
        key = os.environ.get("OPENAI_API_KEY", "").strip()
    return replace(server, key=key)


def _message(error: urllib.error.HTTPError) -> str:
    """Return what the server says of an error: the message inside its JSON, else its reason."""
    try:
        with error:
            said = json.loads(error.read(MOST_BYTES))
        said = said.get("error", said) if isinstance(said, dict) else said
        said = said.get("message", said) if isinstance(said, dict) else said
        return str(said)
    except (ValueError, RecursionError, OSError, http.client.HTTPException):
        return str(error.reason)
