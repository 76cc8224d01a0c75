"""From questions to what an engine scores, and from a stream of them to answers in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from tel_edge.runtime.engines import packing
from tel_edge.runtime.engines.engine import Engine, Generation, Item, Sampling, Score, Unanswered
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions import protocol
from tel_edge.runtime.questions.prompt import beginning, labels, render
from tel_edge.runtime.questions.question import Question

T = TypeVar("T")
R = TypeVar("R")
# A question and the name of the adapter to ask, None being the bare backbone.
Asked = tuple[Question, str | None]


class TooLong(InputError):
    """A prompt that does not fit the engine's context."""


class Scores(Protocol):
    """What answers questions, whatever computes: see `Scorer`."""

    def many(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Score | InputError]]:
        """Yield (index, score or why there is none) as they are ready."""
        ...

    def texts(
        self, asked: Sequence[Asked], k: int, temperature: float, limit: int, seed: int
    ) -> Iterator[tuple[int, Generation | InputError]]:
        """Yield (index, greedy text first and then `k` sampled ones, or why there are none)."""
        ...


def label_ids(
    tokenize: Callable[[str], list[int]], prompt: str, of: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    """Return the ids of each label after `prompt`, of which it may have any number.

    This is what training, the gate and every engine mean by a label. Raises `InputError` where the
    tokens of the prompt would change, since then the logits at its end would not be about the
    labels, and where two labels are the same tokens.
    """
    ids = tokenize(prompt)
    found: list[tuple[int, ...]] = []
    for label in of:
        whole = tokenize(prompt + label)
        found.append(tuple(whole[len(ids) :]) if whole[: len(ids)] == ids else ())
    for label, own in zip(of, found, strict=True):
        if not own:
            raise InputError(f"label {label!r} has no tokens of its own for this tokenizer")
        if found.count(own) > 1:
            raise InputError(f"label {label!r} has the same tokens as another label")
    return tuple(found)


class Scorer:
    """Scores questions with one engine; keeps the ids of the labels, which never change."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._ids: dict[tuple[str, ...], tuple[tuple[int, ...], ...]] = {}
        self._beginnings: dict[str, list[int]] = {}

    def item(self, question: Question) -> Item:
        """Return the tokens of a question's prompt and labels.

        Raises `TooLong` if they do not fit the engine's context.
        """
        prompt, answers = render(question), labels(question)
        ids = self.engine.tokenize(prompt)
        # Before more work goes into a request of any length than reading it.
        self._check(len(ids), 0)
        ends = self._ids.get(answers) or label_ids(self.engine.tokenize, prompt, answers)
        self._check(len(ids), max(map(len, ends)) - 1)
        trie = packing.trie(ends)
        self._check(len(ids), len(trie.nodes))
        if trie.branches > packing.BRANCHES:
            raise InputError(
                f"the labels have {trie.branches} branches, at most {packing.BRANCHES} work"
            )
        # Labels of a question's own would pile up in a long stream.
        if not question.spelled or len(self._ids) < 100:
            self._ids[answers] = ends
        return Item(ids, ends, self._known(beginning(question), ids))

    def _known(self, text: str, ids: Sequence[int]) -> int:
        """Return how many tokens of a prompt are those of the text that its kind begins with."""
        if text not in self._beginnings:
            self._beginnings[text] = self.engine.tokenize(text)
        return packing.common(self._beginnings[text], ids)

    def _check(self, tokens: int, more: int) -> None:
        if tokens + more > self.engine.context:
            and_more = f" and {more} more" if more else ""
            raise TooLong(
                f"the prompt has {tokens} tokens{and_more}, the context holds {self.engine.context}"
            )

    def __call__(self, question: Question, adapter: str | None) -> Score:
        """Return the label log-probabilities of one question. Raises `InputError`."""
        [(_, score)] = self.engine.score([self.item(question)], adapter)
        return score

    def many(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Score | InputError]]:
        """Yield (index, score or why there is none) as they are ready, an adapter at a time."""
        yield from self._grouped(asked, self.item, self.engine.score)

    def texts(
        self, asked: Sequence[Asked], k: int, temperature: float, limit: int, seed: int
    ) -> Iterator[tuple[int, Generation | InputError]]:
        """Yield (index, greedy text first and then `k` sampled ones, or why there are none).

        The random numbers of a question are a function of (seed, its id).
        """

        def prompt(question: Question) -> tuple[list[int], Sampling]:
            ids = self.engine.tokenize(protocol.render(question))
            self._check(len(ids), (k + 1) * limit)
            known = self._known(protocol.beginning(question), ids)
            return ids, Sampling(k, temperature, limit, f"{seed} {question.id}", known)

        yield from self._grouped(asked, prompt, self.engine.generate)

    def _grouped(
        self,
        asked: Sequence[Asked],
        made: Callable[[Question], T],
        work: Callable[[Sequence[T], str | None], Iterator[tuple[int, R]]],
    ) -> Iterator[tuple[int, R | InputError]]:
        groups: dict[str | None, list[tuple[int, T]]] = {}
        for index, (question, adapter) in enumerate(asked):
            try:
                item = made(question)
            except InputError as error:
                yield index, error
                continue
            groups.setdefault(adapter, []).append((index, item))
        for adapter, group in groups.items():
            left = {index for index, _ in group}
            try:
                for at, result in work([item for _, item in group], adapter):
                    left.discard(group[at][0])
                    yield group[at][0], result
            except Unanswered as error:
                for at, reason in sorted(error.reasons.items()):
                    yield group[at][0], reason
            except InputError as error:
                # An adapter that cannot be used: the other groups go on.
                for index in sorted(left):
                    yield index, error
