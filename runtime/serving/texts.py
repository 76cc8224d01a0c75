"""Plain prompts in the engine's process: how likely a text is, what comes after it, its tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import accumulate
from typing import Any

from tel_edge.runtime.engines.engine import Item, Score
from tel_edge.runtime.engines.likelihood import check_ids, likelihoods
from tel_edge.runtime.engines.packed import PackedEngine
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions import guarding, votes
from tel_edge.runtime.questions.conversation import Message, plain
from tel_edge.runtime.questions.scoring import label_ids
from tel_edge.runtime.questions.writing import Prompt, conversation, tokenized


def read(message: Mapping[str, Any], engine: PackedEngine) -> Prompt:
    """Return the prompt of a message; ids are taken verbatim, a text as the engine reads one."""
    given = message["prompt"]
    ids = engine.tokenize(given) if isinstance(given, str) else list(given)
    most, likely = int(message["max_tokens"]), bool(message["logprobs"])
    if likely and most > 1:
        raise InputError(f"max_tokens {most} with logprobs: 0 or 1 work")
    if not ids:
        raise InputError("the prompt has no tokens")
    check_ids(engine, ids)
    return Prompt(
        tuple(ids), most, float(message["temperature"]), int(message["seed"]), likely,
        bool(message["echo"]), tuple(message.get("stop", ())),
    )  # fmt: skip


def chat(
    message: Mapping[str, Any], engine: PackedEngine, adapted: bool
) -> tuple[Prompt, Item | None]:
    """Return the prompt of a conversation, and what is scored where there are choices.

    By the model's own chat template; what an adapter for questions is asked (`adapted`) is plain
    text, as it was trained.
    """
    messages = [Message(one["role"], one["content"]) for one in message["messages"]]
    choices = tuple(message["choices"])
    if adapted:
        text, tokenize = plain(messages), engine.tokenize
        ids = tokenize(text)
    elif engine.template is None:
        raise InputError("the backbone has no chat template; use /v1/completions")
    else:
        text, ids = conversation(engine, messages, choices)
        tokenize = engine.marked
    # A text of its own length, unless it says how long.
    most = message["max_tokens"] or max(1, min(message["most"], engine.context - len(ids)))
    prompt = Prompt(
        tuple(ids), int(most), float(message["temperature"]), int(message["seed"]),
        stop=tuple(message["stop"]), choices=choices, streamed=bool(message["stream"]),
        spoken=not adapted, masked=tuple(message.get("masked", ())),
    )  # fmt: skip
    if not choices:
        return prompt, None
    return prompt, Item(ids, label_ids(tokenize, text, choices))


def guarded(message: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return a message with what may be heard of it, and the reply to one that is refused."""
    said = [Message(one["role"], one["content"]) for one in message["messages"]]
    heard, masked, refused = guarding.incoming(said)
    made = {**message, "messages": [asdict(one) for one in heard], "masked": masked}
    if not refused:
        return made, None
    reply = {"text": guarding.REFUSAL, "prompt_tokens": 0, "generated": 0, "queue_ms": 0.0}
    told = {"ended": "content_filter", "refused": refused, "masked": masked, "engine_ms": 0.0}
    return made, reply | told


def likely(engine: PackedEngine, prompt: Prompt, adapter: str | None) -> dict[str, Any]:
    """Return the tokens of a prompt, and of what follows, with their log-probabilities."""
    steps = likelihoods(engine, prompt.ids, adapter)
    shown = steps if prompt.most else steps[:-1]
    tokens = [step.token for step in shown]
    values: list[float | None] = [step.logprob for step in shown]
    tops: list[dict[str, float] | None] = [
        {engine.text([step.best]) or f"<{step.best}>": step.highest} for step in shown
    ]
    if prompt.echo:
        # Nothing comes before the first token.
        tokens, values, tops = [prompt.ids[0], *tokens], [None, *values], [None, *tops]
    else:
        kept = slice(-1, None) if prompt.most else slice(0)
        tokens, values, tops = tokens[kept], values[kept], tops[kept]
    pieces = [engine.text([token]) for token in tokens]
    offsets = [0, *accumulate(map(len, pieces[:-1]))] if pieces else []
    return {
        "text": "".join(pieces),
        "prompt_tokens": len(prompt.ids),
        "generated": prompt.most,
        "ended": "length",
        "logprobs": {
            "tokens": pieces,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        },
    }


def chosen(prompt: Prompt, item: Item | None, score: Score) -> dict[str, Any]:
    """Return which of a prompt's choices comes next: the likeliest, or one that is drawn."""
    assert item
    at = votes.pick(score.logprobs)
    if prompt.temperature:
        [at] = votes.draws(score.logprobs, 1, prompt.temperature, prompt.seed, "choice")
    shares = votes.probabilities(score.logprobs)
    return {
        "text": prompt.choices[at],
        "prompt_tokens": len(prompt.ids),
        "generated": len(item.labels[at]),
        "ended": "stop",
        "probabilities": dict(zip(prompt.choices, shares, strict=True)),
    }


def first(engine: PackedEngine) -> str | None:
    """Return the name of the token that stands before every text; None where none does."""
    before = engine.tokenize("")
    return engine.name(before[0]) if before else None


def bordered(engine: PackedEngine, text: str, special: bool) -> list[int]:
    """Return the ids of a text in which the tokens that begin and end a text go by their names.

    As in Hugging Face's tokenizers: a harness learns so which they are, and puts the first one
    before its prompts. `special` as in `tokenized`.
    """
    before = engine.tokenize("")
    named = {engine.name(token): token for token in before}
    with suppress(InputError):
        token, name = engine.end()
        named[name] = token
    ids = list(before) if special else []
    for part in re.split(f"({'|'.join(map(re.escape, named))})", text) if named else [text]:
        ids += [named[part]] if part in named else tokenized(engine, part, False)
    return ids


def detokenized(engine: PackedEngine, ids: Sequence[int]) -> str:
    """Return the text of ids. Raises `InputError` for one of no token."""
    check_ids(engine, ids)
    return engine.text(ids)


def tokens(message: Mapping[str, Any], engine: PackedEngine) -> dict[str, Any]:
    """Return the reply to a message about tokens: of a text, of ids, or which ones stand out."""
    if message["op"] == "tokenize":
        ids = bordered(engine, message["text"], bool(message["special"]))
        return {"tokens": ids, "count": len(ids), "max_model_len": engine.context}
    if message["op"] == "detokenize":
        return {"prompt": detokenized(engine, message["tokens"])}
    token, name = engine.end()
    told = {"eos_token": name, "eos_token_id": token, "vocabulary": engine.vocabulary}
    return {**told, "bos_token": first(engine)}
