"""How far orders and judgements agree: rank correlations, W, alpha, kappa, and their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tel_edge.eval.statistics import FEWEST, RESAMPLES, Mean, student

SEED = 42


@dataclass(frozen=True)
class RankCorrelation:
    """A rank correlation over `n` things with its 95 % bootstrap interval; None: undefined.

    `p` is the share of random pairings of the same values that correlate as strongly, either way.
    Of few things the interval is too narrow, which `p` is not.
    """

    name: str
    n: int
    value: float | None
    low: float | None
    high: float | None
    p: float | None


def rank_correlations(xs: Sequence[float], ys: Sequence[float]) -> tuple[RankCorrelation, ...]:
    """Return Kendall's tau-b and Spearman's rho of two values of the same things.

    Of fewer than `FEWEST` there are none. The intervals are the 2.5th and 97.5th percentile over
    `RESAMPLES` draws of as many things with replacement; draws in which all are equal are left out.
    """
    if len(xs) < FEWEST:
        return ()
    random = np.random.default_rng(SEED)
    draws = random.integers(0, len(xs), (RESAMPLES, len(xs)))
    every = np.arange(len(xs))[None, :]
    shuffled = random.permuted(np.tile(every, (RESAMPLES, 1)), axis=1)
    x, y = signs(xs), signs(ys)
    # As many at a time as take some megabytes.
    blocks = range(0, RESAMPLES, max(1, 1_000_000 // len(xs) ** 2))
    made = []
    for name, of in (("Kendall tau-b", _taus), ("Spearman rho", _rhos)):
        drawn, others = (
            np.concatenate([of(_at(x, one), _at(y, other)) for one, other in pairs])
            for pairs in (
                [(draws[at : at + blocks.step],) * 2 for at in blocks],
                [(every, shuffled[at : at + blocks.step]) for at in blocks],
            )
        )
        known = drawn[~np.isnan(drawn)]
        low, high = np.percentile(known, (2.5, 97.5)).tolist() if len(known) else (None, None)
        value, chance = _known(of(x, y)), None
        if value is not None:
            # The pairing that there was is one of all, so that p is never 0.
            strong = 1 + int((np.abs(np.nan_to_num(others)) >= abs(value) - 1e-9).sum())
            chance = strong / (RESAMPLES + 1)
        made.append(RankCorrelation(name, len(xs), value, low, high, chance))
    return tuple(made)


def _at(of: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return `[k, n, n]` of `of` [n, n] for each of `rows` [k, n]."""
    return of[rows[:, :, None], rows[:, None, :]]


def least_tau(n: int) -> float:
    """Return the least |tau| of `n` untied things that chance reaches in less than 5 % of cases.

    By the normal approximation of M. G. Kendall, "A new measure of rank correlation", Biometrika 30
    (1938), and up to a value that tau can have: 0.37 of 16.
    """
    pairs = n * (n - 1) / 2
    spread = math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1)))
    # Concordant less discordant pairs go in steps of two from all of them.
    steps = math.floor((pairs - 1.96 * spread * pairs) / 2)
    return max(0.0, (pairs - 2 * steps) / pairs)


def signs(values: Sequence[float]) -> NDArray[np.float64]:
    """Return the signs of all differences `[n, n]`."""
    made: NDArray[np.float64] = np.sign(np.subtract.outer(values, values))
    return made


def tau_b(x: Any, y: Any) -> float | None:
    """Return Kendall's tau-b; `x` and `y` [n, n] are the signs of all pairs' differences.

    None where all of one are equal. Source: M. G. Kendall, "The treatment of ties in ranking
    problems", Biometrika 33 (1945).
    """
    return _known(_taus(x, y))


def rho(x: Any, y: Any) -> float | None:
    """Return Spearman's rho, tied values sharing their mean rank; arguments as for `tau_b`."""
    return _known(_rhos(x, y))


