"""Plain prompts in the engine's process: how likely a text is, what comes after it, its tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from tel_edge.runtime.engines.engine import Sampling
from tel_edge.runtime.engines.likelihood import check_ids, likelihoods
from tel_edge.runtime.engines.packed import PackedEngine
from tel_edge.runtime.errors import InputError


@dataclass(frozen=True)
class Prompt:
    """Token ids, and what is wanted of them.

    At most `most` tokens are generated, greedily at `temperature` 0; with `likely` every token has
    its log-probability, those of the prompt only with `echo`.
    """

    ids: tuple[int, ...]
    most: int
    temperature: float
    seed: int
    likely: bool
    echo: bool


def read(message: Mapping[str, Any], engine: PackedEngine) -> Prompt:
    """Return the prompt of a message; ids are taken verbatim, a text as the engine reads one."""
    given = message["prompt"]
    ids = engine.tokenize(given) if isinstance(given, str) else list(given)
    most, likely = int(message["max_tokens"]), bool(message["logprobs"])
    if likely and most > 1:
        raise InputError(f"max_tokens {most} with logprobs: 0 or 1 work")
    if not ids:
        raise InputError("the prompt has no tokens")
    return Prompt(
        tuple(ids), most, float(message["temperature"]), int(message["seed"]), likely,
        bool(message["echo"]),
    )  # fmt: skip


def completed(engine: PackedEngine, prompt: Prompt, adapter: str | None) -> dict[str, Any]:
    """Return the text that follows, its tokens and, where wanted, their log-probabilities."""
    if prompt.likely:
        return _likely(engine, prompt, adapter)
    text = ""
    if prompt.most:
        sampled = prompt.temperature > 0
        how = Sampling(int(sampled), prompt.temperature, prompt.most, f"{prompt.seed} text")
        [(_, made)] = engine.generate([(prompt.ids, how)], adapter)
        text = made.texts[-1]
    echoed = engine.text(prompt.ids) if prompt.echo else ""
    generated = len(engine.tokenize(text)) if text else 0
    return {"text": echoed + text, "prompt_tokens": len(prompt.ids), "generated": generated}


def _likely(engine: PackedEngine, prompt: Prompt, adapter: str | None) -> dict[str, Any]:
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
        "logprobs": {
            "tokens": pieces,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        },
    }


def first(engine: PackedEngine) -> str | None:
    """Return the name of the token that stands before every text; None where none does."""
    before = engine.tokenize("")
    return engine.name(before[0]) if before else None


def tokenized(engine: PackedEngine, text: str, special: bool) -> list[int]:
    """Return the ids of a text, with what stands before every one only if `special`.

    The names of the tokens that begin and end a text are those tokens, as in Hugging Face's
    tokenizers: a harness asks so which they are, and puts the first before its prompts.
    """
    before, named = engine.tokenize(""), {}
    if begin := first(engine):
        named[begin] = before[0]
    with suppress(InputError):
        token, name = engine.end()
        named[name] = token
    ids = list(before) if special else []
    for part in re.split(f"({'|'.join(map(re.escape, named))})", text) if named else [text]:
        ids += [named[part]] if part in named else engine.tokenize(part)[len(before) :]
    return ids


def detokenized(engine: PackedEngine, ids: Sequence[int]) -> str:
    """Return the text of ids. Raises `InputError` for one of no token."""
    check_ids(engine, ids)
    return engine.text(ids)
