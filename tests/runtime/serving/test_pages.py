"""What the front says of itself: figures, the description of its paths, the page as it is sent."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

for name in ("starlette", "msgspec", "prometheus_client", "httpx"):
    pytest.importorskip(name)
jsonschema = pytest.importorskip("jsonschema")
import msgspec  # noqa: E402
import test_front  # noqa: E402
from test_front import CHOICES, Service, served  # noqa: E402

from tel_edge.runtime.serving import openai  # noqa: E402
from tel_edge.runtime.serving.http import MOST_BODY  # noqa: E402
from tel_edge.runtime.serving.pages import bodies, openapi  # noqa: E402

bundle = test_front.bundle
ROW = {"question": "gold 2", "choices": CHOICES, "model": "oranbench"}
CHAT = {"messages": [{"role": "user", "content": "Which?"}], "model": "oranbench", "max_tokens": 4}
TENSORS = [
    {"name": "question", "shape": [1], "datatype": "BYTES", "data": ["gold 2"]},
    {"name": "choices", "shape": [1, 4], "datatype": "BYTES", "data": CHOICES},
]
LINES = {"content-type": bodies.NDJSON}


def unserved(folder: Path, work: Callable[[Service], Coroutine[Any, Any, None]]) -> None:
    """Ask a front whose engine was never started."""

    async def all_of_it() -> None:
        service = Service(folder)
        await work(service)
        await service.client.aclose()

    asyncio.run(all_of_it())


# The figures


def test_the_status_counts_and_says_what_answers(bundle: Path) -> None:
    async def work(service: Service) -> None:
        service.client.headers["authorization"] = "Bearer hidden"
        await service.ask()
        late = await service.ask(timeout_ms=1)
        assert (late.status_code, late.json()["error"]["code"]) == (429, "overloaded")
        slow = asyncio.ensure_future(service.ask("sleep 300 gold 1"))
        await asyncio.sleep(0.1)
        reply = await service.client.get("/v1/status")
        made = reply.json()
        assert (made["status"], made["answered"], made["refused"], made["restarts"]) == (
            "ready", 1, 1, 0,
        )  # fmt: skip
        info: Any = service.link.info
        told = {"backbone": "tel-nano", "file": "nano-Q4_K_M.gguf", "engine": "fake 1"}
        assert made["bundle"].items() >= {**told, "digest": info["bundle"], "auto": False}.items()
        assert made["bundle"]["adapters"] == info["adapters"]
        assert made["load"]["running_tokens"] > 20
        assert made["load"]["waiting"] == 0
        # Neither where the bundle is, nor who asks, nor what.
        assert not [word for word in (str(bundle), "hidden", "gold") if word in reply.text]
        await slow

    served(bundle, work)


def test_the_status_before_and_after_the_engine(bundle: Path) -> None:
    async def work(service: Service) -> None:
        made = (await service.client.get("/v1/status")).json()
        assert (made["status"], made["bundle"], made["load"]) == ("starting", None, None)
        service.front.draining = True
        assert (await service.client.get("/v1/status")).json()["status"] == "draining"

    unserved(bundle, work)


def test_models_with_answers_of_their_own_say_them(tmp_path: Path) -> None:
    test_front.fake.bundle(tmp_path, adapters=("3gpp_tsg", "oranbench"))

    async def work(service: Service) -> None:
        reply = await service.client.get("/v1/models")
        assert checked(described(service), "/v1/models", reply) == 200
        labels = {row["id"]: row.get("labels") for row in reply.json()["data"]}
        assert labels["oranbench"] is None
        assert labels["3gpp_tsg"][:2] == ["CT1", "CT3"]

    served(tmp_path, work)


# The description


def described(service: Service) -> dict[str, Any]:
    return openapi.document(service.front.app.routes)


def found(value: Any, key: str) -> list[Any]:
    """All values of a key, however deep."""
    if isinstance(value, list):
        return [one for item in value for one in found(item, key)]
    if not isinstance(value, dict):
        return []
    below = [one for item in value.values() for one in found(item, key)]
    return below + ([value[key]] if key in value else [])


def test_every_route_is_described_and_nothing_else(bundle: Path) -> None:
    routes = {
        (route.path, method.lower())
        for route in Service(bundle).front.app.routes
        for method in route.methods - {"HEAD"}
    }
    paths = described(Service(bundle))["paths"]
    assert {(path, method) for path, methods in paths.items() for method in methods} == routes
    assert set(openapi.OPERATIONS) == {path for path, _ in routes}
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert ("requestBody" in operation) == (method == "post"), path
            assert operation["summary"].endswith("."), path
            named = [one["name"] for one in operation.get("parameters", [])]
            assert named == re.findall(r"{(\w+)}", path)
            assert {"200"} < set(operation["responses"]) or not openapi.OPERATIONS[path].failing
            for response in operation["responses"].values():
                assert response["description"]


def test_the_description_has_the_form_of_openapi(bundle: Path) -> None:
    made = described(Service(bundle))
    assert made["openapi"].startswith("3.1.")
    assert {"title", "version"} <= set(made["info"])
    json.dumps(made)
    ids = found(made["paths"], "operationId")
    assert len(ids) == len(set(ids)) == len(made["paths"])
    schemas = made["components"]["schemas"]
    assert {ref.removeprefix("#/components/schemas/") for ref in found(made, "$ref")} <= set(
        schemas
    )
    for schema in [*schemas.values(), *found(made["paths"], "schema")]:
        jsonschema.Draft202012Validator.check_schema(schema)
    declared = set(made["components"]["securitySchemes"])
    assert {name for one in made["security"] for name in one} <= declared


@pytest.mark.parametrize(
    "kind", [bodies.Question, openai.Completion, bodies.Answer, bodies.Status, bodies.Load]
)
def test_the_fields_are_those_of_the_structs(kind: type[msgspec.Struct], bundle: Path) -> None:
    schema = described(Service(bundle))["components"]["schemas"][kind.__name__]
    fields = {field.name: field.required for field in msgspec.structs.fields(kind)}
    assert set(schema["properties"]) == set(fields)
    assert {*schema["required"]} == {name for name, required in fields.items() if required}
    # What is refused by name may not be there.
    refused = bool(kind.__struct_config__.forbid_unknown_fields)
    assert (schema.get("additionalProperties") is False) == refused


def fits(document: Any, *kinds: type[msgspec.Struct]) -> bool:
    """Return whether it is one of these, with no field more."""
    for kind in kinds:
        try:
            if msgspec.to_builtins(msgspec.convert(document, kind)) == document:
                return True
        except msgspec.ValidationError:
            continue
    return False


def checked(made: dict[str, Any], path: str, reply: Any) -> int:
    """Compare a reply with what is described of its path and status; return the status."""
    route = next(one for one in made["paths"] if re.fullmatch(re.sub("{.*}", "[^/]+", one), path))
    [operation] = made["paths"][route].values()
    status = reply.status_code
    assert str(status) in operation["responses"], (path, reply.text)
    response = operation["responses"][str(status)]
    media = reply.headers.get("content-type", "").partition(";")[0]
    assert media in response.get("content", {"": None}), path
    if "retry-after" in reply.headers:
        assert "Retry-After" in response["headers"]
    if media in (openapi.JSON, bodies.NDJSON) and path != "/openapi.json":
        row = openapi.OPERATIONS[route]
        content = {200: row.reply, **row.others}.get(status, openapi.json(bodies.Failure))
        schema = {**response["content"][media]["schema"], "components": made["components"]}
        lines = reply.text.splitlines() if media == bodies.NDJSON else [reply.text]
        for document in map(json.loads, lines):
            jsonschema.validate(document, schema)
            assert fits(document, *content[media]), (path, document)
    return int(status)


def test_replies_are_as_described(bundle: Path) -> None:
    async def work(service: Service) -> None:
        made, client = described(service), service.client
        for path, status in (
            ("/", 200), ("/openapi.json", 200), ("/v1/status", 200), ("/v1/models", 200),
            ("/livez", 200), ("/readyz", 200), ("/metrics", 200), ("/v2/models/teleqna", 200),
            ("/v2/models/teleqna/ready", 200), ("/v2/models/gpt", 404),
        ):  # fmt: skip
            assert checked(made, path, await client.get(path)) == status
        for path, body, status in (
            ("/v1/answer", ROW | {"k": 3, "id": 7}, 200),
            ("/v1/answer", ROW | {"model": "gpt"}, 404),
            ("/v1/answer", ROW | {"more": 1}, 400),
            ("/v1/answer", ROW | {"timeout_ms": 1}, 429),
            ("/v1/answer", {"questions": [ROW, {**ROW, "id": "x", "model": "gpt"}]}, 200),
            ("/v1/completions", {"prompt": ["ab", "cd"]}, 200),
            ("/v1/completions", {"prompt": "ab", "n": 2}, 400),
            ("/v1/chat/completions", CHAT, 200),
            ("/v1/chat/completions", CHAT | {"structured_outputs": {"choice": ["a", "b"]}}, 200),
            ("/v1/chat/completions", CHAT | {"stream": True}, 200),
            ("/v1/chat/completions", CHAT | {"n": 2}, 400),
            ("/v2/models/oranbench/infer", {"inputs": TENSORS, "id": "7"}, 200),
            ("/v2/models/oranbench/infer", {"inputs": []}, 400),
            ("/v2/models/gpt/infer", {"inputs": TENSORS}, 404),
            ("/tokenize", {"prompt": "ab"}, 200),
            ("/detokenize", {"prompt": "ab"}, 400),
        ):
            assert checked(made, path, await client.post(path, json=body)) == status, (path, body)
        rows = f"{json.dumps(ROW)}\n{{bad\n"
        assert checked(made, "/v1/answer", await client.post("/v1/answer", content=rows,
                                                             headers=LINES)) == 200  # fmt: skip
        large = await client.post("/tokenize", content=b" " * (MOST_BODY + 1))
        assert checked(made, "/tokenize", large) == 413

    served(bundle, work)


def test_replies_without_an_engine_are_as_described(bundle: Path) -> None:
    async def work(service: Service) -> None:
        made = described(service)
        for path in ("/readyz", "/v1/models", "/tokenizer_info", "/v2/models/x"):
            assert checked(made, path, await service.client.get(path)) == 503
        assert checked(made, "/v1/status", await service.client.get("/v1/status")) == 200
        asked = await service.client.post("/v1/answer", json=ROW)
        assert checked(made, "/v1/answer", asked) == 503

    unserved(bundle, work)


# The page


def test_the_page_allows_itself_alone(bundle: Path) -> None:
    async def work(service: Service) -> None:
        reply = await service.client.get("/")
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        policy = dict(part.split(" ", 1) for part in
                      reply.headers["content-security-policy"].split("; "))  # fmt: skip
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert policy["connect-src"] == "'self'"
        assert all("unsafe" not in value for value in policy.values())
        assert reply.text.count("<script") == reply.text.count("<style") == 1
        assert "{{" not in reply.text
        assert not re.search(r"\son\w+=|\sstyle=|innerHTML|https?://(?!www\.w3\.org)", reply.text)

    unserved(bundle, work)