def _taus(x: Any, y: Any) -> Any:
    """Return tau-b of signs `[..., n, n]`, NaN where it is undefined."""
    return _cosines(x, y, (-2, -1))


def _rhos(x: Any, y: Any) -> Any:
    # A row's sum is twice the distance of that value's mean rank from the middle rank.
    return _cosines(x.sum(-1), y.sum(-1), -1)


def _cosines(x: Any, y: Any, axes: Any) -> Any:
    norm = np.sqrt((x * x).sum(axes) * (y * y).sum(axes))
    with np.errstate(invalid="ignore"):
        return np.clip((x * y).sum(axes) / np.where(norm, norm, np.nan), -1, 1)


def _known(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def kendall_w(scores: Sequence[Sequence[float]]) -> float | None:
    """Return Kendall's W of `[m, n]` scores of n things by m judges, corrected for ties.

    1 where all judges have one order; None where every judge finds all equal. Source: M. G. Kendall
    and B. B. Smith, "The problem of m rankings", Annals of Mathematical Statistics 10 (1939).
    """
    # Distances from the middle rank, whose squares know the ties already.
    ranks = np.array([signs(of).sum(1) / 2 for of in scores])
    most = len(ranks) * float((ranks**2).sum())
    return float((ranks.sum(0) ** 2).sum()) / most if most else None


def alpha(ratings: NDArray[np.float64], ordinal: bool) -> float | None:
    """Return Krippendorff's alpha of `[units, raters]`, NaN where a rater said nothing.

    Values are categories, with `ordinal` in their order. 1: all agree, 0: as by chance; None where
    no unit has two ratings, or all are the same. Source: K. Krippendorff, "Computing Krippendorff's
    alpha-reliability" (2011).
    """
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = (ratings[:, :, None] == values).sum(1).astype(float)
    sizes = counts.sum(1)
    counts, sizes = counts[sizes > 1], sizes[sizes > 1]
    weighed = counts / (sizes - 1)[:, None]
    together = weighed.T @ counts - np.diag(weighed.sum(0))
    own = together.sum(0)
    apart = 1 - np.eye(len(values))
    if ordinal:
        # Everything between two values, and half of their own.
        upto = np.cumsum(own) - own / 2
        apart = np.subtract.outer(upto, upto) ** 2
    chance = float(own @ apart @ own)
    if not chance:
        return None
    return 1 - (float(own.sum()) - 1) * float((together * apart).sum()) / chance


def kappa(one: NDArray[Any], other: NDArray[Any]) -> float | None:
    """Return Cohen's kappa of two raters' categories `[n]`; None where chance explains all.

    Source: J. Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological
    Measurement 20 (1960).
    """
    if not len(one):
        return None
    chance = sum(
        float((one == value).mean()) * float((other == value).mean())
        for value in np.union1d(one, other)
    )
    return None if chance >= 1 else (float((one == other).mean()) - chance) / (1 - chance)


def jackknifed(
    groups: NDArray[np.int64], statistic: Callable[[NDArray[np.bool_]], float | None]
) -> Mean | None:
    """Return a statistic of rows with its interval over groups of rows that belong together.

    `statistic` is of the rows that a mask `[n]` keeps. The interval is Student's, by leaving out
    one group at a time; there is none of fewer than three groups, or where that leaves something
    undefined. Source: B. Efron and C. Stein, "The jackknife estimate of variance", Annals of
    Statistics 9 (1981).
    """
    value = statistic(np.ones(len(groups), np.bool_))
    if value is None:
        return None
    names = np.unique(groups)
    left = [statistic(groups != name) for name in names] if len(names) > 2 else [None]
    known = [one for one in left if one is not None]
    if len(known) < len(left):
        return Mean(value, None, None, len(groups), len(names))
    spread = math.sqrt((len(known) - 1) * float(np.var(known))) * student(len(known) - 1)
    return Mean(value, value - spread, value + spread, len(groups), len(names))
