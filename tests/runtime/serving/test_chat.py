"""Conversations: the text that a model is given, texts that grow, choices, and OpenAI's form."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import for_engine
import pytest

for name in ("starlette", "msgspec", "prometheus_client", "httpx"):
    pytest.importorskip(name)
import msgspec  # noqa: E402
import test_front  # noqa: E402
import test_texts  # noqa: E402
from test_front import Service, served  # noqa: E402

from tel_edge.runtime.answerer import Answerer  # noqa: E402
from tel_edge.runtime.engines.engine import Template  # noqa: E402
from tel_edge.runtime.engines.likelihood import likelihoods  # noqa: E402
from tel_edge.runtime.engines.with_llama import LlamaEngine  # noqa: E402
from tel_edge.runtime.errors import InputError  # noqa: E402
from tel_edge.runtime.questions.conversation import Message, plain, templated  # noqa: E402
from tel_edge.runtime.questions.writing import Prompt, Text  # noqa: E402
from tel_edge.runtime.serving import chat, worker  # noqa: E402
from tel_edge.runtime.serving.problems import Failed  # noqa: E402
from tel_edge.runtime.serving.worker import Worker  # noqa: E402

folder = for_engine.folder
new = for_engine.new
engine = for_engine.engine
bundle = test_front.bundle

LINES = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | trim }}\n{% endfor %}"
SAID = [Message("system", "Be brief."), Message("user", " Which? ")]


def test_the_text_that_a_model_is_given() -> None:
    made = Template(LINES + "{% if add_generation_prompt %}{{ eos_token }}{% endif %}", "", "<e>")
    assert templated(made, SAID) == "system: Be brief.\nuser: Which?\n<e>"
    assert plain(SAID) == "Be brief.\n\n Which? "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for", "TemplateSyntaxError"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% for a in range(9999999) %}{% endfor %}", "OverflowError"),
    ],
)
def test_a_template_that_cannot_be_used(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        templated(Template(text, "", ""), SAID)


# Texts


def written(engine: LlamaEngine, prompt: Prompt, most: int | None = None) -> tuple[Text, list[str]]:
    """Write a text, in parts of `most` tokens; return it and what was told."""
    told: list[str] = []

    def tell(new: str) -> bool:
        told.append(new)
        return most is None or len(text.tokens) - len(text.prompt.done) < most

    while True:
        text = Text(engine, prompt, tell)
        prompt = text.write("oranbench")
        if text.ended:
            return text, told


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_text_in_parts_is_the_whole_one(engine: LlamaEngine, temperature: float) -> None:
    ids = tuple(engine.tokenize(for_engine.PROMPTS[0]))
    prompt = Prompt(ids, 9, temperature, 3)
    whole, told = written(engine, prompt)
    parts, also = written(engine, prompt, 2)
    assert whole.text == parts.text == "".join(told) == "".join(also)
    assert whole.tokens == parts.tokens
    assert len(told) > 2


def test_a_text_ends_before_what_stops_it(engine: LlamaEngine) -> None:
    ids = tuple(engine.tokenize(for_engine.PROMPTS[0]))
    whole, _ = written(engine, Prompt(ids, 9, 0, 3))
    assert whole.ended == "length"
    stop = whole.text[3:6]
    text, told = written(engine, Prompt(ids, 9, 0, 3, stop=(stop, "never")))
    assert (text.text, text.ended) == (whole.text[: whole.text.index(stop)], "stop")
    # Nothing of the stop was told, not even its beginning.
    assert "".join(told) == text.text


def asked(engine: LlamaEngine, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    made = Worker(Answerer(engine, adapters=("oranbench",)), "base", sent.append)
    for at, message in enumerate(messages):
        made.take({"id": str(at), **message})
    made.take({"op": "drain"})
    made.run()
    return sent


def talk(content: str = "Which?", **of: Any) -> dict[str, Any]:
    usual = {"max_tokens": 6, "most": 9, "temperature": 0, "seed": 1, "stop": [], "choices": []}
    said = [{"role": "user", "content": content}]
    return {"op": "chat", "messages": said, "stream": False, **usual, **of}


def test_others_have_their_turn_between_parts_of_a_text(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SLICE", 2)
    row = {"question": "Which?", "choices": ["x", "y"]}
    question = {"op": "ask", "row": row, "model": "oranbench"}
    alone = asked(engine, talk(model="oranbench"))[0]["reply"]["text"]
    first, second = asked(engine, talk(model="oranbench"), question)
    assert [first["id"], second["id"]] == ["1", "0"]
    assert second["reply"]["text"] == alone
    assert second["reply"]["ended"] == "length"


def test_others_have_their_turn_while_a_long_prompt_is_read(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = talk("Which x, which y? " * 12, model="oranbench", max_tokens=2)
    alone = asked(engine, long)[0]["reply"]
    engine.forget()
    monkeypatch.setattr(engine, "most", 32)
    row = {"question": "Which?", "choices": ["x", "y"]}
    question = {"op": "ask", "row": row, "model": "oranbench"}
    first, second = asked(engine, long, question)
    assert [first["id"], second["id"]] == ["1", "0"]
    assert second["reply"]["prompt_tokens"] > 3 * 32
    assert (second["reply"]["text"], second["reply"]["generated"]) == (alone["text"], 2)


def test_a_prompt_that_cannot_be_kept_is_read_whole(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two that take each other's room would begin anew for ever."""
    decoded: list[int] = []
    decode = engine.decode

    def counted(entries: Any) -> Any:
        decoded.append(len(entries))
        return decode(entries)

    monkeypatch.setattr(engine, "most", 32)
    monkeypatch.setattr(engine, "decode", counted)
    monkeypatch.setattr(engine.cache, "resume", lambda key: engine.cache.clear() or 0)
    long = [talk(f"Which {x}, which y? " * 12, model="oranbench", max_tokens=1) for x in "xz"]
    replies = asked(engine, *long)
    assert [one["reply"]["generated"] for one in replies] == [1, 1]
    # One part each that was lost, and both prompts whole.
    tokens = sum(one["reply"]["prompt_tokens"] for one in replies)
    assert sum(decoded) <= tokens + 2 * 32


