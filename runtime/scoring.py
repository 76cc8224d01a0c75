"""From label log-probabilities to a pick, draws and a majority."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

from tel_edge.runtime.engine import Engine, Score
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.prompt import labels, render
from tel_edge.runtime.question import Question


def pick(logprobs: Sequence[float]) -> int:
    """Return the index of the largest value, the first of equal ones."""
    return max(range(len(logprobs)), key=lambda at: (logprobs[at], -at))


def probabilities(logprobs: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Return the distribution over the labels alone, at that temperature; it sums to 1."""
    top = max(logprobs)
    weights = [math.exp((value - top) / temperature) for value in logprobs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def draws(
    logprobs: Sequence[float], k: int, temperature: float, seed: int, id: str
) -> tuple[int, ...]:
    """Return `k` answers sampled from the label distribution.

    The random numbers are a function of (seed, question id) alone, so neither the order of the
    questions nor their batch changes them.
    """
    rng = random.Random(f"{seed} {id}")
    shares = probabilities(logprobs, temperature)
    return tuple(rng.choices(range(len(shares)), shares, k=k))


def majority(votes: Sequence[int]) -> int:
    """Return the most frequent vote; of equally frequent ones the first seen wins.

    The rule is that of `Counter.most_common`, which the open-telco harness uses.
    """
    return Counter(votes).most_common(1)[0][0]


def label_ids(engine: Engine, prompt: str, of: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return (ids of the prompt, the one id of each label after it).

    Raises `InputError` where a label is not one token or changes the tokens before it: then
    the logits at the prompt's end would not be about the labels.
    """
    ids = engine.tokenize(prompt)
    ends = []
    for label in of:
        whole = engine.tokenize(prompt + label)
        if len(whole) != len(ids) + 1 or whole[:-1] != ids:
            raise InputError(f"label {label!r} is not one token of its own for this tokenizer")
        ends.append(whole[-1])
    return ids, ends


class TooLong(InputError):
    """A prompt that does not fit the engine's context."""


class Scorer:
    """Scores questions with one engine; keeps the ids of the labels, which never change."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._ids: dict[tuple[str, ...], list[int]] = {}

    def __call__(self, question: Question, adapter: str | None) -> Score:
        """Return the label log-probabilities of one question.

        Raises `TooLong` if the prompt is longer than the engine's context.
        """
        prompt, answers = render(question), labels(question)
        if answers not in self._ids:
            _, self._ids[answers] = label_ids(self.engine, prompt, answers)
        ids = self.engine.tokenize(prompt)
        if len(ids) > self.engine.context:
            raise TooLong(
                f"the prompt has {len(ids)} tokens, the context holds {self.engine.context}"
            )
        return self.engine.score(ids, self._ids[answers], adapter)
