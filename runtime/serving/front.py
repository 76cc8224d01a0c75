"""The HTTP side: what is asked of which path, in pure ASGI; imports neither numpy nor an engine.

Sources: docs/serving.md for `/v1/answer`; the KServe open inference protocol v2 for `/v2`; the
health paths of the O-RAN SC xApp framework.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import wraps
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tel_edge.runtime.serving import openai
from tel_edge.runtime.serving.link import Link
from tel_edge.runtime.serving.metrics import Metrics
from tel_edge.runtime.serving.pages import openapi, page, status
from tel_edge.runtime.serving.pages.bodies import NDJSON, Question, Questions, State
from tel_edge.runtime.serving.problems import INVALID, LARGE, LATE, STARTING, Failed

# Bytes of a body, seconds in which all of it has to be here, questions of one.
MOST_BODY, BODY_SECONDS, MOST_QUESTIONS = 1 << 20, 10.0, 1024
Handler = Callable[[Request], Awaitable[Response]]


class Front:
    """The application over a link to the engine's process; `keys` are whose requests are taken."""

    def __init__(self, link: Link, metrics: Metrics) -> None:
        self.link, self.metrics = link, metrics
        self.draining = False
        self._number = 0
        paths: dict[str, tuple[str, Handler]] = {
            "/v1/answer": ("POST", self.answer),
            "/v1/models": ("GET", self.models),
            "/v1/completions": ("POST", self.complete),
            "/tokenize": ("POST", self.tokenize),
            "/detokenize": ("POST", self.detokenize),
            "/tokenizer_info": ("GET", self.tokenizer),
            "/livez": ("GET", self.live),
            "/v2/health/live": ("GET", self.live),
            "/ric/v1/health/alive": ("GET", self.live),
            "/readyz": ("GET", self.ready),
            "/v2/health/ready": ("GET", self.ready),
            "/ric/v1/health/ready": ("GET", self.ready),
            "/v2/models/{model}": ("GET", self.model),
            "/v2/models/{model}/ready": ("GET", self.model),
            "/metrics": ("GET", self.measured),
            "/ric/v1/metrics": ("GET", self.measured),
            "/": ("GET", self.page),
            "/v1/status": ("GET", self.status),
            "/openapi.json": ("GET", self.description),
        }
        self.app = Starlette(
            routes=[
                Route(path, self._guarded(path, handler), methods=[method])
                for path, (method, handler) in paths.items()
            ]
        )

    def _guarded(self, path: str, handler: Handler) -> Handler:
        @wraps(handler)
        async def guarded(request: Request) -> Response:
            # By the route, since a client chooses what stands in its place.
            with self.metrics.request(path) as told:
                response = await responded(handler, request)
                told(response.status_code)
                return response

        return guarded

    # Questions

    async def answer(self, request: Request) -> Response:
        """Answer one question, several, or a stream of lines."""
        raw = await read(request)
        lines = request.headers.get("content-type", "").partition(";")[0].strip() == NDJSON
        if lines:
            rows = [line for line in raw.split(b"\n") if line.strip()]
            if len(rows) > MOST_QUESTIONS:
                raise Failed(LARGE, f"{len(rows)} questions; at most {MOST_QUESTIONS} at a time")
            return StreamingResponse(self._lines(request, rows), media_type=NDJSON)
        document = decoded(raw)
        if not (isinstance(document, dict) and "questions" in document):
            one = converted(document, Question)
            return JSONResponse(await self._until_gone(request, self._asked(request, one)))
        given = converted(document, Questions).questions
        if len(given) > MOST_QUESTIONS:
            raise Failed(LARGE, f"{len(given)} questions; at most {MOST_QUESTIONS} at a time")
        made = await self._until_gone(
            request, asyncio.gather(*(self._settled(request, one) for one in given))
        )
        return JSONResponse({"answers": made})

    async def _lines(self, request: Request, rows: list[bytes]) -> AsyncIterator[bytes]:
        async def one(row: bytes) -> dict[str, Any]:
            try:
                return await self._settled(request, converted(decoded(row), Question))
            except Failed as error:
                return {"error": described(error)}

        tasks = [asyncio.ensure_future(one(row)) for row in rows]
        try:
            for task in tasks:
                yield json.dumps(await task).encode() + b"\n"
        finally:
            # Who has left gets nothing more computed.
            for task in tasks:
                task.cancel()

    async def _settled(self, request: Request, one: Question) -> dict[str, Any]:
        try:
            return await self._asked(request, one)
        except Failed as error:
            id = {} if one.id is None else {"id": one.id}
            return {**id, "error": described(error)}

    async def _asked(self, request: Request, one: Question) -> dict[str, Any]:
        named = {name: getattr(one, name) for name in ("question", "choices", "labels", "id")}
        how = {name: getattr(one, name) for name in ("k", "temperature", "seed")}
        if one.model and one.category and one.model != one.category:
            raise Failed(INVALID, "both model and category; give one")
        message: dict[str, Any] = {
            "op": "ask",
            "row": {name: value for name, value in named.items() if value is not None},
            "how": {name: value for name, value in how.items() if value is not None},
            "model": one.model or one.category,
            "exact": one.exact,
            "key": key(request),
        }
        if one.timeout_ms is not None:
            if one.timeout_ms <= 0:
                raise Failed(INVALID, f"timeout_ms {one.timeout_ms}: a number above 0 is needed")
            message["timeout"] = one.timeout_ms / 1000
        reply = await self.link.ask(message)
        self.metrics.answered(reply)
        return reply

    async def _until_gone(self, request: Request, work: Awaitable[Any]) -> Any:
        """Return what `work` gives; cancel it if the client leaves meanwhile."""
        task = asyncio.ensure_future(work)
        watch = asyncio.ensure_future(gone(request))
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Failed(LATE, "the client left")
            return task.result()
        finally:
            for one in (task, watch):
                one.cancel()

    # Plain prompts

    async def complete(self, request: Request) -> Response:
        """Complete one prompt or several, in OpenAI's form."""
        given = await body(request, openai.Completion)
        asked = [{**one, "key": key(request)} for one in openai.messages(given)]
        made = await self._until_gone(request, asyncio.gather(*map(self.link.ask, asked)))
        info = self._info()
        model = given.model or info["backbone"]
        self._number += 1
        return JSONResponse(openai.completion(made, model, info["bundle"], str(self._number)))

    async def tokenize(self, request: Request) -> Response:
        """Return the ids of a text."""
        given = await body(request, openai.Tokenize)
        message = {"op": "tokenize", "text": given.prompt, "special": given.add_special_tokens}
        return JSONResponse(await self.link.ask(message))

    async def detokenize(self, request: Request) -> Response:
        """Return the text of ids."""
        given = await body(request, openai.Detokenize)
        return JSONResponse(await self.link.ask({"op": "detokenize", "tokens": given.tokens}))

    async def tokenizer(self, _: Request) -> Response:
        """Return the token that ends a text."""
        return JSONResponse(await self.link.ask({"op": "tokenizer"}))

    # What is there

    async def models(self, _: Request) -> Response:
        """List the models by name: the router's choice, the bare backbone, each category."""
        info = self._info()
        adapters = info["adapters"]
        rows = [
            {"id": name, "object": "model", "owned_by": "tel-edge"}
            | ({"adapter_digest": adapters[name]} if name in adapters else {})
            | ({"labels": info["labels"][name]} if name in info["labels"] else {})
            for name in names(info)
        ]
        return JSONResponse({"object": "list", "data": rows, "bundle": info["bundle"]})

    async def model(self, request: Request) -> Response:
        """Say whether a model is there."""
        info, name = self._info(), request.path_params["model"]
        if name not in names(info):
            return JSONResponse({"error": f"no model {name!r}"}, 404)
        if request.url.path.endswith("/ready"):
            return Response()
        return JSONResponse(
            {"name": name, "versions": [info["bundle"][:12]], "platform": info["engine"]}
        )

    def _info(self) -> dict[str, Any]:
        if self.link.info is None:
            raise Failed(STARTING, "the engine is not ready yet", 1.0)
        return self.link.info

    async def live(self, _: Request) -> Response:
        """Say that the front works."""
        return JSONResponse({"status": "alive", "live": True})

    async def ready(self, _: Request) -> Response:
        """Say whether questions are answered now."""
        there = self._state() == "ready"
        return JSONResponse({"status": self._state(), "ready": there}, 200 if there else 503)

    def _state(self) -> State:
        if self.draining:
            return "draining"
        return "starting" if self.link.info is None else "ready"

    async def _stats(self) -> dict[str, Any]:
        try:
            return await self.link.ask({"op": "stats"})
        except Failed:
            # Between two processes nothing waits.
            return {}

    async def measured(self, _: Request) -> Response:
        """Return the metrics in Prometheus' text form."""
        stats = await self._stats()
        text, kind = self.metrics.text(stats, self.link.info, self.link.restarts)
        return Response(text, media_type=kind)

    # What it says of itself

    async def status(self, _: Request) -> Response:
        """Say what answers and how much waits, in figures that are no secret."""
        made = status.status(self._state(), await self._stats(), self.link, self.metrics)
        return Response(msgspec.json.encode(made), media_type="application/json")

    async def description(self, _: Request) -> Response:
        """Describe all paths in OpenAPI's form."""
        return JSONResponse(openapi.document(self.app.routes))

    async def page(self, _: Request) -> Response:
        """Show all of it in a browser, with a form to ask a question."""
        return page.response()


def names(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the models that may be asked for."""
    return "auto", info["backbone"], *info["adapters"]


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


async def gone(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


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
    """Return whose request it is: the bearer's key, or the address."""
    given = request.headers.get("authorization", "")
    scheme, _, value = given.partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return request.client.host if request.client else ""


def described(error: Failed) -> dict[str, Any]:
    """Return an error as bodies have it, in the form of OpenAI's API."""
    status, code = error.kind
    return {"message": str(error), "type": code, "code": code, "status": status}


def problem(error: Failed) -> Response:
    """Return the response of an error."""
    headers = {} if error.after is None else {"retry-after": str(max(1, round(error.after)))}
    return JSONResponse({"error": described(error)}, error.kind[0], headers)
