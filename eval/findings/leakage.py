"""What makes a benchmark easier than it looks: letters, orders, and questions seen before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tel_edge.eval.benchmarks.duplicates import Duplicates
from tel_edge.eval.findings.answers import Answers
from tel_edge.eval.statistics import Share, clustered_share, share
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.prompt import LETTERS

# Random orders that `Rotations.spread_by_chance` is taken of.
SHUFFLES = 400


@dataclass(frozen=True)
class Position:
    """One place of the right answer: `right` of the questions that have it there.

    `picked` is the share of all questions whose pick is there, `gold` of those whose answer is.
    """

    label: str
    right: Share
    picked: float
    gold: float


@dataclass(frozen=True)
class Rotations:
    """Every question asked with its options in every cyclic order.

    `mean` is Pass@1 over all orders, `by_shift` that of each number of places the options were
    moved by, from 0, over the questions that can be moved so; `spread` is the largest of them less
    the smallest, and `spread_by_chance` what noise alone seldom exceeds. `steady` is the share of
    questions whose answer is the same option in every order. The orders of a question belong
    together, so the interval of `mean` is one of questions (`clustered_share`).
    """

    variant: str
    questions: int
    mean: Share
    by_shift: tuple[Share, ...]
    spread: float
    spread_by_chance: float
    steady: Share


@dataclass(frozen=True)
class Seen:
    """Questions with a near-duplicate in the train part, and the others."""

    threshold: float
    count: int
    of: int
    alike: Share
    rest: Share


@dataclass(frozen=True)
class Leakage:
    """The checks of one category, of the variant that others are compared to."""

    variant: str
    positions: tuple[Position, ...]
    rotations: tuple[Rotations, ...]
    seen: Seen | None


def measure(
    reference: Answers, rotated: Sequence[tuple[Answers, Answers]], duplicates: Duplicates | None
) -> Leakage:
    """Return the checks of one category.

    `rotated` holds, for each variant that has them, its plain answers and the rotated ones.
    """
    joined = (rotations(plain, moved) for plain, moved in rotated)
    return Leakage(
        reference.summary.variant.name,
        positions(reference),
        tuple(each for each in joined if each.questions),
        seen(reference, duplicates) if duplicates else None,
    )


def positions(answers: Answers) -> tuple[Position, ...]:
    """Return the share of right answers by the place of the right one."""
    of = max(1, len(answers.ids))
    known = CATEGORIES.get(answers.summary.category)
    labels = known.labels if known and known.labels else LETTERS
    return tuple(
        Position(
            labels[at],
            answers.share(answers.gold == at),
            float((answers.pick == at).sum() / of),
            float((answers.gold == at).sum() / of),
        )
        for at in sorted({*answers.gold.tolist(), *answers.pick.tolist()})
        if 0 <= at < len(labels)
    )


def rotations(plain: Answers, moved: Answers) -> Rotations:
    """Join the answers to all cyclic orders of each question's options.

    The number of places that the options were moved by is seen from where the right answer is.
    Questions of which not every order was answered are left out, as are answers read from texts.
    """
    home = {id: at for at, id in enumerate(plain.ids)}
    widths = np.isfinite(moved.logprobs).sum(axis=1)
    orders: dict[int, list[tuple[int, int, bool]]] = defaultdict(list)
    for at, id in enumerate(moved.ids):
        first = home.get(id.rpartition("#")[0])
        if first is None or not widths[at]:
            continue
        count = int(widths[at])
        shift = int(moved.gold[at] - plain.gold[first]) % count
        option = int(moved.pick[at] - shift) % count
        orders[first].append((shift, option, bool(moved.right[at])))
    hits: list[list[bool]] = []
    steady = []
    for first, answered in orders.items():
        every = [(0, int(plain.pick[first]), bool(plain.right[first])), *answered]
        if len({shift for shift, _, _ in every}) < np.isfinite(plain.logprobs[first]).sum():
            continue
        hits.append([hit for _, _, hit in sorted(every)])
        steady.append(len({option for _, option, _ in every}) == 1)
    by_shift = tuple(share(sum(column), len(column)) for column in _columns(hits))
    values = [each.value for each in by_shift] or [0.0]
    return Rotations(
        plain.summary.variant.name,
        len(steady),
        clustered_share([(sum(row), len(row)) for row in hits]),
        by_shift,
        max(values) - min(values),
        _spread_by_chance(hits),
        share(sum(steady), len(steady)),
    )


def _columns(hits: Sequence[Sequence[bool]]) -> list[list[bool]]:
    """Return the answers by the places moved; questions with fewer options have fewer of them."""
    widest = max(map(len, hits), default=0)
    return [[row[at] for row in hits if at < len(row)] for at in range(widest)]


def _spread_by_chance(hits: Sequence[Sequence[bool]]) -> float:
    """Return the spread that one of twenty models exceeds to which the order is all the same.

    Each question's answers are put into a random order, again and again, with a fixed seed.
    """
    rng = np.random.default_rng(0)
    sums = np.zeros((SHUFFLES, max(map(len, hits), default=0)))
    counts = np.zeros(sums.shape[1])
    for width in {len(row) for row in hits}:
        rows = np.array([row for row in hits if len(row) == width])
        counts[:width] += len(rows)
        for turn in range(SHUFFLES):
            sums[turn, :width] += rng.permuted(rows, axis=1).sum(axis=0)
    if not len(counts):
        return 0.0
    shares = sums / counts
    return float(np.quantile(shares.max(axis=1) - shares.min(axis=1), 0.95))


def seen(answers: Answers, duplicates: Duplicates) -> Seen:
    """Return Pass@1 on the questions that are much like one of the train part, and on the rest."""
    known = {pair.id for pair in duplicates.pairs}
    rows = np.array([id in known for id in answers.ids], np.bool_)
    return Seen(
        duplicates.threshold,
        len(duplicates.pairs),
        duplicates.of,
        answers.share(rows),
        answers.share(~rows),
    )
