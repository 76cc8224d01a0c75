"""The 60/20/20 split, a pure function of (questions, seed)."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tel_edge.runtime.files import digest
from tel_edge.runtime.questions.question import Question

SHARES = (0.6, 0.2, 0.2)
T = TypeVar("T")


@dataclass(frozen=True)
class Split:
    """Three parts that share no question text; `test` is the unseen part.

    `digest` is a SHA-256 over the questions of each part, whole, and the seed.
    """

    train: tuple[Question, ...]
    validation: tuple[Question, ...]
    test: tuple[Question, ...]
    seed: int
    digest: str

    def part(self, name: str) -> tuple[Question, ...]:
        """Return the part called train, validation or test."""
        parts: dict[str, tuple[Question, ...]] = {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
        }
        return parts[name]

    @property
    def size(self) -> int:
        """Return the number of questions in all parts."""
        return len(self.train) + len(self.validation) + len(self.test)


def normalised(text: str) -> str:
    """Return the text without case, punctuation, accents' forms or extra space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))


def key(text: str) -> str:
    """Return what two texts have in common if and only if they count as equal."""
    # A text of nothing but symbols has no normal form; then it stands for itself.
    return normalised(text) or text


def split(questions: Sequence[Question], seed: int = 42) -> Split:
    """Deal the questions 60/20/20, those with equal normalised texts to one part.

    Groups are shuffled and laid end to end; a group goes where its first question falls, so each
    part is within one group of its share. Order inside a part is that of `questions`.
    """
    groups: dict[str, list[int]] = {}
    for at, question in enumerate(questions):
        groups.setdefault(key(question.text), []).append(at)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    bounds = (SHARES[0] * len(questions), (SHARES[0] + SHARES[1]) * len(questions))
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    dealt = 0
    for group in order:
        parts[sum(dealt >= bound for bound in bounds)].extend(group)
        dealt += len(group)
    train, validation, test = (tuple(questions[at] for at in sorted(part)) for part in parts)
    return _made(train, validation, test, seed)


def _made(
    train: tuple[Question, ...],
    validation: tuple[Question, ...],
    test: tuple[Question, ...],
    seed: int,
) -> Split:
    rows = [
        [(q.id, q.text, q.choices, q.answer) for q in part] for part in (train, validation, test)
    ]
    return Split(train, validation, test, seed, digest.of_value([seed, rows]))


def apart(splits: Mapping[str, Split]) -> dict[str, Split]:
    """Return the splits for training on all of them together, by the same names.

    Each is dealt alone, so two may hold a text in common. A train part loses the questions whose
    text stands in another's validation or test part, a validation part those whose text stands in
    another's test part; test parts stay whole. A split that loses nothing keeps its digest.
    """
    # Inside a split no text stands in two parts, so its own parts take nothing from it.
    test = {key(question.text) for made in splits.values() for question in made.test}
    held = test | {key(question.text) for made in splits.values() for question in made.validation}
    return {
        name: _made(without(made.train, held), without(made.validation, test), made.test, made.seed)
        for name, made in splits.items()
    }


def without(questions: Sequence[Question], keys: Collection[str]) -> tuple[Question, ...]:
    """Return the questions whose text has none of the `keys`."""
    return tuple(question for question in questions if key(question.text) not in keys)


def capped(questions: Sequence[T], most: int | None, seed: int) -> tuple[T, ...]:
    """Return at most `most` of the questions, a random sample in their own order."""
    if most is None or len(questions) <= most:
        return tuple(questions)
    kept = random.Random(f"cap {seed}").sample(range(len(questions)), most)
    return tuple(questions[at] for at in sorted(kept))
