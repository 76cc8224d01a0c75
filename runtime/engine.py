"""What an engine does for the runtime; `with_llama` is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Score:
    """Log-probabilities of the labels, over the whole vocabulary, and what they cost.

    `tokens` is the length of the prompt, `decoded` how many of its tokens were computed for this
    question rather than taken from the prefix cache, `milliseconds` the time that took.
    """

    logprobs: tuple[float, ...]
    tokens: int
    decoded: int
    milliseconds: float


class Engine(Protocol):
    """A backbone in memory with any number of adapters beside it."""

    @property
    def version(self) -> str:
        """Return the name and version of the engine, for the records."""
        ...

    @property
    def context(self) -> int:
        """Return the longest prompt, in tokens, that can be scored."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text at the start of a sequence, with the tokens that belong there.

        What looks like a special token inside the text is text.
        """
        ...

    def score(self, prompt: Sequence[int], labels: Sequence[int], adapter: str | None) -> Score:
        """Return the log-probabilities of the `labels`, one token each, right after `prompt`.

        `adapter` is the name of a loaded adapter, None the bare backbone.
        """
        ...
