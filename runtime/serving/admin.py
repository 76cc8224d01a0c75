"""What only this machine's own user may ask, on a Unix socket: another bundle, an orderly end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tel_edge.runtime.files.atomic import followed
from tel_edge.runtime.serving import notify
from tel_edge.runtime.serving.front import Front
from tel_edge.runtime.serving.http import body, responded
from tel_edge.runtime.serving.problems import INVALID, Failed


class Reload(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/reload`: the folder of a bundle with the same backbone."""

    bundle: str


def app(front: Front, drain: Callable[[], None]) -> Starlette:
    """Return the application; `drain` lets the service answer what waits, and end."""
    before: list[str] = []

    async def exchanged(folder: str) -> dict[str, Any]:
        notify.reloading()
        try:
            return await front.link.reload(folder)
        finally:
            notify.notify(notify.READY)

    async def reload(request: Request) -> Response:
        try:
            given = (await body(request, Reload)).bundle
            if not given:
                raise Failed(INVALID, "bundle: an empty path; name a folder")
            folder = str(followed(Path(given).absolute()))
            old = front.link.folder
            reply = await exchanged(folder)
        except Failed:
            front.metrics.reloads.labels("refused").inc()
            raise
        if old != folder:
            before.append(old)
        front.metrics.reloads.labels("ok").inc()
        return JSONResponse({**reply, "folder": folder})

    async def rollback(_: Request) -> Response:
        if not before:
            return JSONResponse({"error": "there is no bundle before this one"}, 409)
        reply = await exchanged(before[-1])
        return JSONResponse({**reply, "folder": before.pop()})

    async def ended(_: Request) -> Response:
        drain()
        return JSONResponse({"status": "draining"})

    async def status(_: Request) -> Response:
        info = front.link.info
        stats = await front.link.ask({"op": "stats"}) if info else {}
        return JSONResponse({"engine": info, **stats, "restarts": front.link.restarts})

    return Starlette(
        routes=[
            Route("/reload", partial(responded, reload), methods=["POST"]),
            Route("/rollback", partial(responded, rollback), methods=["POST"]),
            Route("/drain", ended, methods=["POST"]),
            Route("/status", status),
        ]
    )
