"""Conversations in OpenAI's form: what is taken, what is refused by name, and the replies.

Sources: OpenAI's API reference of `/v1/chat/completions`; for lists of choices vLLM's
`structured_outputs` and the older `guided_choice`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from tel_edge.runtime.serving.http import described
from tel_edge.runtime.serving.openai import (
    MOST_TOKENS,
    check_fixed,
    check_number,
    head,
    stops,
    usage,
)
from tel_edge.runtime.serving.problems import INVALID, Failed

MOST_MESSAGES, MOST_CHOICES = 256, 256
SSE = "text/event-stream"


class Part(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a message; only texts are taken."""

    type: Literal["text"]
    text: str


class Said(msgspec.Struct, forbid_unknown_fields=True):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]


class Options(msgspec.Struct, forbid_unknown_fields=True):
    """What is streamed beside the text."""

    include_usage: bool = False


class Schema(msgspec.Struct, forbid_unknown_fields=True):
    """A JSON schema that an answer is to be of."""

    schema: dict[str, Any]
    name: str = ""
    description: str | None = None
    strict: bool | None = None


class Format(msgspec.Struct, forbid_unknown_fields=True):
    """The form of an answer."""

    type: Literal["text", "json_schema"]
    json_schema: Schema | None = None


class Structured(msgspec.Struct, forbid_unknown_fields=True):
    """The answers that there may be."""

    choice: list[str]


