"""`/openapi.json`: the front's paths as OpenAPI 3.1, made from its routes and their Structs.

Source: https://spec.openapis.org/oas/v3.1.1. A new path needs a row in `OPERATIONS`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.routing import BaseRoute, Route

import tel_edge
from tel_edge.runtime.serving import chat, kserve, openai
from tel_edge.runtime.serving.guard import OPEN
from tel_edge.runtime.serving.pages import bodies
from tel_edge.runtime.serving.pages.bodies import NDJSON, PLACE
from tel_edge.runtime.serving.problems import (
    BROKEN,
    DRAINING,
    FOREIGN,
    FULL,
    INVALID,
    KEYLESS,
    LARGE,
    LATE,
    LONG,
    MODEL,
    RESTARTING,
    STARTING,
    Kind,
)

JSON = "application/json"
# Structs by media type, one of which it is; none where it is a text.
Content = Mapping[str, tuple[type[msgspec.Struct], ...]]


def json(*kinds: type[msgspec.Struct]) -> Content:
    """Return the content that is one of these in JSON."""
    return {JSON: kinds}


@dataclass(frozen=True)
class Operation:
    """What a path takes and gives; `failing` is how it may fail, `others` replies by status."""

    reply: Content
    body: Content = field(default_factory=dict)
    failing: tuple[Kind, ...] = ()
    others: Mapping[int, Content] = field(default_factory=dict)


READ = (INVALID, LARGE, LATE)
ASKED = (STARTING, RESTARTING, BROKEN)
QUEUED = (*READ, LONG, MODEL, FULL, DRAINING, *ASKED)
LIVE = Operation(json(bodies.Live))
READY = Operation(json(bodies.Ready), others={503: json(bodies.Ready)})
METRICS = Operation({"text/plain": ()})
MISSING = {404: json(bodies.Missing)}
OPERATIONS: Mapping[str, Operation] = {
    "/v1/answer": Operation(
        {**json(bodies.Answer, bodies.Answers), NDJSON: (bodies.Answer, bodies.Unanswered)},
        {**json(bodies.Question, bodies.Questions), NDJSON: (bodies.Question,)},
        QUEUED,
    ),
    "/v1/models": Operation(json(bodies.Models), failing=(STARTING,)),
    "/v1/completions": Operation(json(bodies.Completed), json(openai.Completion), QUEUED),
    "/v1/chat/completions": Operation(
        {**json(bodies.Chatted), chat.SSE: ()}, json(chat.Chat), QUEUED
    ),
    "/tokenize": Operation(json(bodies.Tokenized), json(openai.Tokenize), (*READ, *ASKED)),
    "/detokenize": Operation(json(bodies.Detokenized), json(openai.Detokenize), (*READ, *ASKED)),
    "/tokenizer_info": Operation(json(bodies.Tokenizer), failing=(INVALID, *ASKED)),
    "/livez": LIVE,
    "/v2/health/live": LIVE,
    "/ric/v1/health/alive": LIVE,
    "/readyz": READY,
    "/v2/health/ready": READY,
    "/ric/v1/health/ready": READY,
    "/v2/models/{model}": Operation(json(bodies.Served), failing=(STARTING,), others=MISSING),
    "/v2/models/{model}/ready": Operation({}, failing=(STARTING,), others=MISSING),
    "/v2/models/{model}/infer": Operation(json(bodies.Inferred), json(kserve.Infer), QUEUED),
    "/metrics": METRICS,
    "/ric/v1/metrics": METRICS,
    "/": Operation({"text/html": ()}),
    "/v1/status": Operation(json(bodies.Status)),
    "/openapi.json": Operation({JSON: ()}),
}


def document(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """Return the document of an application's routes, summed up by their handlers' docstrings."""
    kinds: dict[type[msgspec.Struct], None] = {bodies.Failure: None}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        assert isinstance(route, Route)
        operation = OPERATIONS[route.path]
        for content in (operation.body, operation.reply, *operation.others.values()):
            kinds |= dict.fromkeys(kind for some in content.values() for kind in some)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            paths.setdefault(route.path, {})[method.lower()] = _described(route, method, operation)
    _, schemas = msgspec.json.schema_components(kinds, ref_template=PLACE)
    key = "A key of this service, where it asks for one. Flows take turns by key, or by address."
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "tel-serve",
            "version": tel_edge.__version__,
            "summary": "Telecom questions, answered by a small model on this machine.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": key}},
        },
        "security": [{}, {"key": []}],
    }


def _described(route: Route, method: str, operation: Operation) -> dict[str, Any]:
    responses = {200: _reply("what was asked for", operation.reply)}
    responses |= {
        status: _reply("not there, or not now", content)
        for status, content in operation.others.items()
    }
    codes: defaultdict[int, list[str]] = defaultdict(list)
    guarded = (FOREIGN,) if route.path in OPEN else (FOREIGN, KEYLESS)
    for status, code in (*guarded, *operation.failing):
        codes[status].append(code)
    for status, some in codes.items():
        responses[status] = _reply(" or ".join(some), json(bodies.Failure))
        if status in (FULL[0], STARTING[0]):
            seconds = {"schema": {"type": "integer"}, "description": "seconds to come again"}
            responses[status]["headers"] = {"Retry-After": seconds}
    words = re.sub(r"\W+", "_", f"{method.lower()}{route.path}").strip("_")
    made: dict[str, Any] = {
        "operationId": words,
        "summary": (route.endpoint.__doc__ or "").strip(),
        "responses": {str(status): reply for status, reply in sorted(responses.items())},
    }
    if names := re.findall(r"{(\w+)}", route.path):
        one = {"in": "path", "required": True, "schema": {"type": "string"}}
        made["parameters"] = [{"name": name, **one} for name in names]
    if operation.body:
        made["requestBody"] = {"required": True, "content": _content(operation.body)}
    return made


def _reply(description: str, content: Content) -> dict[str, Any]:
    told: dict[str, Any] = {"description": description}
    return told | ({"content": _content(content)} if content else {})


def _content(content: Content) -> dict[str, Any]:
    return {media: {"schema": _schema(media, kinds)} for media, kinds in content.items()}


def _schema(media: str, kinds: tuple[type[msgspec.Struct], ...]) -> dict[str, Any]:
    refs = [{"$ref": PLACE.format(name=kind.__name__)} for kind in kinds]
    if not refs:
        return {"type": "object" if media == JSON else "string"}
    return refs[0] if len(refs) == 1 else {"anyOf": refs}
