"""Intervals for shares of right answers and for their differences, and tests of no difference.

Two variants that answered the same questions are compared pair by pair (`paired_difference`,
`mcnemar`): `won` counts the questions that only the first got right, `lost` those that only the
second did. Shares of different questions are compared as independent (`difference`, `same_share`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Z95 = 1.959963984540054
# Draws of a bootstrap, and of how few things no rank correlation is told.
RESAMPLES, FEWEST = 2000, 4
# Halvings of an interval no longer than 2, down to the spacing of doubles.
HALVINGS = 60
# Tables whose probabilities differ by less count as equally likely, as in R's fisher.test.
TIE = 1 + 1e-7


@dataclass(frozen=True)
class Share:
    """`right` of `of` questions, with the 95 % Wilson interval `low` to `high`."""

    right: int
    of: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Interval:
    """A difference of two shares, in -1 to 1, with its 95 % interval `low` to `high`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Mean:
    """A mean of `of` values in `groups` groups, with its 95 % interval; one group has none."""

    value: float
    low: float | None
    high: float | None
    of: int
    groups: int


def stored_share(document: Mapping[str, Any]) -> Share:
    """Return the share that a document holds, made anew of its counts.

    Raises `ValueError` for counts that cannot be.
    """
    right, of = document["right"], document["of"]
    if type(right) is not int or type(of) is not int or not 0 <= right <= of:
        raise ValueError(f"{right!r} of {of!r} questions are no share")
    return share(right, of)


def share(right: int, of: int) -> Share:
    """Return the share and its Wilson score interval; of no questions at all it is [0, 1].

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927).
    """
    if of == 0:
        return Share(0, 0, 0.0, 0.0, 1.0)
    low, high = _wilson(right / of, of)
    return Share(right, of, right / of, low if right else 0.0, high if right < of else 1.0)


def _wilson(value: float, of: float) -> tuple[float, float]:
    spread = Z95 * math.sqrt(value * (1 - value) / of + Z95**2 / (4 * of**2))
    middle, scale = value + Z95**2 / (2 * of), 1 + Z95**2 / of
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def clustered_share(of: Sequence[tuple[int, int]]) -> Share:
    """Return the share over groups of answers that belong together, (right, count) each.

    The answers to one question in several orders are no independent ones: the interval is
    Wilson's for as many independent answers as have the variance that the groups show, a few less
    for few groups. Where all groups are alike it is that of one answer a group. Source: E. L. Korn
    and B. I. Graubard, "Confidence intervals for proportions with small expected number of positive
    counts estimated from survey data", Survey Methodology 24 (1998), with Wilson's interval in
    place of the exact one.
    """
    right, count, groups = sum(r for r, _ in of), sum(n for _, n in of), len(of)
    if groups < 2:
        return share(right, count) if groups == 0 else Share(right, count, right / count, 0.0, 1.0)
    value = right / count
    squares = math.fsum((r - value * n) ** 2 for r, n in of)
    variance = groups / (groups - 1) * squares / count**2
    independent = value * (1 - value) / variance if variance else groups
    wider = _wider(groups - 1)
    low, high = _wilson(value, min(count, independent) / wider**2)
    return Share(right, count, value, low if right else 0.0, high if right < count else 1.0)


def student(free: float) -> float:
    """Return the 97.5 % quantile of Student's t, by the first terms of its expansion.

    Of 10 degrees of freedom it is 0.8 % too small, of 143 right to five digits.
    """
    return Z95 * _wider(free)


def _wider(free: float) -> float:
    return 1 + (Z95**2 + 1) / (4 * free)


def tail(t: float, free: float) -> float:
    """Return the probability of a Student's t above `t`, by a normal one's.

    Source: M. Abramowitz and I. A. Stegun, "Handbook of mathematical functions", 26.7.8; of 29
    degrees of freedom it is right to three digits.
    """
    z = t * (1 - 1 / (4 * free)) / math.sqrt(1 + t**2 / (2 * free))
    return math.erfc(z / math.sqrt(2)) / 2


def clustered_mean(of: Sequence[Sequence[float]]) -> Mean:
    """Return the mean over groups of values that belong together; of no values it is 0.

    The interval is Student's, of the linearized variance between groups (the ratio estimator of
    W. G. Cochran, "Sampling techniques", section 6.3), so that large groups weigh more. Of values
    that are all alike it has no width, whatever their number.
    """
    groups = [(math.fsum(values), len(values)) for values in of if values]
    count, total = sum(size for _, size in groups), math.fsum(sum_ for sum_, _ in groups)
    if len(groups) < 2:
        return Mean(total / count if count else 0.0, None, None, count, len(groups))
    value, free = total / count, len(groups) - 1
    squares = math.fsum((sum_ - value * size) ** 2 for sum_, size in groups)
    spread = student(free) * math.sqrt(len(groups) / free * squares) / count
    return Mean(value, value - spread, value + spread, count, len(groups))


def quantile(values: list[float], at: float) -> float:
    """Return the smallest of the values that no more than the share `at` of them lies before.

    Of an even number the median is so the larger of the middle two.
    """
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(at * len(ordered)))]


