"""Probabilities averaged over orders of the options: of the option, wherever it stood."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import fake_engine as fake
import pytest

from tel_edge.runtime.answerer import Answerer, Answering
from tel_edge.runtime.engines.engine import Score
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.orders import averaged, rotations, shifts, unnumbered
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import Asked

WORTH = {"red": 0.1, "green": 0.4, "blue": 0.2, "grey": 0.1}
QUESTION = Question("q", "oranbench", "Which colour?", tuple(WORTH), 1)


class Fond:
    """Gives each option what it is worth, and the first letter as much again."""

    def __init__(self, broken: str = "") -> None:
        self.asked: list[str] = []
        self.broken = broken

    def many(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Score | InputError]]:
        # As an engine does, in an order of its own.
        for index in reversed(range(len(asked))):
            question, adapter = asked[index]
            assert adapter == "oranbench"
            self.asked.append(question.id)
            if question.id == self.broken:
                yield index, InputError("broken")
                continue
            shares = [WORTH[text] + 0.2 * (at == 0) for at, text in enumerate(question.choices)]
            yield index, Score(tuple(map(math.log, shares)), 10, 4, 2.0)


def test_each_option_has_its_mean_over_the_places() -> None:
    scorer = Fond()
    [(index, made)] = averaged(scorer, [(QUESTION, "oranbench")], 4)
    assert isinstance(made, Score)
    assert index == 0
    # The love of the first letter is spread evenly: 0.2 in one of four places.
    wanted = [share + 0.05 for share in WORTH.values()]
    assert [math.exp(value) for value in made.logprobs] == pytest.approx(wanted)
    assert (made.tokens, made.decoded, made.milliseconds) == (40, 16, 8.0)
    assert sorted(scorer.asked) == ["q", "q#1", "q#2", "q#3"]


def test_all_orders_give_one_answer_whatever_stands_first() -> None:
    turned = [QUESTION, *rotations(QUESTION)]
    made = dict(averaged(Fond(), [(question, "oranbench") for question in turned], 4))
    for at, question in enumerate(turned):
        score = made[at]
        assert isinstance(score, Score)
        by_text = dict(zip(question.choices, score.logprobs, strict=True))
        assert by_text["green"] == pytest.approx(math.log(0.45))


@pytest.mark.parametrize(
    ("orders", "wanted"), [(1, (0,)), (2, (0, 2)), (3, (0, 1, 2)), (4, (0, 1, 2, 3)), (9, None)]
)
def test_orders_stand_far_apart(orders: int, wanted: tuple[int, ...] | None) -> None:
    assert shifts(QUESTION, orders) == (wanted or (0, 1, 2, 3))


def test_fixed_labels_and_unseen_answers_have_one_order() -> None:
    fixed = Question("q", "3gpp_tsg", "?", ("CT1", "CT3"), 0)
    spelled = Question("q", "oranbench", "?", ("yes", "no"), 0, spelled=True)
    assert shifts(fixed, 4) == shifts(spelled, 4) == (0,)


def test_what_fails_in_one_order_is_told_once() -> None:
    asked = [(QUESTION, "oranbench"), (Question("r", "oranbench", "?", ("red", "blue"), 0),
                                      "oranbench")]  # fmt: skip
    made = list(averaged(Fond("q#2"), asked, 4))
    assert sorted(index for index, _ in made) == [0, 1]
    assert isinstance(dict(made)[0], InputError)
    assert isinstance(dict(made)[1], Score)


def test_an_answerer_asks_in_several_orders() -> None:
    engine = fake.FakeEngine(fake.gold, 4096, {})
    with Answerer(engine, Answering(orders=4), adapters=None) as answerer:
        once = Answerer(engine, adapters=None)
        made, plain = (
            one.answer("Which colour?", list(WORTH), "oranbench") for one in (answerer, once)
        )
        assert made.tokens > 3 * plain.tokens
        assert sum(made.probabilities) == pytest.approx(1)
    with pytest.raises(InputError, match="1 for generated texts"):
        Answering(generate=True, orders=2)


@pytest.mark.parametrize(
    ("choices", "left"),
    [
        (("1. red", "2. green", "3. blue"), ("red", "green", "blue")),
        (("3. red", "1. green", "2. blue"), ("red", "green", "blue")),
        (("(a) red", "(b) green"), ("red", "green")),
        (("A: red", "B: green"), ("red", "green")),
        # Not those of all places, not all of them, nothing left, or equal without them.
        (("1. red", "3. green"), None),
        (("1. red", "green"), None),
        (("5.1 GHz", "2.4 GHz"), None),
        (("1. ", "2. "), None),
        (("1. red", "2. red"), None),
        (("A red", "B green"), None),
    ],
)
def test_numbers_that_say_a_place_are_left_out(
    choices: tuple[str, ...], left: tuple[str, ...] | None
) -> None:
    assert unnumbered(choices) == (left or choices)
    asked = Question("q", "oranbench", "Which?", choices, 0)
    for by, moved in enumerate(rotations(asked), 1):
        whole = left or choices
        assert moved.choices == whole[by:] + whole[:by]
        assert moved.choices[moved.answer or 0] == whole[0]
