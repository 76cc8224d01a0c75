"""Plain prompts in the engine's process: how likely a text is, what comes after it, its tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from tel_edge.runtime.engines.engine import Item, Sampling, Score
from tel_edge.runtime.engines.likelihood import check_ids, likelihoods
from tel_edge.runtime.engines.packed import PackedEngine
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions import votes
from tel_edge.runtime.questions.conversation import Message, plain, templated
from tel_edge.runtime.questions.scoring import label_ids

# What a text that ends in half a character has there.
BROKEN_OFF = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Prompt:
    """Token ids, and what is wanted of them.

    At most `most` tokens are generated, greedily at `temperature` 0, up to the first of the texts
    `stop`. With `likely` every token has its log-probability, those of the prompt only with `echo`.
    Of `choices`, if there are any, one is chosen instead. `done` are the tokens that were generated
    before, of whose text `shown` characters were sent.
    """

    ids: tuple[int, ...]
    most: int
    temperature: float
    seed: int
    likely: bool = False
    echo: bool = False
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    streamed: bool = False
    done: tuple[int, ...] = ()
    shown: int = 0


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

    By the model's own chat template; what an adapter is asked is plain text, as it was trained.
    """
    messages = [Message(one["role"], one["content"]) for one in message["messages"]]
    choices = tuple(message["choices"])
    if adapted:
        text, tokenize = plain(messages), engine.tokenize
    elif engine.template is None:
        raise InputError("the backbone has no chat template; use /v1/completions")
    else:
        for given in (*(one.content for one in messages), *choices):
            if engine.marked(given) != tokenized(engine, given, False):
                raise InputError(f"{given[:80]!r} has what is a special token; leave it out")
        text, tokenize = templated(engine.template, messages), engine.marked
    ids = tokenize(text)
    # A text of its own length, unless it says how long.
    most = message["max_tokens"] or max(1, min(message["most"], engine.context - len(ids)))
    prompt = Prompt(
        tuple(ids), int(most), float(message["temperature"]), int(message["seed"]),
        stop=tuple(message["stop"]), choices=choices, streamed=bool(message["stream"]),
    )  # fmt: skip
    if not choices:
        return prompt, None
    return prompt, Item(ids, label_ids(tokenize, text, choices))


class Text:
    """A text while it grows; `tell` is given what is sure of it and returns whether it goes on.

    `ended` is why it ended, in OpenAI's words, None where `tell` ended it.
    """

    def __init__(self, engine: PackedEngine, prompt: Prompt, tell: Callable[[str], bool]) -> None:
        self.engine, self.prompt, self.tell = engine, prompt, tell
        self.tokens, self.shown = list(prompt.done), prompt.shown
        self.ended: str | None = None
        self._stopped = False

    def write(self, adapter: str | None) -> Prompt:
        """Generate until it ends; return the prompt to go on with."""
        prompt, sampled = self.prompt, self.prompt.temperature > 0
        how = Sampling(
            int(sampled), prompt.temperature, prompt.most - len(prompt.done), f"{prompt.seed} text",
            spent=len(prompt.done), goes_on=self._more,
        )  # fmt: skip
        for _ in self.engine.generate([((*prompt.ids, *prompt.done), how)], adapter):
            pass
        if self.ended is None and not self._stopped:
            self.ended = "length" if len(self.tokens) >= prompt.most else "stop"
        if self.ended:
            self._show(self.text)
        return replace(prompt, done=tuple(self.tokens), shown=self.shown)

    @property
    def text(self) -> str:
        """Return what there is of it, up to the first text that stops it."""
        made = self.engine.text(self.tokens)
        ends = [at for stop in self.prompt.stop if (at := made.find(stop)) >= 0]
        return made[: min(ends)] if ends else made

    def _more(self, turn: int, tokens: Sequence[int]) -> bool:
        # A sampled text comes beside the likeliest one, which nobody wants.
        if turn != int(self.prompt.temperature > 0):
            return False
        self.tokens = [*self.prompt.done, *tokens]
        made = self.engine.text(self.tokens)
        if any(stop in made for stop in self.prompt.stop):
            self.ended = "stop"
            return False
        # What may be the beginning of a stop, or of a character, is not sure yet.
        open_ends = (stop[:size] for stop in self.prompt.stop for size in range(1, len(stop)))
        held = max((len(end) for end in open_ends if made.endswith(end)), default=0)
        sure = made[: len(made) - held].rstrip(BROKEN_OFF)
        goes_on = self._show(sure)
        self._stopped = not goes_on and len(self.tokens) < self.prompt.most
        return goes_on

    def _show(self, sure: str) -> bool:
        new, self.shown = sure[self.shown :], max(self.shown, len(sure))
        return self.tell(new)


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


def tokenized(engine: PackedEngine, text: str, special: bool) -> list[int]:
    """Return the ids of a text, with what stands before every one only if `special`."""
    ids = engine.tokenize(text)
    return ids if special else ids[len(engine.tokenize("")) :]


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
