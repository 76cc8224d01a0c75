"""From label log-probabilities to a pick, draws and a majority, drawn or exact."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.votes import (
    MOST_DRAWS,
    draws,
    majority,
    majority_share,
    majority_shares,
    pick,
    probabilities,
)

LOGPROBS = st.lists(st.floats(-1e300, 0), min_size=2, max_size=16)
SHARES = (
    st.lists(st.floats(0, 1), min_size=1, max_size=6)
    .filter(lambda weights: sum(weights) > 1e-3)
    .map(lambda weights: [weight / math.fsum(weights) for weight in weights])
)
DRAWS = st.integers(1, 9)


@pytest.mark.parametrize(
    ("logprobs", "index"),
    [((-1.0, -1.0), 0), ((-2.0, -1.0, -1.0), 1), ((-1.0, -2.0), 0), ((-3.0, -2.0, -1.0), 2)],
)
def test_the_first_of_equal_values_is_picked(logprobs: tuple[float, ...], index: int) -> None:
    assert pick(logprobs) == index


@given(LOGPROBS, st.floats(1e-6, 1e6))
def test_probabilities_are_finite_and_sum_to_one(logprobs: list[float], temperature: float) -> None:
    shares = probabilities(logprobs, temperature)
    assert math.isclose(math.fsum(shares), 1, abs_tol=1e-12)
    assert all(0 <= share <= 1 for share in shares)
    # A colder distribution never moves the top.
    assert shares[pick(logprobs)] == max(shares)


@given(st.floats(-1e6, 1e6), LOGPROBS)
def test_probabilities_do_not_depend_on_a_shift(shift: float, logprobs: list[float]) -> None:
    small = [max(value, -50) for value in logprobs]
    moved = probabilities([value + shift for value in small])
    assert moved == pytest.approx(probabilities(small), abs=1e-6)


def test_temperature_sharpens_and_flattens() -> None:
    logprobs = [math.log(0.8), math.log(0.2)]
    assert probabilities(logprobs) == pytest.approx([0.8, 0.2])
    assert probabilities(logprobs, 0.5) == pytest.approx([0.64 / 0.68, 0.04 / 0.68])


def test_draws_are_a_function_of_seed_and_id() -> None:
    logprobs = [math.log(share) for share in (0.4, 0.3, 0.2, 0.1)]
    ids = [f"oranbench/{at}" for at in range(50)]
    made = {id: draws(logprobs, 4, 0.7, 42, id) for id in ids}
    random.Random(1).shuffle(ids)
    random.random()
    assert made == {id: draws(logprobs, 4, 0.7, 42, id) for id in ids}
    assert len(set(made.values())) > 20
    assert made != {id: draws(logprobs, 4, 0.7, 43, id) for id in ids}


def test_draws_follow_the_distribution() -> None:
    shares = (0.5, 0.3, 0.15, 0.05)
    logprobs = [math.log(share) - 7 for share in shares]
    counts: Counter[int] = Counter()
    for at in range(2000):
        counts.update(draws(logprobs, 4, 1.0, 42, str(at)))
    for index, share in enumerate(shares):
        # Five standard deviations of 8,000 draws.
        assert abs(counts[index] / 8000 - share) < 5 * math.sqrt(share * (1 - share) / 8000)


@pytest.mark.parametrize(
    ("votes", "winner"),
    [((3, 1, 1, 3), 3), ((1, 3, 3, 1), 1), ((2, 0, 0, 1), 0), ((2,), 2), ((4, 3, 2, 1), 4)],
)
def test_of_equally_frequent_votes_the_first_seen_wins(votes: tuple[int, ...], winner: int) -> None:
    assert majority(votes) == winner


@pytest.mark.parametrize(
    ("shares", "k", "wanted"),
    [
        # Two draws: both the label, or it and another one with it first.
        ((0.6, 0.4), 2, (0.6, 0.4)),
        # p^3 + 3 p^2 q.
        ((0.6, 0.4), 3, (0.648, 0.352)),
        # p^4 + 4 p^3 q + half of 6 p^2 q^2: for an even k the first draw decides a tie.
        ((0.6, 0.4), 4, (0.648, 0.352)),
        # p^3 + 3 p^2 (1 - p) + a third of 6 p q r.
        ((0.5, 0.3, 0.2), 3, (0.56, 0.276, 0.164)),
        # One count of two and two of one: 12 p^2 q r; of two and two, 6 p^2 q^2, a half each.
        (
            (0.5, 0.25, 0.25),
            4,
            (
                0.0625 + 4 * 0.125 * 0.5 + 12 * 0.25 * 0.0625 + 2 * 3 * 0.25 * 0.0625,
                (1 - 0.0625 - 4 * 0.125 * 0.5 - 12 * 0.25 * 0.0625 - 2 * 3 * 0.25 * 0.0625) / 2,
                (1 - 0.0625 - 4 * 0.125 * 0.5 - 12 * 0.25 * 0.0625 - 2 * 3 * 0.25 * 0.0625) / 2,
            ),
        ),
    ],
)
def test_majority_shares_by_hand(
    shares: tuple[float, ...], k: int, wanted: tuple[float, ...]
) -> None:
    assert majority_shares(shares, k) == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize("k", range(1, 6))
@pytest.mark.parametrize(
    "shares",
    [
        (1.0,),
        (0.7, 0.3),
        (0.25, 0.25, 0.5),
        (0.9, 0.09, 0.01),
        (0.1, 0.2, 0.3, 0.4),
        (0.25, 0.25, 0.25, 0.25),
        (0.0, 0.6, 0.0, 0.4),
        (1e-9, 0.5, 0.5 - 1e-9),
    ],
)
def test_majority_shares_are_those_of_all_sequences_of_draws(
    shares: tuple[float, ...], k: int
) -> None:
    won = [0.0] * len(shares)
    for sequence in itertools.product(range(len(shares)), repeat=k):
        winner = Counter(sequence).most_common(1)[0][0]
        won[winner] += math.prod(shares[label] for label in sequence)
    assert majority_shares(shares, k) == pytest.approx(won, rel=0, abs=1e-12)
    assert [majority_share(shares, k, at) for at in range(len(shares))] == majority_shares(
        shares, k
    )


@pytest.mark.parametrize("k", [15, 16, 63, 64])
@pytest.mark.parametrize("share", [0.5, 0.55, 0.01, 0.999])
def test_two_labels_are_the_tail_of_a_binomial(share: float, k: int) -> None:
    p = Fraction(share)
    tail = Fraction(0)
    for count in range((k + 1) // 2, k + 1):
        tie = Fraction(1, 2) if 2 * count == k else 1
        tail += tie * math.comb(k, count) * p**count * (1 - p) ** (k - count)
    assert majority_share((share, 1 - share), k, 0) == pytest.approx(float(tail), rel=1e-12)


def test_many_labels_and_draws_stay_exact() -> None:
    # Equal shares leave no label an advantage, whatever the number of ties between sixteen.
    assert majority_shares([1 / 16] * 16, 32) == pytest.approx([1 / 16] * 16, rel=1e-12)
    # Nothing underflows on the way.
    shares = [1e-12] * 15 + [1 - 15e-12]
    won = majority_shares(shares, 4)
    # Two of it and two of the common label, it being first in a half: 6 p^2 q^2 / 2.
    assert won[0] == pytest.approx(3e-24, rel=1e-6)


def test_the_most_draws_are_sound_and_more_are_refused() -> None:
    shares = [0.3, 0.25, 0.2, 0.15, 0.1]
    won = majority_shares(shares, MOST_DRAWS)
    assert math.isclose(math.fsum(won), 1, abs_tol=1e-12)
    # Against the multinomial in whole numbers, two labels and an odd number of draws.
    k, share = MOST_DRAWS - 1, Fraction(2, 5)
    tail = sum(
        math.comb(k, i) * share**i * (1 - share) ** (k - i) for i in range((k + 1) // 2, k + 1)
    )
    assert majority_share((0.4, 0.6), k, 0) == pytest.approx(float(tail), rel=1e-12)
    began = time.process_time()
    majority_share([1 / 16] * 16, MOST_DRAWS, 3)
    assert time.process_time() - began < 1
    for k in (0, MOST_DRAWS + 1, 720):
        with pytest.raises(InputError, match=f"a majority of {k} draws; 1 to {MOST_DRAWS} can"):
            majority_share(shares, k, 0)


@given(SHARES, DRAWS)
def test_majority_shares_are_a_distribution(shares: list[float], k: int) -> None:
    won = majority_shares(shares, k)
    assert math.isclose(math.fsum(won), 1, abs_tol=1e-12)
    assert all(0 <= share <= 1 + 1e-12 for share in won)


@given(SHARES, DRAWS, st.randoms(use_true_random=False))
def test_the_order_of_the_labels_does_not_matter(
    shares: list[float], k: int, rng: random.Random
) -> None:
    order = list(range(len(shares)))
    rng.shuffle(order)
    won = majority_shares(shares, k)
    moved = majority_shares([shares[at] for at in order], k)
    assert moved == pytest.approx([won[at] for at in order], abs=1e-13)


@given(SHARES)
def test_one_draw_is_its_own_majority(shares: list[float]) -> None:
    assert majority_shares(shares, 1) == shares


@given(SHARES)
def test_two_draws_are_no_better_than_one(shares: list[float]) -> None:
    assert majority_shares(shares, 2) == pytest.approx(shares, abs=1e-13)


@given(SHARES, DRAWS)
def test_a_label_that_is_never_drawn_changes_nothing(shares: list[float], k: int) -> None:
    won = majority_shares(shares, k)
    assert majority_shares([*shares, 0.0], k) == pytest.approx([*won, 0.0], abs=1e-13)


@pytest.mark.parametrize("k", [1, 2, 4, 7, 16, 64])
def test_a_certain_label_always_wins(k: int) -> None:
    assert majority_shares((0.0, 1.0, 0.0), k) == pytest.approx([0.0, 1.0, 0.0], rel=1e-13)
