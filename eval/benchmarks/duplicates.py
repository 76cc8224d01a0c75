"""Near-duplicates: scored questions that ask nearly what a train question asks.

The split keeps equal normalised texts together; a rewording of a few words can still fall on the
other side of it, and the share of right answers then says less about unseen questions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tel_edge.eval import documents
from tel_edge.eval.benchmarks.split import Split, key, normalised
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need
from tel_edge.runtime.questions.categories import Category
from tel_edge.runtime.questions.question import Question

SCHEMA_VERSION = 1
THRESHOLD = 0.8
# Scored questions compared at a time: 256 beside 6,000 of train take some 50 MB.
BLOCK = 256
# Weights are whole multiples of 1 / SCALE, so that sums of them are exact in any order.
SCALE = 2**20
T = TypeVar("T")


@dataclass(frozen=True)
class Duplicate:
    """A scored question and the train question most like it.

    `similarity` is in 0 to 1; `same_answer` says that the normalised texts of both right choices
    are the same.
    """

    id: str
    train_id: str
    similarity: float
    same_answer: bool


@dataclass(frozen=True)
class Duplicates:
    """The near-duplicates of one category: which of the `of` scored questions have one in train.

    `dataset`, `part` and `split` (its digest) say which questions were compared. `pairs` are those
    with a similarity of at least `threshold`, in the order of the scored questions.
    """

    category: str
    dataset: str
    part: str
    split: str
    of: int
    threshold: float
    pairs: tuple[Duplicate, ...]
    schema_version: int = SCHEMA_VERSION


def terms(text: str) -> frozenset[str]:
    """Return the set of words that a text is compared by; a number such as 5.2-1 is one word."""
    # Single words, not pairs or runs of them. In real questions a rewording moves clauses about,
    # which breaks many runs, and two questions about different things differ in one word, which
    # breaks few: runs of words rank the second above the first. With single words the order is
    # nothing and all depends on which words differ, which is what the weights are for. Texts of
    # hundreds of words are told apart as well by single words as by runs of three.
    words: list[str] = []
    for digits, run in groupby(normalised(text).split(), key=str.isdecimal):
        side_by_side = list(run)
        # Else 5.2-1 and 5.2-3 would share all but a 1, which is a frequent word.
        words += [" ".join(side_by_side)] if digits else side_by_side
    # A text of nothing but symbols stands for itself, as in the split.
    return frozenset(words or [text])


def weights(train: Sequence[frozenset[str]], scored: Sequence[frozenset[str]]) -> dict[str, int]:
    """Return the weight of each word: its squared inverse document frequency in train.

    A weight is positive, a whole number of 1 / `SCALE`. A word that train lacks weighs as much as
    one that is in one train question.
    """
    # Stems that questions have in common are frequent words: they weigh next to nothing, and two
    # questions are alike if they share what is rare. Squared, as in the cosine of TF-IDF vectors,
    # since the plain logarithm leaves a long stem heavier than the one word that differs.
    counts = Counter(word for words in train for word in words)
    for word in set().union(*scored) - counts.keys():
        counts[word] = 1
    return {
        word: max(1, round(math.log((len(train) + 1) / count) ** 2 * SCALE))
        for word, count in counts.items()
    }


def nearest(
    train: Sequence[Question], scored: Sequence[Question], threshold: float = THRESHOLD
) -> tuple[Duplicate, ...]:
    """Return the scored questions with a train question at least `threshold` like them.

    Similarity is the weighted Jaccard index of the sets of words (`terms`, `weights`): the weight
    of the words in both over the weight of the words in either. Only the texts are compared. Of
    equally similar train questions the first with the same answer is taken, else the first. The
    result is in the order of `scored` and a function of the arguments alone. Raises `ValueError`
    for a threshold outside of 0 (excluded) to 1, `InputError` if SciPy is not installed.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold} is not in (0, 1]")
    if not train or not scored:
        return ()
    sparse = need("scipy.sparse", "report")
    ours, theirs = [terms(q.text) for q in scored], [terms(q.text) for q in train]
    weighed = weights(theirs, ours)
    columns = {word: at for at, word in enumerate(weighed)}

    def matrix(rows: Sequence[frozenset[str]], values: Mapping[str, int] | None = None) -> Any:
        indices = [columns[word] for words in rows for word in words]
        ends = np.cumsum([0, *map(len, rows)])
        data = [values[word] for words in rows for word in words] if values else [1] * ends[-1]
        shape = (len(rows), len(columns))
        return sparse.csr_matrix((np.asarray(data, np.int64), indices, ends), shape)

    def totals(rows: Sequence[frozenset[str]]) -> Any:
        return np.asarray([sum(map(weighed.__getitem__, words)) for words in rows], np.int64)

    across, heavy = matrix(theirs).T.tocsr(), totals(theirs)
    found: list[Duplicate] = []
    for start in range(0, len(scored), BLOCK):
        block = ours[start : start + BLOCK]
        shared = (matrix(block, weighed) @ across).tocoo()
        similarity = shared.data / (totals(block)[shared.row] + heavy[shared.col] - shared.data)
        (kept,) = np.nonzero(similarity >= threshold)
        alike: dict[int, list[tuple[float, int]]] = {}
        for at in kept.tolist():
            pair = (float(similarity[at]), int(shared.col[at]))
            alike.setdefault(start + int(shared.row[at]), []).append(pair)
        found += [_closest(scored[at], train, alike[at]) for at in sorted(alike)]
    return tuple(found)


def measure(split: Split, category: Category, dataset: str, part: str = "test") -> Duplicates:
    """Return the near-duplicates of `part` in `split.train`, ready to be written."""
    scored = split.part(part)
    return Duplicates(
        category=category.name,
        dataset=dataset,
        part=part,
        split=split.digest,
        of=len(scored),
        threshold=THRESHOLD,
        pairs=nearest(split.train, scored),
    )


def write(path: Path, made: Duplicates) -> None:
    """Write the category's near-duplicates to a file in one step."""
    documents.write(path, asdict(made))


def read(path: Path) -> Duplicates:
    """Read what `write` wrote. Raises `InputError` if it is something else or is not there."""
    try:
        document = documents.read(path, SCHEMA_VERSION)
        pairs = tuple(_checked(Duplicate, entry) for entry in document["pairs"])
        return _checked(Duplicates, document, pairs=pairs)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: no near-duplicates ({error}); run tel-eval --baselines"
        ) from None


def _closest(
    question: Question, train: Sequence[Question], alike: Sequence[tuple[float, int]]
) -> Duplicate:
    """Return the best of `alike`: pairs of similarity and place in `train`."""
    answer = _answer(question)

    def rank(pair: tuple[float, int]) -> tuple[float, bool, int]:
        same = answer is not None and answer == _answer(train[pair[1]])
        return pair[0], same, -pair[1]

    similarity, same, at = max(map(rank, alike))
    return Duplicate(question.id, train[-at].id, similarity, same)


def _answer(question: Question) -> str | None:
    if question.answer is None:
        return None
    return key(question.choices[question.answer])


def _checked(kind: type[T], document: Any, **made: Any) -> T:
    """Make a dataclass of JSON values. Raises `TypeError` or `KeyError` if they do not fit it."""
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in made:
            value = document[field.name]
            if type(value).__name__ != field.type:
                raise TypeError(f"{field.name}: {value!r} is no {field.type}")
            made[field.name] = value
    return kind(**made)
