"""Intervals and tests for shares: against closed forms, likelihoods, scipy and statsmodels."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tel_edge.eval.statistics import (
    Z95,
    Interval,
    difference,
    holm,
    mcnemar,
    paired_difference,
    same_share,
    share,
    smallest_bound,
)

UNKNOWN = Interval(0.0, -1.0, 1.0)
PAIRS = st.integers(1, 400).flatmap(
    lambda of: st.integers(0, of).flatmap(
        lambda won: st.tuples(st.just(won), st.integers(0, of - won), st.just(of))
    )
)
COUNTS = st.integers(0, 60).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of)))


def score(won: int, lost: int, of: int, delta: float) -> float:
    """Tango's statistic, with the likelihood maximised by search instead of its closed form."""

    def likelihood(q: float) -> float:
        cells = [(won, q + delta), (lost, q), (of - won - lost, 1 - 2 * q - delta)]
        return sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    low, high = max(0.0, -delta), (1 - delta) / 2
    for _ in range(200):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if likelihood(left) < likelihood(right):
            low = left
        else:
            high = right
    variance = of * (low + high + delta * (1 - delta))
    return (won - lost - of * delta) / math.sqrt(variance)


def took(call: Callable[[], float]) -> float:
    """The least seconds of three, as other work may share the processor."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def random_shares(of: int, seed: int) -> list[tuple[int, int, int, int]]:
    dice = random.Random(seed)
    sizes = [(dice.randint(1, of), dice.randint(1, of)) for _ in range(60)]
    # Every third pair has equal sizes, where the tables of both sides are equally likely.
    sizes[::3] = [(one, one) for one, _ in sizes[::3]]
    return [(dice.randint(0, one), one, dice.randint(0, other), other) for one, other in sizes]


def test_statistics_needs_no_numpy() -> None:
    code = "import sys; sys.modules['numpy'] = None; import tel_edge.eval.statistics"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_difference_is_that_of_statsmodels() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for right, of, other_right, other_of in random_shares(3000, seed=1):
        made = difference(share(right, of), share(other_right, other_of))
        low, high = proportion.confint_proportions_2indep(
            right, of, other_right, other_of, method="newcomb", compare="diff"
        )
        assert made.value == pytest.approx(right / of - other_right / other_of)
        assert (made.low, made.high) == pytest.approx((low, high), abs=1e-9)


def test_difference_worked_by_hand() -> None:
    # Of ten, none and all: the Wilson intervals end at z^2 / (10 + z^2) and 10 / (10 + z^2).
    made = difference(share(10, 10), share(0, 10))
    side = Z95**2 / (10 + Z95**2)
    assert (made.value, made.high) == (1.0, 1.0)
    assert made.low == pytest.approx(1 - math.sqrt(2) * side)
    assert difference(share(0, 0), share(7, 10)) == difference(share(7, 10), share(0, 0)) == UNKNOWN


@given(COUNTS, COUNTS)
def test_a_difference_turned_round_is_its_negative(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    made, turned = (difference(share(*a), share(*b)) for a, b in ((one, other), (other, one)))
    assert -1 <= made.low <= made.value <= made.high <= 1
    assert (made.low, made.high) == pytest.approx((-turned.high, -turned.low), abs=1e-12)


@given(PAIRS)
def test_paired_ends_satisfy_the_score_equation(pairs: tuple[int, int, int]) -> None:
    won, lost, of = pairs
    made = paired_difference(won, lost, of)
    assert -1 <= made.low <= made.value == (won - lost) / of <= made.high <= 1
    turned = paired_difference(lost, won, of)
    assert (made.value, made.low, made.high) == (-turned.value, -turned.high, -turned.low)
    # Where every answer changed the same way, the end is 1 and nothing varies.
    if lost < of:
        assert score(won, lost, of, made.low) == pytest.approx(Z95, abs=1e-5)
    if won < of:
        assert score(won, lost, of, made.high) == pytest.approx(-Z95, abs=1e-5)


@given(st.integers(1, 500).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_paired_difference_where_every_answer_changed_is_the_interval_of_one_share(
    counts: tuple[int, int],
) -> None:
    won, of = counts
    made, one = paired_difference(won, of - won, of), share(won, of)
    assert (made.low, made.high) == pytest.approx((2 * one.low - 1, 2 * one.high - 1), abs=1e-9)


@pytest.mark.parametrize("of", [1, 2, 30, 10_000])
def test_no_changed_answer_still_leaves_a_loss_open(of: int) -> None:
    made = paired_difference(0, 0, of)
    assert smallest_bound(of) == pytest.approx(Z95**2 / (of + Z95**2))
    assert (-made.low, made.high) == pytest.approx((smallest_bound(of), smallest_bound(of)))
    assert made.value == 0


def test_paired_difference_worked_by_hand() -> None:
    # One won, none lost: q = 0, so (1 - n d)^2 = z^2 n d (1 - d), a quadratic with root `high`.
    of, z2 = 44, Z95**2
    a, b, c = of**2 + of * z2, -(2 * of + of * z2), 1
    high = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    assert paired_difference(1, 0, of).high == pytest.approx(high, rel=1e-12)
    # The airway table of Bentur et al. (2009), 1 and 7 of 21, to the digits usually printed.
    made = paired_difference(1, 7, 21)
    assert [round(end, 3) for end in (made.value, made.low, made.high)] == [-0.286, -0.517, -0.026]


@pytest.mark.parametrize("counts", [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (1, 0, 0)])
def test_paired_counts_that_cannot_be_are_refused(counts: tuple[int, int, int]) -> None:
    assert paired_difference(0, 0, 0) == UNKNOWN
    with pytest.raises(ValueError, match="paired answers"):
        paired_difference(*counts)


@pytest.mark.parametrize("chances", [(0.15, 0.15), (0.2, 0.1), (0.05, 0.12), (0.3, 0.02)])
def test_paired_intervals_cover_the_truth(chances: tuple[float, float]) -> None:
    # Exact instead of simulated: the probabilities of all tables whose interval has the truth.
    of, (win, lose) = 40, chances
    covered = 0.0
    for won, lost in itertools.product(range(of + 1), repeat=2):
        same = of - won - lost
        if same < 0:
            continue
        ways = math.comb(of, won) * math.comb(of - won, lost)
        weight = ways * win**won * lose**lost * (1 - win - lose) ** same
        # Tables that hardly ever come up are as good as not covered.
        if weight > 1e-7:
            made = paired_difference(won, lost, of)
            covered += weight * (made.low <= win - lose <= made.high)
    assert 0.935 < covered < 0.97


def test_mcnemar_is_that_of_statsmodels_and_scipy() -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    stats = pytest.importorskip("scipy.stats")
    dice = random.Random(2)
    for most in (3, 30, 300, 3000) * 10:
        won, lost = dice.randint(0, most), dice.randint(1, most)
        p = mcnemar(won, lost)
        assert p == mcnemar(lost, won)
        theirs = float(tables.mcnemar([[5, won], [lost, 9]], exact=True).pvalue)
        assert p == pytest.approx(min(1.0, theirs), rel=1e-9, abs=1e-300)
        assert p == pytest.approx(
            stats.binomtest(won, won + lost, 0.5).pvalue, rel=1e-9, abs=1e-300
        )


def test_mcnemar_worked_by_hand_and_of_many_pairs() -> None:
    assert (mcnemar(0, 0), mcnemar(4, 4), mcnemar(3, 4)) == (1.0, 1.0, 1.0)
    # 2 (1 + 8 + 28) / 2^8
    assert mcnemar(2, 6) == mcnemar(6, 2) == pytest.approx(74 / 256)
    exact = 2 * sum(math.comb(2000, count) for count in range(931)) / 2**2000
    assert mcnemar(930, 1070) == pytest.approx(exact, rel=1e-12)
    assert mcnemar(1_000, 19_000) == 0.0
    assert took(lambda: mcnemar(9_900, 10_100)) < 0.05


def test_same_share_is_fishers_exact_test_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for most in (60, 4000):
        for right, of, other_right, other_of in random_shares(most, seed=most):
            table = [[right, of - right], [other_right, other_of - other_right]]
            p = same_share(share(right, of), share(other_right, other_of))
            assert p == pytest.approx(stats.fisher_exact(table).pvalue, rel=1e-7, abs=1e-280)


def test_same_share_of_all_small_tables_is_exact() -> None:
    # Some have equally likely tables that are no mirror images, and that rounding sets apart.
    for of, other_of in itertools.product(range(1, 7), range(1, 12)):
        for right, other_right in itertools.product(range(of + 1), range(other_of + 1)):
            both = right + other_right
            ways = [math.comb(of, x) * math.comb(other_of, both - x) for x in range(both + 1)]
            p = sum(way for way in ways if way <= ways[right]) / sum(ways)
            made = same_share(share(right, of), share(other_right, other_of))
            assert made == pytest.approx(p, rel=1e-12)


def test_same_share_worked_by_hand_and_of_many_questions() -> None:
    # The lady tasting tea: 1, 16, 36, 16 and 1 of the 70 ways to pick four cups of eight.
    assert same_share(share(3, 4), share(1, 4)) == pytest.approx(34 / 70)
    assert same_share(share(4, 4), share(0, 4)) == pytest.approx(2 / 70)
    assert same_share(share(0, 0), share(3, 4)) == same_share(share(3, 4), share(0, 0)) == 1.0
    one, other = share(5_100, 10_000), share(4_900, 10_000)
    assert 0.001 < same_share(one, other) < 0.01
    assert same_share(share(100, 10_000), share(9_000, 10_000)) == 0.0
    assert took(lambda: same_share(one, other)) < 0.05


def test_holm_worked_by_hand() -> None:
    # Of three 3 p, 2 p and p in rising order, none below the one before it.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_holm_is_that_of_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    dice = random.Random(3)
    for count in range(1, 30):
        # Few distinct values, so that there are ties.
        ps = [dice.choice((dice.random() ** 3, 0.01, 0.2)) for _ in range(count)]
        theirs = multitest.multipletests(ps, method="holm")[1].tolist()
        assert holm(ps) == pytest.approx(theirs, abs=1e-12)
