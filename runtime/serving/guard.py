"""Who may ask: clients with a key, under a name of this service, from no foreign page."""

from __future__ import annotations

import hmac
import stat
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.serving.http import problem
from tel_edge.runtime.serving.problems import FOREIGN, KEYLESS, Failed

# What has to be known without a key: whether the service is there, and the page that asks for one.
OPEN = (
    "/",
    *("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"),
    *("/ric/v1/health/alive", "/ric/v1/health/ready"),
)
SHORTEST = 16


def keys(file: Path) -> dict[str, bytes]:
    """Return the digests of a file's keys by name: lines NAME:KEY, `#` begins a comment.

    Raises `InputError` for a file that others may read, and for what is no key.
    """
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            raise InputError(f"--keys {file}: a file is needed")
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--keys {file}: {error}") from None
    if mode & 0o077:
        raise InputError(f"--keys {file}: others may read it; run: chmod 600 {file}")
    found: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, key = line.strip().partition(":")
        if not name or len(key) < SHORTEST or not key.isascii() or not key.isprintable():
            raise InputError(
                f"--keys {file}: line {number} is not NAME:KEY with at least {SHORTEST} characters "
                "of ASCII in the key"
            )
        if name in found:
            raise InputError(f"--keys {file}: line {number}: {name!r} is there twice")
        found[name] = sha256(key.encode()).digest()
    if not found:
        raise InputError(f"--keys {file}: there is no key in it")
    return found


class Guard:
    """An ASGI application around another one; `known` are the keys, none meaning no key.

    `hosts` are the names under which the service may be asked. A page of another name that a
    browser here has open cannot ask it, not even where its name leads to this address. `refused`
    is told the code of each request that is not passed on.
    """

    def __init__(
        self,
        app: Any,
        known: Mapping[str, bytes] | None,
        hosts: frozenset[str],
        refused: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.app, self.known, self.hosts, self.refused = app, known, hosts, refused

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except Failed as error:
                self.refused(error.kind[1])
                response = problem(error)
                if error.kind == KEYLESS:
                    response.headers["www-authenticate"] = "Bearer"
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: Any) -> None:
        found: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            found.setdefault(name.lower(), []).append(value.decode("latin-1"))
        hosts = found.get(b"host", [])
        if len(hosts) != 1 or _host(f"//{hosts[0]}") not in self.hosts:
            raise Failed(FOREIGN, f"Host {', '.join(hosts)!r}: not a name of this service "
                         "(--allow-host adds one)")  # fmt: skip
        if any(_host(origin) not in self.hosts for origin in found.get(b"origin", [])):
            raise Failed(FOREIGN, "pages of another origin may not ask")
        if self.known is None or scope["path"] in OPEN:
            return
        scheme, _, given = found.get(b"authorization", [""])[0].partition(" ")
        digest = sha256(given.strip().encode()).digest()
        # All are compared, whichever it is.
        names = [name for name, key in self.known.items() if hmac.compare_digest(key, digest)]
        if scheme.lower() != "bearer" or not names:
            raise Failed(KEYLESS, "no known key; send Authorization: Bearer KEY")
        scope.setdefault("state", {})["client"] = names[0]


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
