"""Texts while they grow: what stops one, and what of it is sure enough to be shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tel_edge.runtime.engines.engine import Sampling
from tel_edge.runtime.engines.packed import PackedEngine
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.conversation import Message, templated

Guard = Callable[[str, bool], tuple[str, bool]]

# What a text that ends in half a character has there.
BROKEN_OFF = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Prompt:
    """Token ids, and what is wanted of them.

    At most `most` tokens are generated, greedily at `temperature` 0, up to the first of the texts
    `stop`. With `likely` every token has its log-probability, those of the prompt only with `echo`.
    Of `choices`, if there are any, one is chosen instead. `done` are the tokens that were generated
    before, of whose text `shown` characters were sent; `read` tokens of the prompt were read. A
    text that is `spoken`, an answer in a conversation, ends before any special token; `masked`
    names what of that was hidden.
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
    read: int = 0
    spoken: bool = False
    masked: tuple[str, ...] = ()


class Text:
    """A text while it grows; `tell` is given what is sure of it and returns whether it goes on.

    `ended` is why it ended, in OpenAI's words, None where `tell` ended it. `guard` is given what
    there is and whether that is all, and returns what of it may be shown, and whether it has to
    end there; what it shows of a text it shows of a longer one, too. `reads_on` is that of
    `Sampling`. `decoded` is how many tokens of the prompt were computed.
    """

    def __init__(
        self,
        engine: PackedEngine,
        prompt: Prompt,
        tell: Callable[[str], bool],
        guard: Guard | None = None,
        reads_on: Callable[[int, int], bool] | None = None,
    ) -> None:
        self.engine, self.prompt, self.tell, self.guard = engine, prompt, tell, guard
        self.tokens, self.shown, self.decoded = list(prompt.done), prompt.shown, 0
        self.reads_on, self.read = reads_on, prompt.read
        self.ended: str | None = None
        self._stopped = False

    def write(self, adapter: str | None) -> Prompt:
        """Generate until it ends; return the prompt to go on with."""
        prompt, sampled = self.prompt, self.prompt.temperature > 0
        how = Sampling(
            int(sampled), prompt.temperature, prompt.most - len(prompt.done), f"{prompt.seed} text",
            spent=len(prompt.done), kept=True, goes_on=self._more, reads_on=self._reading,
        )  # fmt: skip
        for _, made in self.engine.generate([((*prompt.ids, *prompt.done), how)], adapter):
            self.decoded = made.decoded
        if self.ended is None and not self._stopped:
            self.ended = "length" if len(self.tokens) >= prompt.most else "stop"
        if self.ended:
            text, over = self._all()
            self.ended = "content_filter" if over else self.ended
            self._tell(text)
        return replace(prompt, done=tuple(self.tokens), shown=self.shown, read=self.read)

    @property
    def text(self) -> str:
        """Return what there is of it, up to the first text that stops it."""
        return self._all()[0]

    def _all(self) -> tuple[str, bool]:
        made = self.engine.text(self.tokens)
        ends = [at for stop in self.prompt.stop if (at := made.find(stop)) >= 0]
        made = made[: min(ends)] if ends else made
        return self.guard(made, True) if self.guard else (made, False)

    def _more(self, turn: int, tokens: Sequence[int]) -> bool:
        # A sampled text comes beside the likeliest one, which nobody wants.
        if turn != int(self.prompt.temperature > 0):
            return False
        if self.prompt.spoken and special(self.engine, tokens[-1]):
            self.ended = "stop"
            return False
        self.tokens = [*self.prompt.done, *tokens]
        self.read = len(self.prompt.ids)
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

    def _reading(self, there: int, read: int) -> bool:
        # What was read and has been lost since is not read in vain a second time.
        lost, self.read = there < self.prompt.read, read
        if lost or self.reads_on is None or self.reads_on(there, read):
            return True
        self._stopped = True
        return False

    def _show(self, sure: str) -> bool:
        if self.guard:
            sure, over = self.guard(sure, False)
            if over:
                self.ended = "content_filter"
                return False
        return self._tell(sure)

    def _tell(self, sure: str) -> bool:
        new, self.shown = sure[self.shown :], max(self.shown, len(sure))
        return self.tell(new)


def tokenized(engine: PackedEngine, text: str, special: bool) -> list[int]:
    """Return the ids of a text, with what stands before every one only if `special`."""
    ids = engine.tokenize(text)
    return ids if special else ids[len(engine.tokenize("")) :]


def special(engine: PackedEngine, token: int) -> bool:
    """Return whether a token is one that no text has, but what a chat template makes."""
    name = engine.name(token)
    return engine.marked(name) == [token] != tokenized(engine, name, False)


def conversation(
    engine: PackedEngine, messages: Sequence[Message], others: Sequence[str] = ()
) -> tuple[str, list[int]]:
    """Return the text and the ids of a conversation, by the model's own chat template.

    Raises `InputError` for a model that has none, and where a message, or one of `others`, has what
    is a special token.
    """
    if engine.template is None:
        raise InputError("the backbone has no chat template, so nobody can talk to it")
    for given in (*(one.content for one in messages), *others):
        if engine.marked(given) != tokenized(engine, given, False):
            raise InputError(f"{given[:80]!r} has what is a special token; leave it out")
    text = templated(engine.template, messages)
    return text, engine.marked(text)