class Chat(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/v1/chat/completions`; a field that is not here is refused by name."""

    messages: list[Said]
    model: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = 1.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: Options | None = None
    response_format: Format | None = None
    structured_outputs: Structured | None = None
    guided_choice: list[str] | None = None
    timeout_ms: int | None = None
    user: str | None = None
    n: int | None = 1
    top_p: float | None = 1.0
    presence_penalty: float | None = 0.0
    frequency_penalty: float | None = 0.0
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: str | None = None


# Fields that would change the result and of which only these values do what they say.
FIXED: Mapping[str, Sequence[Any]] = {
    "n": (1, None),
    "top_p": (1.0, None),
    "presence_penalty": (0.0, None),
    "frequency_penalty": (0.0, None),
    "logit_bias": (None, {}),
    "logprobs": (False, None),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
}


def message(given: Chat) -> dict[str, Any]:
    """Return what the engine's process is asked; raise `Failed` for what is not done."""
    check_fixed(given, FIXED)
    temperature = 1.0 if given.temperature is None else given.temperature
    check_number("temperature", temperature, 2)
    if not 1 <= len(given.messages) <= MOST_MESSAGES:
        raise Failed(INVALID, f"{len(given.messages)} messages: 1 to {MOST_MESSAGES} work")
    if given.messages[-1].role == "assistant":
        raise Failed(INVALID, "the last message is the assistant's: there is nothing to answer")
    most = given.max_completion_tokens
    most = given.max_tokens if most is None else most
    if most is not None:
        check_number("max_tokens", most, MOST_TOKENS, 1)
    return {
        "op": "chat",
        "model": given.model,
        "messages": [
            {"role": "system" if one.role == "developer" else one.role, "content": _text(one)}
            for one in given.messages
        ],
        "choices": choices(given),
        "max_tokens": most,
        "most": MOST_TOKENS,
        "temperature": temperature,
        "seed": 42 if given.seed is None else given.seed,
        "stop": stops(given.stop),
        "stream": bool(given.stream),
    }


def _text(said: Said) -> str:
    if isinstance(said.content, str):
        return said.content
    return "".join(part.text for part in said.content)


def choices(given: Chat) -> list[str]:
    """Return the answers that there may be, none for any text."""
    schema = None
    if given.response_format and given.response_format.type == "json_schema":
        if given.response_format.json_schema is None:
            raise Failed(INVALID, "response_format: json_schema is missing")
        schema = given.response_format.json_schema.schema
    lists = [
        given.guided_choice,
        given.structured_outputs.choice if given.structured_outputs else None,
        enumerated(schema) if schema is not None else None,
    ]
    named = [one for one in lists if one is not None]
    if len(named) > 1:
        raise Failed(INVALID, "several lists of choices; give one")
    for made in named:
        if not 1 <= len(set(made)) == len(made) <= MOST_CHOICES or not all(made):
            raise Failed(INVALID, f"choices: 1 to {MOST_CHOICES} different texts are needed")
    return named[0] if named else []


def enumerated(schema: Mapping[str, Any]) -> list[str]:
    """Return the JSON texts that a schema allows: an enum, or an object whose one property is one.

    Raises `Failed` for any other schema, since no grammar is followed here.
    """
    if not isinstance(schema, Mapping):
        raise Failed(INVALID, "json_schema: an object is needed where there is none")
    if isinstance(schema.get("properties"), Mapping):
        _check(schema, {"type", "properties", "required", "additionalProperties"}, "object")
        if len(schema["properties"]) != 1:
            raise Failed(INVALID, "json_schema: only objects with one property are supported")
        [(name, inner)] = schema["properties"].items()
        if schema.get("required") != [name]:
            raise Failed(INVALID, f"json_schema: only with {name!r} required is it one of its enum")
        return [f"{{{json.dumps(name)}: {text}}}" for text in enumerated(inner)]
    _check(schema, {"type", "enum"}, "string")
    values = schema.get("enum")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise Failed(INVALID, "json_schema: only an enum of strings is supported, or an object "
                     "with one property that is one")  # fmt: skip
    return [json.dumps(value, ensure_ascii=False) for value in values]


def _check(schema: Mapping[str, Any], known: set[str], kind: str) -> None:
    # Titles and descriptions are for readers.
    other = {*schema} - known - {"title", "description", "$schema", "default"}
    if other or schema.get("type", kind) != kind:
        what = ", ".join(sorted(other)) or f"type {schema['type']!r}"
        raise Failed(INVALID, f"json_schema: {what} is not supported")


def completion(reply: Mapping[str, Any], model: str, bundle: str, number: str) -> dict[str, Any]:
    """Return the body of a reply; choices bring their `probabilities` along."""
    said = {"role": "assistant", "content": reply["text"], "refusal": None}
    choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": reply["ended"]}
    return {
        **_head("chat.completion", model, bundle, number),
        "choices": [choice],
        "usage": usage([reply]),
        **_beside(reply),
    }


def chunk(delta: Mapping[str, Any], model: str, bundle: str, number: str) -> bytes:
    """Return a part of a streamed reply as a server-sent event."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    return event({**_head("chat.completion.chunk", model, bundle, number), "choices": [choice]})


def last_chunks(
    reply: Mapping[str, Any], model: str, bundle: str, number: str, counted: bool
) -> Iterator[bytes]:
    """Yield how a streamed reply ended, what it took if that was asked for, and its end."""
    same = _head("chat.completion.chunk", model, bundle, number)
    choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": reply["ended"]}
    yield event({**same, "choices": [choice], **_beside(reply)})
    if counted:
        yield event({**same, "choices": [], "usage": usage([reply])})
    yield b"data: [DONE]\n\n"


async def first(task: asyncio.Task[dict[str, Any]], parts: asyncio.Queue[Any]) -> str | None:
    """Return the first part of a text, None where there is only the reply, or raise `Failed`."""
    try:
        part: str | None = await parts.get()
    except asyncio.CancelledError:
        task.cancel()
        raise
    if part is None:
        task.result()
    return part


async def chunks(
    task: asyncio.Task[dict[str, Any]],
    parts: asyncio.Queue[str | None],
    part: str | None,
    about: tuple[str, str, str],
    counted: bool,
) -> AsyncIterator[bytes]:
    """Yield a reply as it comes, from `part` on; who leaves gets nothing more computed."""
    try:
        sent = ""
        yield chunk({"role": "assistant", "content": ""}, *about)
        while part is not None:
            sent += part
            yield chunk({"content": part}, *about)
            part = await parts.get()
        try:
            reply = task.result()
        except Failed as error:
            yield event({"error": described(error)})
            return
        # A choice comes in one piece.
        if rest := reply["text"][len(sent) :]:
            yield chunk({"content": rest}, *about)
        for end in last_chunks(reply, *about, counted):
            yield end
    finally:
        task.cancel()


def event(value: Mapping[str, Any]) -> bytes:
    """Return a value as a server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _head(kind: str, model: str, bundle: str, number: str) -> dict[str, Any]:
    return head(kind, f"chatcmpl-{number}", model, bundle)


def _beside(reply: Mapping[str, Any]) -> dict[str, Any]:
    names = ("probabilities", "adapter", "adapter_digest", "queue_ms", "engine_ms")
    told = {name: reply[name] for name in names if reply.get(name) is not None}
    # What a guard did.
    return told | {name: reply[name] for name in ("masked", "refused") if reply.get(name)}
