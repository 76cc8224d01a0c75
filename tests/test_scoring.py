"""From label log-probabilities to a pick, draws and a majority."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from fake_engine import FakeEngine, uniform
from hypothesis import given
from hypothesis import strategies as st

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.prompt import LETTERS, render
from tel_edge.runtime.question import Question
from tel_edge.runtime.scoring import (
    Scorer,
    TooLong,
    draws,
    label_ids,
    majority,
    pick,
    probabilities,
)

LOGPROBS = st.lists(st.floats(-1e300, 0), min_size=2, max_size=16)


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


class Letters(FakeEngine):
    """A space and a letter are two tokens."""

    def tokenize(self, text: str) -> list[int]:
        return [256, *text.encode()]


class Merging(FakeEngine):
    """The label swallows the colon before it."""

    def tokenize(self, text: str) -> list[int]:
        ids = super().tokenize(text)
        return [*ids[:-2], 999, 999] if ids[-1] > 256 and len(ids) > 2 else ids


@pytest.mark.parametrize("engine", [Letters, Merging])
def test_a_label_that_is_not_one_token_of_its_own_is_refused(engine: type[FakeEngine]) -> None:
    with pytest.raises(InputError, match=r"label ' A' is not one token of its own"):
        label_ids(engine(uniform, 100, {}), "Answer:", (" A", " B"))


def test_label_ids_are_those_after_the_prompt() -> None:
    ids, ends = label_ids(FakeEngine(uniform, 100, {}), "Q:", tuple(f" {x}" for x in LETTERS))
    assert ids == [256, ord("Q"), ord(":")]
    assert ends == list(range(257, 273))


def test_the_longest_prompt_is_the_context() -> None:
    question = Question("1", "oranbench", "What?", ("a", "b"))
    length = len(render(question).encode()) + 1
    engine = FakeEngine(uniform, length, {})
    assert Scorer(engine)(question, None).tokens == length
    assert engine.asked == [(render(question), None)]
    with pytest.raises(TooLong, match=f"has {length} tokens, the context holds {length - 1}"):
        Scorer(FakeEngine(uniform, length - 1, {}))(question, None)


def test_questions_with_other_numbers_of_choices_get_their_own_labels() -> None:
    scorer = Scorer(FakeEngine(uniform, 1000, {}))
    for count in (2, 5, 2, 16):
        choices = tuple(f"choice {at}" for at in range(count))
        assert len(scorer(Question("1", "teleqna", "What?", choices), None).logprobs) == count
