"""Trivial baselines: what an answer is worth before any question is understood.

All are fitted on the train part of the split that the adapters are trained with and scored on the
part that they are scored on, so a share here and a Pass@1 there are about the same questions.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tel_edge.eval import documents
from tel_edge.eval.benchmarks.split import Split
from tel_edge.eval.scoring.records import baselines_path
from tel_edge.eval.statistics import Share, share, stored_share
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need
from tel_edge.runtime.questions.categories import Category
from tel_edge.runtime.questions.prompt import LETTERS
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.workspace import Workspace

SCHEMA_VERSION = 1
HASHES = 2**16
# Rules that go by the place of an option: they are worth another share in another order.
POSITIONAL = ("one letter", "surface features", "options only")
# Options that speak of the other options, in the words of multiple-choice exams.
OTHERS = r"\b.*\b(above|options|of them|of these)\b"
ALL_OF = re.compile(r"\b(all|both)" + OTHERS, re.IGNORECASE)
NONE_OF = re.compile(r"\b(none|neither)" + OTHERS, re.IGNORECASE)


@dataclass(frozen=True)
class Baseline:
    """One rule that needs no language model, and its share of right answers."""

    name: str
    share: Share


@dataclass(frozen=True)
class Baselines:
    """The baselines of one category; `split` is the digest of the split, `chance` in 0 to 1."""

    category: str
    dataset: str
    part: str
    split: str
    chance: float
    baselines: tuple[Baseline, ...]
    schema_version: int = SCHEMA_VERSION


def chance(questions: Sequence[Question]) -> float:
    """Return the share that guessing gets right on average: the mean of 1 / choices."""
    return math.fsum(1 / len(q.choices) for q in questions) / max(1, len(questions))


def baselines(split: Split, category: Category, part: str = "test") -> tuple[Baseline, ...]:
    """Fit every baseline that suits the category on `split.train` and score it on `part`.

    Questions without a known answer are left out. The result is a function of the arguments
    alone. Raises `InputError` if scikit-learn is not installed or the train part is empty.
    """
    train = [question for question in split.train if question.answer is not None]
    scored = [question for question in split.part(part) if question.answer is not None]
    if not train:
        raise InputError(f"{category.name}: no train questions to fit the trivial baselines on")
    rules: list[tuple[str, Sequence[int]]] = [("one letter", _one_letter(train, scored))]
    need("sklearn", "report")  # Brings threadpoolctl.
    # Threads of the linear algebra only get in each other's way with vectors this short.
    with need("threadpoolctl", "report").threadpool_limits(1):
        if category.labels:
            rules.append(("text classifier", _text_classifier(train, scored)))
        else:
            rules += [
                ("longest option", [_longest(question) for question in scored]),
                ("surface features", _by_option(train, scored, words=False)),
                ("options only", _by_option(train, scored, words=True)),
            ]
    return tuple(Baseline(name, _share(scored, picks)) for name, picks in rules)


def measure(split: Split, category: Category, dataset: str, part: str = "test") -> Baselines:
    """Return `baselines` and `chance` with what they were measured on, ready to be written."""
    return Baselines(
        category=category.name,
        dataset=dataset,
        part=part,
        split=split.digest,
        chance=chance(split.part(part)),
        baselines=baselines(split, category, part),
    )


def write(workspace: Workspace, made: Baselines) -> Path:
    """Write the category's baselines to the workspace in one step and return the file."""
    path = baselines_path(workspace, made.category)
    documents.write(path, asdict(made))
    return path


def read(path: Path) -> Baselines:
    """Read what `write` wrote. Raises `InputError` if it is something else."""
    try:
        document = documents.read(path, SCHEMA_VERSION)
        known = {field.name: document[field.name] for field in fields(Baselines)}
        known["chance"] = documents.number(document, "chance")
        known["baselines"] = tuple(
            Baseline(str(entry["name"]), stored_share(entry["share"]))
            for entry in document["baselines"]
        )
        return Baselines(**known)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: no baselines ({error}); run tel-eval --baselines") from None


def _share(questions: Sequence[Question], picks: Sequence[int]) -> Share:
    right = sum(q.answer == pick for q, pick in zip(questions, picks, strict=True))
    return share(right, len(questions))


def _one_letter(train: Sequence[Question], scored: Sequence[Question]) -> list[int]:
    counts = Counter(question.answer for question in train)
    # Of equally frequent letters the first, whatever the order of the questions.
    best = min(counts, key=lambda letter: (-counts[letter], letter or 0))
    return [best or 0] * len(scored)


def _longest(question: Question) -> int:
    lengths = [len(choice) for choice in question.choices]
    return lengths.index(max(lengths))


def _text_classifier(train: Sequence[Question], scored: Sequence[Question]) -> list[int]:
    answers = [question.answer for question in train]
    if len(set(answers)) < 2 or not scored:
        return _one_letter(train, scored)
    text = need("sklearn.feature_extraction.text", "report")
    svm = need("sklearn.svm", "report")
    words = text.TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        # A small train part has hardly a pair of words twice.
        min_df=2 if len(train) >= 100 else 1,
        max_features=200_000,
        token_pattern=r"(?u)\b\w+\b",
    )
    model = svm.LinearSVC(C=1.0, random_state=0)
    model.fit(words.fit_transform([question.text for question in train]), answers)
    return [int(pick) for pick in model.predict(words.transform([q.text for q in scored]))]


def _by_option(train: Sequence[Question], scored: Sequence[Question], words: bool) -> list[int]:
    """Learn right or wrong for each option by itself; pick the option that looks rightest."""
    if not scored:
        return []
    linear = need("sklearn.linear_model", "report")
    rights = [at == q.answer for q in train for at in range(len(q.choices))]
    model = linear.LogisticRegression(C=1.0, solver="liblinear", random_state=0)
    model.fit(_features(train, words), rights)
    scores = model.decision_function(_features(scored, words)).tolist()
    picks, at = [], 0
    for question in scored:
        own = scores[at : at + len(question.choices)]
        picks.append(own.index(max(own)))
        at += len(own)
    return picks


def _features(questions: Sequence[Question], words: bool) -> Any:
    """Return a sparse matrix [options of all questions, features]."""
    numpy, sparse = need("numpy", "report"), need("scipy.sparse", "report")
    rows = numpy.asarray([row for question in questions for row in _surface(question)])
    surface = sparse.csr_matrix(rows)
    if not words:
        return surface
    text = need("sklearn.feature_extraction.text", "report")
    hashed = text.HashingVectorizer(n_features=HASHES, ngram_range=(1, 2), alternate_sign=False)
    options = [choice for question in questions for choice in question.choices]
    return sparse.hstack([surface, hashed.transform(options)]).tocsr()


def _surface(question: Question) -> list[list[float]]:
    """Return for each option: its position, how long it is beside the others, what it speaks of."""
    lengths = [len(choice) for choice in question.choices]
    falling, mean = sorted(lengths, reverse=True), sum(lengths) / len(lengths)
    rows = []
    for at, choice in enumerate(question.choices):
        position = [float(at == place) for place in range(len(LETTERS))]
        rank = [float(min(falling.index(len(choice)), 5) == place) for place in range(6)]
        shortest = float(len(choice) == min(lengths))
        speaks = [float(bool(ALL_OF.search(choice))), float(bool(NONE_OF.search(choice)))]
        rows.append([*position, *rank, shortest, len(choice) / mean, *speaks])
    return rows