def test_no_text_has_more_tokens_than_it_may(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its last token is the last of a part, while others wait."""
    monkeypatch.setattr(worker, "SLICE", 2)
    row = {"question": "Which?", "choices": ["x", "y"]}
    question = {"op": "ask", "row": row, "model": "oranbench"}
    [first, *_] = asked(engine, talk(model="oranbench", max_tokens=2), question)
    assert (first["reply"]["generated"], first["reply"]["ended"]) == (2, "length")


def test_texts_are_not_refused_for_what_adapters_cost(engine: LlamaEngine) -> None:
    """One token after a swap tells nothing of what generating costs."""
    made = Worker(Answerer(engine, adapters=("oranbench",)), "base", lambda _: None)
    before = made._cost
    for at in range(5):
        made.take({"id": str(at), **talk(model="oranbench", max_tokens=1)})
    made.take({"op": "drain"})
    made.run()
    assert made._cost == before
    # And a text is judged by what texts have, not by what they may have.
    assert made._generating(512) == made._generating(64) < 400


def test_a_message_that_is_far_too_long_is_not_read(engine: LlamaEngine) -> None:
    long = "é" * (33 * engine.context)
    rows = [
        {"op": "tokenize", "text": long, "special": True},
        {"op": "ask", "row": {"question": "x", "choices": ["a", "b"], "id": long}},
        {"op": "ask", "row": {"question": "x", "choices": ["a", "b"]}, "model": long},
        talk(long),
    ]
    made = asked(engine, *rows)
    assert [one["error"]["code"] for one in made] == ["context_length_exceeded"] * 4
    assert all(len(one["error"]["message"]) < 100 for one in made)


@pytest.mark.parametrize("message", [talk(model="auto"), {**test_texts.USUAL, "op": "complete",
                                     "prompt": "x", "model": "auto"}, talk(model="")])  # fmt: skip
def test_no_model_is_silently_the_bare_one(engine: LlamaEngine, message: dict[str, Any]) -> None:
    [made] = asked(engine, message)
    assert made["error"]["code"] == "model_not_found"


def test_a_choice_is_scored_as_what_comes_next(engine: LlamaEngine) -> None:
    [made] = asked(engine, talk(model="oranbench", choices=[" A", " B", " B or C"]))
    reply = made["reply"]
    whole = engine.tokenize("Which? B or C")
    steps = likelihoods(engine, whole, "oranbench")[len(engine.tokenize("Which?")) - 1 : -1]
    value = sum(step.logprob for step in steps)
    shares: dict[str, float] = reply["probabilities"]
    assert sum(shares.values()) == pytest.approx(1)
    assert reply["text"] == max(shares, key=shares.__getitem__)
    [longer] = asked(engine, talk(model="oranbench", choices=[" A", " B or C"]))
    other = longer["reply"]["probabilities"]
    first = likelihoods(engine, engine.tokenize("Which? A"), "oranbench")[-2].logprob
    assert math.log(other[" B or C"] / other[" A"]) == pytest.approx(value - first, abs=1e-3)


def test_a_backbone_without_a_template_takes_no_conversation(engine: LlamaEngine) -> None:
    [made] = asked(engine, talk())
    assert "no chat template" in made["error"]["message"]


def test_special_tokens_are_no_text_of_a_message(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, name = engine.end()
    monkeypatch.setattr(engine, "template", Template(LINES, "", name))
    [made] = asked(engine, talk(f"Which? {name}"))
    assert "special token" in made["error"]["message"]
    [good] = asked(engine, talk())
    assert good["reply"]["generated"] == 6
    ids = engine.marked("user: Which?\n")
    assert good["reply"]["prompt_tokens"] == len(ids)


# OpenAI's form


def given(**of: Any) -> chat.Chat:
    messages = [{"role": "user", "content": "Which?"}]
    return msgspec.convert({"messages": messages, **of}, chat.Chat)


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ({"messages": []}, "0 messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "the last message"),
        ({"n": 2}, "n 2"),
        ({"tools": [{}]}, "tools"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"temperature": 3}, "temperature 3"),
        ({"stop": ["", "a"]}, "stop"),
        ({"guided_choice": ["a"], "structured_outputs": {"choice": ["a"]}}, "several lists"),
        ({"guided_choice": ["a", "a"]}, "different"),
        ({"response_format": {"type": "json_schema"}}, "json_schema is missing"),
    ],
)
def test_what_is_refused(of: dict[str, Any], said: str) -> None:
    with pytest.raises(Failed, match=said):
        chat.message(given(**of))


@pytest.mark.parametrize(
    ("schema", "made"),
    [
        ({"enum": ["a", "b"]}, ['"a"', '"b"']),
        (
            {
                "type": "object",
                "properties": {"of": {"type": "string", "enum": ["a", 'b"c']}},
                "required": ["of"],
                "additionalProperties": False,
            },
            ['{"of": "a"}', '{"of": "b\\"c"}'],
        ),
        ({"type": "string"}, "only an enum"),
        ({"enum": [1]}, "only an enum"),
        ({"enum": ["a"], "minLength": 2}, "minLength"),
        ({"properties": {"a": 5}, "required": ["a"]}, "an object is needed"),
        ({"properties": {"a": None}, "required": ["a"]}, "an object is needed"),
        ({"properties": ["a"], "required": ["a"]}, "not supported"),
        ({"properties": None}, "not supported"),
        ({"type": "array", "enum": ["a"]}, "type 'array'"),
        ({"type": "object", "properties": {"a": {}, "b": {}}}, "one property"),
        ({"type": "object", "properties": {"a": {"enum": ["x"]}}}, "required"),
    ],
)
def test_what_an_enum_allows(schema: dict[str, Any], made: Sequence[str] | str) -> None:
    if isinstance(made, str):
        with pytest.raises(Failed, match=made):
            chat.enumerated(schema)
    else:
        assert chat.enumerated(schema) == made
        assert all(json.loads(text) for text in made)


def events(body: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in body.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_over_http(bundle: Path) -> None:
    async def work(service: Service) -> None:
        async def post(**of: Any) -> Any:
            said = [{"role": "user", "content": [{"type": "text", "text": "gold 2"}]}]
            body = {"messages": said, "model": "oranbench", "temperature": 0, **of}
            return await service.client.post("/v1/chat/completions", json=body)

        made = (await post()).json()
        [choice] = made["choices"]
        assert choice["message"]["content"] == "Well.\nANSWER: C"
        assert choice["finish_reason"] == "stop"
        assert made["usage"]["completion_tokens"] > 9
        reply = await post(stream=True, stream_options={"include_usage": True})
        assert reply.headers["content-type"].startswith("text/event-stream")
        found = events(reply.text)
        texts_of = [one["choices"][0]["delta"].get("content", "") for one in found[:-1]]
        assert "".join(texts_of) == "Well.\nANSWER: C"
        assert len(texts_of) > 5
        assert found[-2]["choices"][0]["finish_reason"] == "stop"
        assert found[-1]["usage"] == made["usage"]
        chosen = (await post(guided_choice=["A", "B", "C"])).json()
        assert chosen["choices"][0]["message"]["content"] == "C"
        assert chosen["probabilities"]["C"] == pytest.approx(0.7)
        streamed = events((await post(guided_choice=["A", "B", "C"], stream=True)).text)
        assert streamed[1]["choices"][0]["delta"]["content"] == "C"
        for of in ({"stream": True, "model": "none"}, {"model": "none"}):
            refused = await post(**of)
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                404, "model_not_found",
            )  # fmt: skip
        bare = (await post(model=None)).json()
        assert bare["choices"][0]["message"]["content"] == "Hard to say."
        assert bare["model"] == "tel-nano"
        late = await post(timeout_ms=-1)
        assert late.status_code == 400

    served(bundle, work)


def test_a_text_that_nobody_waits_for_is_not_written(engine: LlamaEngine) -> None:
    sent: list[dict[str, Any]] = []

    def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if "part" in message:
            made.take({"op": "cancel", "id": message["id"]})

    made = Worker(Answerer(engine, adapters=("oranbench",)), "base", send)
    made.take({"id": "0", **talk(model="oranbench", stream=True, max_tokens=400)})
    made.take({"op": "drain"})
    made.run()
    assert [one["id"] for one in sent if "part" in one] == ["0"]
    assert all("reply" not in one and "error" not in one for one in sent)
