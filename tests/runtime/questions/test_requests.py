"""From arguments and lines to questions: whose category, which answers, and what is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.categories import CATEGORIES, WORKING_GROUPS
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.requests import (
    MOST_LABELS,
    Defaults,
    Request,
    from_arguments,
    from_lines,
    request,
)
from tel_edge.runtime.questions.router import Route

ASK = {"question": "Which one?", "choices": ["a", "b"]}
ORAN = Defaults(CATEGORIES["oranbench"])


class Router:
    """Sends every request to one category and keeps what it was asked."""

    def __init__(self, category: str | None) -> None:
        self.answer = Route(category, 0.75, {})
        self.asked: list[tuple[str, Sequence[str]]] = []

    def __call__(self, text: str, choices: Sequence[str]) -> Route:
        self.asked.append((text, choices))
        return self.answer


def asked(row: Any, defaults: Defaults = ORAN) -> Question:
    made = request(1, row, defaults)
    assert made.error == ""
    assert made.question is not None
    return made.question


def refused(row: Any, defaults: Defaults = ORAN) -> str:
    made = request(7, row, defaults)
    assert (made.question, made.line) == (None, 7)
    return made.error


def test_the_line_goes_before_the_default_and_that_before_the_router() -> None:
    router = Router("teleqna")
    both = Defaults(CATEGORIES["oranbench"], router)
    assert asked({**ASK, "category": "sixg_bench"}, both).category == "sixg_bench"
    assert asked(ASK, both).category == "oranbench"
    assert asked({**ASK, "category": None}, both).category == "oranbench"
    assert router.asked == []
    made = request(1, ASK, Defaults(router=router))
    assert made.question
    assert made.question.category == "teleqna"
    assert made.route is router.answer
    assert router.asked == [("Which one?", ("a", "b"))]
    # Where the category is named, nobody was asked for it.
    assert request(1, ASK, both).route is None


def test_a_router_that_abstains_leaves_no_category() -> None:
    router = Router(None)
    made = request(1, ASK, Defaults(router=router))
    assert made.question
    assert (made.question.category, made.route) == ("", router.answer)


def test_a_router_may_choose_a_category_with_labels_of_its_own() -> None:
    made = asked({"question": "paging"}, Defaults(router=Router("3gpp_tsg")))
    assert made.choices == WORKING_GROUPS
    assert asked({"question": "paging"}, Defaults(CATEGORIES["3gpp_tsg"])).choices == WORKING_GROUPS


def test_without_any_category() -> None:
    assert asked(ASK, Defaults(bare=True)).category == ""
    assert refused(ASK, Defaults()) == (
        "no category, and no router in the bundle that finds one; name it with --category or in "
        "the line"
    )
    assert refused({**ASK, "category": "poetry"}).startswith("unknown category 'poetry'; there are")
    # What is no name at all is none that there is.
    assert refused({**ASK, "category": ["oranbench"]}).startswith(
        "unknown category \"['oranbench']"
    )


# What is wrong is said the same whether a router is asked or not.
WRONG: tuple[tuple[Any, str], ...] = (
    ({}, "column 'question' is missing"),
    ({"question": 5, "choices": ["a", "b"]}, "column 'question' holds int, wanted a string"),
    ({"question": "?"}, "column 'choices' is missing"),
    ({"question": "?", "choices": 5}, "column 'choices' holds int, wanted a list of strings"),
    ({"question": "?", "choices": "ab"}, "column 'choices' holds str, wanted a list of strings"),
    ({"question": "?", "choices": {"a": 1}}, "column 'choices' holds dict, wanted a list"),
    ({"question": "?", "choices": ["a", 1]}, "column 'choices' holds list, wanted a list"),
    ({"question": "?", "choices": ["a", None]}, "column 'choices' holds list, wanted a list"),
    ({"question": "?", "choices": ["a"]}, "1 choices; 2 to 16 can be answered"),
    ({"question": " ", "choices": ["a", "b"]}, "empty question"),
    ({"question": "half \ud83d", "choices": ["a", "b"]}, "'\\ud83d' is no Unicode character"),
    ({"question": "?", "labels": "yes,no"}, "field 'labels' is no list of strings"),
    ({"question": "?", "labels": ["yes", 1]}, "field 'labels' is no list of strings"),
    ({**ASK, "labels": ["yes", "no"]}, "both labels and choices; give one"),
    ({"question": "?", "labels": ["yes"]}, "1 choices; 2 to 200 can be answered"),
    ({"question": "?", "labels": ["yes", " yes"]}, "two equal choices: 'yes'"),
    ({"question": "?", "labels": ["yes", " "]}, "choice 1 is empty"),
    ({"question": "?", "labels": ["yes", "\ud83d"]}, "'\\ud83d' is no Unicode character"),
    ({"question": 5, "labels": ["yes", "no"]}, "column 'question' holds int, wanted a string"),
)


@pytest.mark.parametrize(("row", "said"), WRONG)
@pytest.mark.parametrize(
    "defaults",
    [
        ORAN,
        Defaults(router=Router("oranbench")),
        Defaults(router=Router(None)),
        Defaults(bare=True),
    ],
)
def test_what_is_wrong_with_a_request(row: Any, said: str, defaults: Defaults) -> None:
    assert refused(row, defaults).startswith(said)


def test_labels_of_a_question_are_its_answers_in_words() -> None:
    made = asked({"question": " Up? ", "labels": ["yes", "no way"]})
    assert (made.text, made.choices, made.spelled) == ("Up?", ("yes", "no way"), True)
    # They go before the labels of the command.
    given = Defaults(CATEGORIES["oranbench"], labels=("in", "out"))
    assert asked({"question": "?", "choices": None, "labels": ["yes", "no"]}, given).choices == (
        "yes",
        "no",
    )
    assert asked({"question": "?"}, given).choices == ("in", "out")
    assert asked({"question": "?"}, given).spelled
    # A question with options is asked with these.
    assert (asked(ASK, given).choices, asked(ASK, given).spelled) == (("a", "b"), False)
    most = [str(at) for at in range(MOST_LABELS)]
    assert len(asked({"question": "?", "labels": most}).choices) == MOST_LABELS
    assert refused({"question": "?", "labels": [*most, "x"]}) == (
        f"{MOST_LABELS + 1} choices; 2 to {MOST_LABELS} can be answered"
    )


def test_labels_replace_those_of_the_category() -> None:
    of = Defaults(CATEGORIES["3gpp_tsg"])
    marked = "###TEXT: {paging}"
    assert asked({"question": marked, "labels": ["RAN", "SA"]}, of).choices == ("RAN", "SA")
    assert asked({"question": marked}, of).text == "paging"
    assert asked({"question": marked, "labels": ["RAN", "SA"]}, of).text == "paging"


def test_an_id_is_the_lines_number_where_there_is_none() -> None:
    assert asked(ASK).id == "1"
    assert asked({**ASK, "id": None}).id == "1"
    assert asked({**ASK, "id": 0}).id == "0"
    assert asked({**ASK, "id": "x/1"}).id == "x/1"


def test_a_right_answer_in_a_request_is_not_looked_at() -> None:
    assert asked({**ASK, "answer": 1}).answer is None
    assert asked({**ASK, "answer": "nonsense"}).answer is None


def test_arguments_share_their_choices() -> None:
    made = list(from_arguments(["one?", "two?"], ["a", "b"], ORAN))
    assert [(r.line, r.question and r.question.text) for r in made] == [(1, "one?"), (2, "two?")]
    assert all(r.question and r.question.choices == ("a", "b") for r in made)
    (made_,) = from_arguments(["?"], [], Defaults(CATEGORIES["oranbench"], labels=("x", "y")))
    assert made_.question
    assert made_.question.choices == ("x", "y")


LINES = ['{"question": "torn', "[" * 100_000, "[1]", "null", '"text"', "NaN", "1" * 5000]


@pytest.mark.parametrize("bad", LINES)
def test_a_line_that_is_no_request_keeps_its_number(bad: str) -> None:
    lines = [json.dumps(ASK), "", "  \n", bad, json.dumps(ASK)]
    one, two, three = from_lines(lines, ORAN)
    assert (one.line, two.line, three.line) == (1, 4, 5)
    assert one.question
    assert three.question
    assert two == Request(4, None, two.error)
    assert two.error.startswith("not ")


def test_lines_are_read_one_by_one() -> None:
    read: list[str] = []

    def lines() -> Any:
        for at in range(100):
            read.append(str(at))
            yield json.dumps(ASK)

    made = from_lines(lines(), ORAN)
    next(made)
    assert read == ["0"]


def test_an_id_is_kept_as_it_was_given() -> None:
    for given in ("x/1", 7, 0, 1.5, True, 10**30):
        made = request(3, {**ASK, "id": given}, ORAN)
        assert (made.id, type(made.id)) == (given, type(given))
        assert request(3, {"id": given}, ORAN).id == given, "in an error too"
    assert request(3, ASK, ORAN).id == "3"
    assert request(3, {}, ORAN).id is None


def test_byte_order_marks_and_windows_line_ends_lose_no_question() -> None:
    line = json.dumps(ASK)
    made = list(from_lines([f"\ufeff{line}\r\n", "\ufeff\r\n", f"\ufeff{line}"], ORAN))
    assert [(one.line, one.error) for one in made] == [(1, ""), (3, "")]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_called_by_its_name(encoding: str) -> None:
    text = f"{json.dumps(ASK)}\n".encode(encoding).decode("utf-8", "surrogateescape")
    with pytest.raises(InputError, match=r"^this is UTF-16, not UTF-8; save it as UTF-8"):
        list(from_lines(text.splitlines(keepends=True), ORAN))


def test_a_value_over_several_lines_says_how_lines_are_written() -> None:
    first, *_ = from_lines(["[\n", f"{json.dumps(ASK)},\n", "]\n"], ORAN)
    assert "write one object a line" in first.error
    (listed,) = from_lines([json.dumps([ASK])], ORAN)
    assert listed.error == "not a JSON object but a list; write one object a line"
