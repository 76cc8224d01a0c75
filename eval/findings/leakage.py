"""What makes a benchmark easier than it looks: letters, orders, and questions seen before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tel_edge.eval.benchmarks.duplicates import Duplicates
from tel_edge.eval.findings.answers import Answers
from tel_edge.eval.statistics import Share, share
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.prompt import LETTERS


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
    the smallest. `steady` is the share of questions whose answer is the same option in every order.
    """

    variant: str
    questions: int
    mean: Share
    by_shift: tuple[Share, ...]
    spread: float
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
    right: dict[int, list[bool]] = defaultdict(list)
    steady = []
    for first, answered in orders.items():
        every = [(0, int(plain.pick[first]), bool(plain.right[first])), *answered]
        if len({shift for shift, _, _ in every}) < np.isfinite(plain.logprobs[first]).sum():
            continue
        for shift, _, hit in every:
            right[shift].append(hit)
        steady.append(len({option for _, option, _ in every}) == 1)
    by_shift = tuple(share(sum(hits), len(hits)) for _, hits in sorted(right.items()))
    values = [each.value for each in by_shift] or [0.0]
    return Rotations(
        plain.summary.variant.name,
        len(steady),
        share(sum(each.right for each in by_shift), sum(each.of for each in by_shift)),
        by_shift,
        max(values) - min(values),
        share(sum(steady), len(steady)),
    )


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