def difference(one: Share, other: Share) -> Interval:
    """Return `one` - `other` for independent samples, with Newcombe's hybrid score interval.

    It is 0 in [-1, 1] where either share is of no questions at all. Source: R. G. Newcombe,
    "Interval estimation for the difference between independent proportions", Statistics in
    Medicine 17 (1998), 873-890, method 10.
    """
    if one.of == 0 or other.of == 0:
        return Interval(0.0, -1.0, 1.0)
    value = one.value - other.value
    down = math.hypot(one.value - one.low, other.high - other.value)
    up = math.hypot(one.high - one.value, other.value - other.low)
    return Interval(value, max(-1.0, value - down), min(1.0, value + up))


def paired_difference(won: int, lost: int, of: int) -> Interval:
    """Return (`won` - `lost`) / `of` for paired answers, with Tango's score interval.

    It is 0 in [-1, 1] of no questions at all. Raises `ValueError` for counts that are negative or
    more than `of`. Source: T. Tango, "Equivalence test and confidence interval for the difference
    in proportions for the paired-sample design", Statistics in Medicine 17 (1998), 891-908.
    """
    if min(won, lost) < 0 or won + lost > of:
        raise ValueError(f"{won} won and {lost} lost of {of} paired answers")
    if of == 0:
        return Interval(0.0, -1.0, 1.0)
    # The other end is that of the same pairs seen from the other side.
    low, high = -_largest_difference(lost, won, of), _largest_difference(won, lost, of)
    return Interval((won - lost) / of, low, high)


def _largest_difference(won: int, lost: int, of: int) -> float:
    """Return the largest difference that the score test does not reject."""
    low, high = (won - lost) / of, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        # Without a division, as the variance is 0 where the difference is 1.
        if (won - lost - of * middle) ** 2 <= Z95**2 * _score_variance(won, lost, of, middle):
            low = middle
        else:
            high = middle
    return high


def _score_variance(won: int, lost: int, of: int, delta: float) -> float:
    """Return the variance of `won` - `lost` at its likeliest if the true difference is `delta`."""
    # The likeliest probability of a lost pair is the larger root of 2 n q^2 + b q - c = 0.
    b = delta * (2 * of - won + lost) - (won + lost)
    c = lost * delta * (1 - delta)
    # Of two equal roots, rounding may put what is below the square root under 0.
    probability = (math.sqrt(max(0.0, b * b + 8 * of * c)) - b) / (4 * of)
    return of * (2 * probability + delta * (1 - delta))


def smallest_bound(of: int) -> float:
    """Return the largest loss that `paired_difference` leaves open if no answer changed.

    A share in 0 to 1: the score equation of 0 won and 0 lost has the solution z^2 / (of + z^2).
    """
    return Z95**2 / (of + Z95**2)


def mcnemar(won: int, lost: int) -> float:
    """Return the two-sided p value of the exact McNemar test: that pairs are won as often as lost.

    Binomial with probability 1/2, the smaller tail doubled, at most 1. Source: Q. McNemar,
    "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947).
    """
    changed, fewer = won + lost, min(won, lost)
    # The tail in units of its largest term, summed until the terms no longer count.
    term, tail = 1.0, 1.0
    for count in range(fewer, 0, -1):
        term *= count / (changed - count + 1)
        tail += term
        if term < 1e-17 * tail:
            break
    # A quotient of whole numbers is rounded once, however long they are.
    return min(1.0, 2 * (math.comb(changed, fewer) / (1 << changed)) * tail)


def same_share(one: Share, other: Share) -> float:
    """Return the two-sided p value of Fisher's exact test: that two independent shares are equal.

    Sums all tables with the same margins that are no likelier than the one at hand. The test is
    exact, hence cautious for few questions; it is 1 where either share is of no questions.
    Source: R. A. Fisher, "Statistical Methods for Research Workers", section 21.02.
    """
    right, of = one.right + other.right, one.of + other.of
    least, most = max(0, right - other.of), min(right, one.of)
    likeliest = (one.of + 1) * (right + 1) // (of + 2)
    # In units of the likeliest table nothing overflows, and what underflows does not count.
    weights = {likeliest: 1.0}
    for x in range(likeliest, most):
        up = (right - x) * (one.of - x) / ((x + 1) * (other.of - right + x + 1))
        weights[x + 1] = weights[x] * up
    for x in range(likeliest, least, -1):
        down = x * (other.of - right + x) / ((right - x + 1) * (one.of - x + 1))
        weights[x - 1] = weights[x] * down
    limit = weights[one.right] * TIE
    unlikelier = math.fsum(weight for weight in weights.values() if weight <= limit)
    return min(1.0, unlikelier / math.fsum(weights.values()))


def holm(ps: Sequence[float]) -> list[float]:
    """Return the p values adjusted for as many tests, in the given order.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian
    Journal of Statistics 6 (1979).
    """
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, at in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[at]))
        adjusted[at] = highest
    return adjusted
