"""What judges are like: places and lengths they prefer, how steady they are, how they agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tel_edge.eval.agreement import alpha, jackknifed, kendall_w, signs, tau_b
from tel_edge.eval.care.answers.records import grouped, shared
from tel_edge.eval.care.judges.studies import own_family
from tel_edge.eval.care.judges.verdicts import (
    CRITERIA,
    Judge,
    PairVerdict,
    RubricVerdict,
    Study,
)
from tel_edge.eval.care.study.strength import Fit
from tel_edge.eval.care.study.tallies import Tally, joined
from tel_edge.eval.statistics import Mean, Share, clustered_mean, student, tail


@dataclass(frozen=True)
class Audit:
    """One judge, over `pairs` that it saw in both orders; intervals are over scenarios.

    `missing` is the share of verdicts that could not be read, `half` counts pairs of which one
    order is missing. `flips` is the share of pairs of which both times the same place won,
    `changed` that of pairs with another outcome in the other order, ties counted in, `ties`
    that of ties among verdicts, `first` the share of the place shown first (0.5: no preference),
    `length` what a standard deviation of length is worth in nats where systems are the same
    otherwise, `longer` the share of wins of the longer answer. `repeated` is the share of verdicts
    that were the same when asked again. `first_p` and `length_p` are two-sided. `own` says what in
    the study is of the judge's own family.
    """

    judge: str
    kind: str
    pairs: int
    missing: Share
    half: int
    flips: Share
    changed: Share
    ties: Share
    first: Mean
    first_p: float
    length: Mean | None
    length_p: float
    longer: Mean
    repeated: Share
    own: tuple[str, ...]


@dataclass(frozen=True)
class JudgesTogether:
    """How `judges` agree: on pairs, on the order of systems, on marks.

    `alpha` is Krippendorff's over pairs, ordinal; `w` Kendall's over systems, `taus` tau-b of two
    judges each, `marks` Krippendorff's ordinal alpha by criterion, where there are marks.
    """

    judges: tuple[str, ...]
    pairs: int
    alpha: Mean | None
    w: float | None
    taus: tuple[tuple[str, str, float], ...]
    marks: Mapping[str, float | None]


def audited(
    study: Study, judge: Judge, verdicts: Sequence[PairVerdict], tally: Tally, fit: Fit | None
) -> Audit:
    """Return what one judge is like; `fit` is that with lengths."""
    counted = [one for one in verdicts if not one.repeat]
    first = clustered_mean(tally.clustered(tally.first)) if len(tally.first) else _none()
    length = fit.length if fit else None
    apart = tally.longer != 0
    wins = np.where(tally.longer > 0, tally.won, 1 - tally.won)
    # Those of one length have no longer one.
    kept = [
        [won for won, other in zip(of, known, strict=True) if other]
        for of, known in zip(tally.clustered(wins), tally.clustered(apart), strict=True)
    ]
    return Audit(
        judge=judge.name,
        kind=judge.kind,
        pairs=len(tally.won),
        missing=shared(counted, lambda v: (int(v.choice is None), 1)),
        half=tally.half,
        flips=tally.shared(tally.flipped),
        changed=tally.shared(tally.changed),
        ties=shared(counted, lambda v: (int(v.choice == "tie"), int(v.choice is not None))),
        first=first,
        first_p=_p(first, 0.5),
        length=length,
        length_p=_p(length, 0.0) if length else 1.0,
        longer=clustered_mean(kept),
        repeated=_repeated(verdicts),
        own=own_family(study, judge),
    )


def _none() -> Mean:
    return Mean(0.5, None, None, 0, 0)


def _repeated(verdicts: Sequence[PairVerdict]) -> Share:
    """Return the share of verdicts, asked for again, that were the same as at first."""
    at_first = {(v.prompt, v.first, v.second): v.choice for v in verdicts if not v.repeat}
    again = [v for v in verdicts if v.repeat and (v.prompt, v.first, v.second) in at_first]
    return shared(again, lambda v: (int(v.choice == at_first[v.prompt, v.first, v.second]), 1))


def _p(made: Mean, null: float) -> float:
    """Return the two-sided p value that a mean with a Student's interval is `null`."""
    if made.low is None or made.high is None:
        return 1.0
    free = made.groups - 1
    error = (made.high - made.low) / 2 / student(free)
    if not error:
        return float(made.value == null)
    return 2 * tail(abs(made.value - null) / error, free)


def together(
    tallies: Mapping[str, Tally],
    fits: Mapping[str, Fit | None],
    rubric: Sequence[RubricVerdict],
) -> JudgesTogether | None:
    """Return how judges agree with each other; None of fewer than two."""
    names = tuple(tallies)
    if len(names) < 2:
        return None
    ratings, groups = joined([*tallies.values()])
    found = {name: signs(of.scores.tolist()) for name in names if (of := fits[name])}
    taus = [
        (one, other, tau)
        for at, one in enumerate(found)
        for other in [*found][at + 1 :]
        if (tau := tau_b(found[one], found[other])) is not None
    ]
    scores = [of.scores.tolist() for name in names if (of := fits[name])]
    return JudgesTogether(
        names,
        int((~np.isnan(ratings)).all(1).sum()),
        jackknifed(groups, lambda kept: alpha(ratings[kept], ordinal=True)),
        kendall_w(scores) if len(scores) > 1 else None,
        tuple(taus),
        _marks(names, rubric),
    )


def _marks(names: Sequence[str], rubric: Sequence[RubricVerdict]) -> dict[str, float | None]:
    """Return alpha of the judges' marks by criterion, nothing where there are no marks."""
    own = [v for v in rubric if v.judge in names and not v.repeat and v.scores is not None]
    rows = {key: at for at, key in enumerate(dict.fromkeys((v.prompt, v.system) for v in own))}
    found: dict[str, float | None] = {}
    for name in CRITERIA if len({v.judge for v in own}) > 1 else ():
        ratings = np.full((len(rows), len(names)), math.nan)
        for v in own:
            assert v.scores is not None
            ratings[rows[v.prompt, v.system], names.index(v.judge)] = v.scores[name]
        found[name] = alpha(ratings, ordinal=True)
    return found


def marked(
    rubric: Sequence[RubricVerdict], systems: Sequence[str], judges: Sequence[str]
) -> dict[str, dict[str, Mean]]:
    """Return each system's mean mark by criterion, over `judges`, clustered by scenario."""
    own: dict[str, list[RubricVerdict]] = {}
    for one in rubric:
        if one.judge in judges and not one.repeat and one.scores is not None:
            own.setdefault(one.system, []).append(one)

    def mean(system: str, name: str) -> Mean:
        return clustered_mean(grouped(own[system], lambda one: float(one.scores[name])))

    return {
        system: {name: mean(system, name) for name in CRITERIA} if system in own else {}
        for system in systems
    }
