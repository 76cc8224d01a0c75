"""What people's labels say of judges: whether one may stand in for a person, and win rates by both.

A label is a person's verdict on a pair: people and judges are compared on pairs that both judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tel_edge.eval.agreement import jackknifed, kappa
from tel_edge.eval.care.judges.verdicts import PANEL, Study
from tel_edge.eval.care.study.tallies import Tally, Unit
from tel_edge.eval.statistics import Mean, student, tail

Floats = NDArray[np.float64]
MODELS = ("endpoint", "gguf")
# What those who judge are called, by their kind.
WHO = {"endpoint": "judges", "gguf": "judges", "standin": "stand-ins", "people": "people"}
# Of the alternative-annotator test: people, labels of one that count, how much better a person may
# be (that of skilled ones), and the rate of false discoveries.
PEOPLE, LABELS, EPSILON, RATE = 2, 30, 0.15, 0.05
# Labels of a system from which on a win rate is told.
FEWEST = 10


@dataclass(frozen=True)
class Replaced:
    """The alternative-annotator test of one judge: over `people` with enough labels.

    `winning` is the share of people whom the judge may replace, 0 to 1, `advantage` the mean
    probability that it agrees with the others at least as well as the person left out. It `passes`
    where `winning` is at least a half. `why` says why there is no test, "" where there is.
    """

    judge: str
    people: int
    labels: int
    winning: float | None
    advantage: float | None
    passes: bool
    why: str = ""


@dataclass(frozen=True)
class PeopleSaid:
    """What people's labels say: how many, how they agree, and whom judges may stand in for.

    `kappas` are Cohen's, of two people or of a person and a judge; `wins` are win rates by labels
    and the panel together.
    """

    names: tuple[str, ...]
    labels: int
    kappas: tuple[tuple[str, str, Mean], ...]
    replaced: tuple[Replaced, ...]
    wins: Mapping[str, Mean]


def choices(tally: Tally) -> dict[Unit, int]:
    """Return 1 where left is better, -1 where right is, 0 for a tie, by pair."""
    return {unit: (won > 0.5) - (won < 0.5) for unit, won in tally.means().items()}


def replaced(
    judge: str, own: Mapping[Unit, int], people: Mapping[str, Mapping[Unit, int]]
) -> Replaced:
    """Return whether a judge represents people as well as one of them does.

    Each person is left out in turn; judge and person are scored by how many of the others gave the
    same label, and a one-sided t test asks whether the person is better by no more than `EPSILON`;
    the p values are corrected by Benjamini and Yekutieli's. Source: N. Calderon, R. Reichart and R.
    Dror, "The alternative annotator test for LLM-as-a-judge" (ACL 2025), which wants 30 labels a
    person at least, 50 to 100 rather, and three people rather than two.
    """
    tests, advantages = [], []
    for name, labels in people.items():
        others = [other for known, other in people.items() if known != name]
        gaps, wins = [], []
        for unit, label in labels.items():
            rest = [other[unit] for other in others if unit in other]
            if rest and unit in own:
                judged, human = rest.count(own[unit]), rest.count(label)
                wins.append(judged >= human)
                gaps.append((human >= judged) - (judged >= human))
        if len(gaps) >= LABELS:
            tests.append(_below(gaps, EPSILON))
            advantages.append(sum(wins) / len(wins))
    count = sum(len(labels) for labels in people.values())
    if len(tests) < PEOPLE:
        why = (
            f"{len(tests)} of {len(people)} people have {LABELS} labels on pairs that another "
            f"person and {judge} judged too; {PEOPLE} are needed"
        )
        return Replaced(judge, len(tests), count, None, None, False, why)
    winning = _rejected(tests, RATE) / len(tests)
    advantage = sum(advantages) / len(advantages)
    return Replaced(judge, len(tests), count, winning, advantage, winning >= 0.5)


def _below(values: Sequence[float], limit: float) -> float:
    """Return the one-sided p value of the t test that the mean is not below a limit."""
    made = np.array(values, float)
    error = float(made.std(ddof=1)) / math.sqrt(len(made))
    if not error:
        return float(made[0] >= limit)
    return tail((limit - float(made.mean())) / error, len(made) - 1)


def _rejected(ps: Sequence[float], rate: float) -> int:
    """Return how many hypotheses are rejected.

    Source: Y. Benjamini and D. Yekutieli, "The control of the false discovery rate in multiple
    testing under dependency", Annals of Statistics 29 (2001).
    """
    of = len(ps) * sum(1 / at for at in range(1, len(ps) + 1))
    return max((at for at, p in enumerate(sorted(ps), 1) if p <= at * rate / of), default=0)


def agreed(one: Tally, other: Tally) -> Mean | None:
    """Return Cohen's kappa of two on the pairs that both judged (left, tie, right).

    The interval is over scenarios; None where they share no pair, or chance explains all.
    """
    mine, theirs = choices(one), choices(other)
    shared = [unit for unit in mine if unit in theirs]
    if not shared:
        return None
    a, b = (np.array([of[unit] for unit in shared]) for of in (mine, theirs))
    homes = one.homes()
    groups = np.unique([homes[unit] for unit in shared], return_inverse=True)[1]
    return jackknifed(groups, lambda kept: kappa(a[kept], b[kept]))


def powered(
    labels: Floats, judged: Floats, unlabelled: Floats, groups: NDArray[np.int64]
) -> Mean | None:
    """Return the mean of people's labels, made surer by a judge's verdicts on what has none.

    `labels` [n] and `judged` [n] are of the same things, `unlabelled` [m] of others; `groups`
    [n + m] says which belong together. None where there are too few. Source: A. N. Angelopoulos, J.
    C. Duchi and T. Zrnic, "PPI++: efficient prediction-powered inference" (2023), for a mean with
    the weight that makes its variance least, here with the variance between groups. The labelled
    things have to be drawn by lot.
    """
    n, m = len(labels), len(unlabelled)
    if min(n, m) < FEWEST:
        return None
    spread = float(np.append(judged, unlabelled).var(ddof=1)) * (1 + n / m)
    shared = float(((labels - labels.mean()) * (judged - judged.mean())).mean())
    weight = min(1.0, max(0.0, shared / spread)) if spread else 0.0
    rest = labels - weight * judged
    value = weight * float(unlabelled.mean()) + float(rest.mean())
    moves = np.append(
        (rest - rest.mean()) / n, weight * (unlabelled - float(unlabelled.mean())) / m
    )
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], weights=moves)
    count = len(sums)
    if count < 2:
        return Mean(value, None, None, n, count)
    error = math.sqrt(float((sums**2).sum()) * count / (count - 1))
    # No surer than so many labels allow.
    half = student(min(n, count) - 1) * error
    return Mean(value, value - half, value + half, n, count)


def win_rates(people: Sequence[Tally], panel: Tally) -> dict[str, Mean]:
    """Return the share of wins of each system over those that it met, by people and judges.

    Where several people labelled a pair, their mean counts. Systems with fewer than `FEWEST` labels
    are left out.
    """
    said: dict[Unit, list[float]] = {}
    homes: dict[Unit, str] = {}
    for one in (*people, panel):
        homes |= one.homes()
    for one in people:
        for unit, won in one.means().items():
            said.setdefault(unit, []).append(won)
    judged = panel.means()
    found = {}
    for at, name in enumerate(panel.systems):
        own = {unit: won for unit, won in judged.items() if at in unit[1:]}
        with_, without = (
            [unit for unit in own if (unit in said) == known] for known in (True, False)
        )
        labels = [_of(sum(said[unit]) / len(said[unit]), unit, at) for unit in with_]
        made = powered(
            np.array(labels, float),
            np.array([_of(own[unit], unit, at) for unit in with_], float),
            np.array([_of(own[unit], unit, at) for unit in without], float),
            np.unique([homes[unit] for unit in (*with_, *without)], return_inverse=True)[1],
        )
        if made:
            found[name] = made
    return found


def _of(won: float, unit: Unit, system: int) -> float:
    return won if unit[1] == system else 1 - won


def compared(
    own: Mapping[str, Tally], judges: Mapping[str, Tally], panel: Tally
) -> PeopleSaid | None:
    """Return what labels say; of people alone, without judges, only how they agree."""
    if not own:
        return None
    others = {**judges, **({PANEL: panel} if len(judges) > 1 else {})}
    pairs = [(a, b) for at, a in enumerate(own) for b in [*[*own][at + 1 :], *others]]
    kappas = [
        (a, b, made)
        for a, b in pairs
        if (made := agreed(own[a], own[b] if b in own else others[b])) is not None
    ]
    said = {name: choices(one) for name, one in own.items()}
    return PeopleSaid(
        tuple(own),
        sum(len(one.won) for one in own.values()),
        tuple(kappas),
        tuple(replaced(name, choices(one), said) for name, one in others.items()),
        win_rates([*own.values()], panel) if judges else {},
    )


def judged_by(study: Study, panel: Sequence[str], people: PeopleSaid | None) -> str:
    """Return by whom it was judged: people are named where there are labels, and only there."""
    kinds = {one.name: one for one in study.judges}
    own = [kinds[name] for name in panel]
    names = ", ".join(
        f"{one.name} (family {one.family})" if one.kind in MODELS else one.name for one in own
    )
    labels = "No person has labelled answers"
    if people:
        count = len(people.names)
        who = "a person" if count == 1 else f"{count} people"
        labels = f"{people.labels:,} labels of {who}"
    kind = WHO[own[0].kind]
    if kind == "people":
        return f"Human-aligned: judged by people: {names}, {labels}."
    if kind == "stand-ins":
        beside = f"{labels} stand beside them" if people else labels
        return (
            f"Judged by stand-ins: {names}. They count words, and are neither models nor "
            f"people: figures show how the study works, not which answers are better. {beside}."
        )
    said = f"judged by {len(own)} model{'s' * (len(own) > 1)}: {names}"
    if people and people.replaced[-1].passes:
        return f"Human-aligned: {said}, who may stand in for a person by {labels}."
    if people:
        return f"Judge-aligned: {said}. {labels} do not show that they may stand in for one."
    return f"Judge-aligned: {said}. {labels}."
