"""The HTTP side: what is asked of which path, in pure ASGI; imports neither numpy nor an engine.

Sources: docs/serving.md for `/v1/answer`; the KServe open inference protocol v2 for `/v2`; the
health paths of the O-RAN SC xApp framework.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from functools import wraps
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tel_edge.runtime.device.power import Watch
from tel_edge.runtime.serving import chat as chats
from tel_edge.runtime.serving import kserve, openai
from tel_edge.runtime.serving.http import (
    Handler,
    body,
    converted,
    decoded,
    described,
    gone,
    key,
    patience,
    problem,
    read,
    responded,
    together,
)
from tel_edge.runtime.serving.link import Link
from tel_edge.runtime.serving.metrics import Metrics
from tel_edge.runtime.serving.pages import openapi, page, status
from tel_edge.runtime.serving.pages.bodies import NDJSON, Question, Questions, State
from tel_edge.runtime.serving.problems import INVALID, LARGE, LATE, STARTING, Failed

# Questions of one body.
MOST_QUESTIONS = 1024


class Front:
    """The application over a link to the engine's process."""

    def __init__(self, link: Link, metrics: Metrics) -> None:
        self.link, self.metrics, self.power = link, metrics, Watch()
        self.draining = False
        self._number = 0
        paths: dict[str, tuple[str, Handler]] = {
            "/v1/answer": ("POST", self.answer),
            "/v1/models": ("GET", self.models),
            "/v1/completions": ("POST", self.complete),
            "/v1/chat/completions": ("POST", self.chat),
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
            "/v2/models/{model}/infer": ("POST", self.infer),
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
            ],
            exception_handlers={HTTPException: _unknown},
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
        lines = request.headers.get("content-type", "").partition(";")[0].strip().lower() == NDJSON
        if lines:
            rows = [line for line in raw.split(b"\n") if line.strip()]
            check_count(rows)
            return StreamingResponse(self._lines(request, rows), media_type=NDJSON)
        document = decoded(raw)
        if not (isinstance(document, dict) and "questions" in document):
            one = converted(document, Question)
            return JSONResponse(await self._until_gone(request, self._asked(request, one)))
        given = converted(document, Questions).questions
        check_count(given)
        made = await self._until_gone(
            request, together(*(self._settled(request, one) for one in given))
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
            **patience(one.timeout_ms),
        }
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
        made = await self._until_gone(request, together(*map(self.link.ask, asked)))
        for reply in made:
            self.metrics.written(reply)
        info = self._info()
        model = given.model or info["backbone"]
        self._number += 1
        return JSONResponse(openai.completion(made, model, info["bundle"], str(self._number)))

    async def chat(self, request: Request) -> Response:
        """Answer a conversation, in OpenAI's form; as it comes if that is asked for."""
        given = await body(request, chats.Chat)
        asked = {**chats.message(given), "key": key(request), **patience(given.timeout_ms)}
        info = self._info()
        self._number += 1
        about = given.model or info["backbone"], info["bundle"], str(self._number)
        if not given.stream:
            reply = await self._until_gone(request, self.link.ask(asked))
            self.metrics.written(reply)
            return JSONResponse(chats.completion(reply, *about))
        parts: asyncio.Queue[str | None] = asyncio.Queue()
        task = asyncio.ensure_future(self.link.ask(asked, parts.put_nowait))
        task.add_done_callback(lambda _: parts.put_nowait(None))
        task.add_done_callback(self._written)
        # Whatever is refused is refused with a status of its own.
        first = await self._until_gone(request, chats.first(task, parts))
        counted = bool(given.stream_options and given.stream_options.include_usage)
        stream = chats.chunks(task, parts, first, about, counted)
        return StreamingResponse(
            stream, media_type=chats.SSE, headers={"cache-control": "no-store"}
        )

    def _written(self, task: asyncio.Task[dict[str, Any]]) -> None:
        if not task.cancelled() and task.exception() is None:
            self.metrics.written(task.result())

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
            {
                "name": name,
                "versions": [info["bundle"][:12]],
                "platform": info["engine"],
                **kserve.described(),
            }
        )

    async def infer(self, request: Request) -> Response:
        """Answer the questions of a tensor, all of them or none."""
        given = await body(request, kserve.Infer)
        name = request.path_params["model"]
        rows = [converted({**row, "model": name}, Question) for row in kserve.questions(given)]
        check_count(rows)
        made = await self._until_gone(
            request, together(*(self._asked(request, one) for one in rows))
        )
        return JSONResponse(kserve.reply(given, name, self._info()["bundle"][:12], made))

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

    async def _stats(self, op: str = "stats") -> dict[str, Any]:
        try:
            return await self.link.ask({"op": op})
        except Failed:
            # Between two processes nothing waits.
            return {}

    async def measured(self, _: Request) -> Response:
        """Return the metrics in Prometheus' text form."""
        stats, energy = await self._stats(), await self._stats("energy")
        # A device's tool, which may take a while.
        power = await asyncio.to_thread(self.power.now)
        self.metrics.powered(energy.get("joules"), power)
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


async def _unknown(_: Request, error: Exception) -> Response:
    """Return what there is to say of a path or a method that there is not."""
    assert isinstance(error, HTTPException)
    return problem(Failed((error.status_code, "not_found"), error.detail))


def check_count(questions: Sequence[Any]) -> None:
    """Raise `Failed` for more questions than one body may have."""
    if len(questions) > MOST_QUESTIONS:
        raise Failed(LARGE, f"{len(questions)} questions; at most {MOST_QUESTIONS} at a time")


def names(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the models that may be asked for."""
    router = ("auto",) if info.get("auto") else ()
    return *router, info["backbone"], *info["adapters"]
