"""What every path does with a request: its body, whose it is, and how it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tel_edge.runtime.serving.problems import INVALID, LARGE, LATE, Failed, shortened

# Bytes of a body, seconds in which all of it has to be here.
MOST_BODY, BODY_SECONDS = 1 << 20, 10.0
# What a request may say that it has time for; the worker has a bound of its own below it.
LONGEST_MS = 3_600_000
Handler = Callable[[Request], Awaitable[Response]]


async def read(request: Request) -> bytes:
    """Return the body, or raise `Failed` for one that is too large or too slow."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > MOST_BODY:
                    raise Failed(LARGE, f"the body has more than {MOST_BODY:,} bytes")
                parts.append(part)
    except TimeoutError:
        raise Failed(LATE, f"the body was not here in {BODY_SECONDS:g} s") from None
    return b"".join(parts)


async def body(request: Request, kind: type[Any]) -> Any:
    """Return the body as `kind`, or raise `Failed`."""
    return converted(decoded(await read(request)), kind)


async def responded(handler: Handler, request: Request) -> Response:
    """Return what a handler gives, or the response of its `Failed`."""
    try:
        return await handler(request)
    except Failed as error:
        return problem(error)


async def together(*work: Awaitable[Any]) -> list[Any]:
    """Return what all of them give; where one fails nothing more is computed of the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def gone(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def patience(timeout_ms: int | None) -> dict[str, float]:
    """Return how long a message may take, in seconds; raise `Failed` for no time at all."""
    if timeout_ms is None:
        return {}
    if timeout_ms <= 0:
        raise Failed(INVALID, f"timeout_ms {timeout_ms}: a number above 0 is needed")
    return {"timeout": min(timeout_ms, LONGEST_MS) / 1000}


def decoded(body: bytes) -> Any:
    """Return the JSON of a body, or raise `Failed`."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Failed(INVALID, f"not JSON: {error}") from None


def converted(raw: Any, kind: type[Any]) -> Any:
    """Return a value as `kind`, or raise `Failed` that names the field."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise Failed(INVALID, str(error)) from None


def key(request: Request) -> str:
    """Return whose request it is: the name of its key, the bearer's word, or the address."""
    if name := getattr(request.state, "client", None):
        return str(name)
    given = request.headers.get("authorization", "")
    scheme, _, value = given.partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return request.client.host if request.client else ""


def described(error: Failed) -> dict[str, Any]:
    """Return an error as bodies have it, in the form of OpenAI's API."""
    status, code = error.kind
    return {"message": shortened(str(error)), "type": code, "code": code, "status": status}


def problem(error: Failed) -> Response:
    """Return the response of an error."""
    headers = {} if error.after is None else {"retry-after": str(max(1, round(error.after)))}
    return JSONResponse({"error": described(error)}, error.kind[0], headers)
