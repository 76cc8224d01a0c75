"""Free generation: the prompt, letter for letter, and what is read from a text."""

from __future__ import annotations

import dataclasses
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions import protocol, votes
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.question import Question

CHOICE = Question("1", "oranbench", "What is E2?", ("an interface", "a timer", "C) a trap"), 0)
CHOICE_TEXT = """\
Choose the right option. Give no reasons. Reply with one line: ANSWER: and the letter of the option.
What is E2?
A) an interface
B) a timer
C) C) a trap
Reply:"""

GROUPS = CATEGORIES["3gpp_tsg"].labels
LABELLED = Question("1", "3gpp_tsg", "Paging {in} idle.", GROUPS)
LABELLED_TEXT = """\
Give no reasons. Reply with one line: ANSWER: and one of CT1, CT3, CT4, CT6, RAN1, RAN2, RAN3, \
RAN4, RAN5, RAN_AH1, SA1, SA2, SA3, SA4, SA5, SA6.
Which 3GPP working group is this text from?
Paging {in} idle.
Reply:"""


def test_a_question_with_choices() -> None:
    assert protocol.render(CHOICE) == CHOICE_TEXT


def test_a_question_with_the_categorys_labels() -> None:
    assert protocol.render(LABELLED) == LABELLED_TEXT


def test_a_request_of_no_category_is_one_with_choices() -> None:
    request = dataclasses.replace(CHOICE, category="")
    assert protocol.render(request) == CHOICE_TEXT
    assert protocol.parse("ANSWER: C", request) == 2


@pytest.mark.parametrize("question", [CHOICE, LABELLED])
def test_spelled_answers_are_refused(question: Question) -> None:
    with pytest.raises(InputError, match="can be scored only"):
        protocol.render(dataclasses.replace(question, spelled=True))


@pytest.mark.parametrize("category", CATEGORIES)
def test_what_all_questions_share_comes_first(category: str) -> None:
    labels = CATEGORIES[category].labels
    one = protocol.render(Question("1", category, "One?", labels or ("a", "b")))
    other = protocol.render(Question("2", category, "Other?", labels or ("c", "d", "e")))
    shared, _ = one.split("One?")
    assert "ANSWER:" in shared
    assert other.startswith(shared)


def test_neither_the_answer_nor_the_id_is_shown() -> None:
    shown = {
        protocol.render(Question(id, "oranbench", "What?", ("a", "b"), answer))
        for id, answer in (("1", 0), ("secret", 1), ("x", None))
    }
    assert len(shown) == 1


def test_the_digest_never_changes_unseen() -> None:
    """When the prompt is changed on purpose, scores of both prompts cannot be compared."""
    assert protocol.digest() == "f2a14e99ddd6c7fc2fcc36d1f73729ed338a070048f6d0ab424f8867c291bd9f"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CHOICE_HEADER", "ANSWER: and a letter.\n"),
        ("LABEL_HEADER", "ANSWER: and one of {labels}.\n"),
        ("FOOTER", "\n"),
        ("LETTERS", "abcdefghijklmnop"),
    ],
)
def test_the_digest_covers_the_prompt(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = protocol.digest()
    monkeypatch.setattr(protocol, name, value)
    assert protocol.digest() != before


FOUR = Question("1", "teleqna", "What?", ("w", "x", "y", "z"))


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("ANSWER: A", 0),
        ("ANSWER: D", 3),
        ("answer: c", 2),
        ("Answer : b", 1),
        ("ANSWER:B", 1),
        ("ANSWER:\nB", 1),
        ("ANSWER: B\n", 1),
        ("ANSWER: B\r\n", 1),
        ("It sends pages.\r\nANSWER: B\r\nANSWER: C\r\n", 2),
        ("ANSWER: B.", 1),
        ("ANSWER: B. It is the timer.", 1),
        ("ANSWER:      B      ", 1),
        # The last line counts, also where it is less sure than an earlier one.
        ("ANSWER: A\nNo, wait.\nANSWER: B", 1),
        ("Answer: this is hard.\nANSWER: B", 1),
        ("ANSWER: B\nAnswer: this was hard", None),
        ("ANSWER: B\nANSWER: E", None),
        # A line of its own goes before a later one inside a line.
        ("ANSWER: B\nI said ANSWER: C", 1),
        ("ANSWER: B. It times out.\nI said ANSWER: C", 1),
        # Inside a line, up to what is not a letter, digit, space or comma.
        ("The ANSWER: B", 1),
        ("  ANSWER: B", 1),
        ("ANSWER: B) x", 1),
        ("ANSWER: B: x", 1),
        ("**ANSWER: B**", 1),
        ("The answer: A? No, the answer: C!", 2),
        ("The answer: A, no, the answer: C!", None),
        # Words, several letters, marks.
        ("ANSWER: B because it times out", None),
        ("ANSWER: B is right (see above)", None),
        ("ANSWER: AB", None),
        ("ANSWER: A, B", None),
        ("ANSWER: B,", None),
        ("ANSWER: B2", None),
        ("ANSWER: **B**", None),
        ("**ANSWER**: B", None),
        ("ANSWER: (B)", None),
        ("ANSWER: <letter>", None),
        ("ANSWER: 2", None),
        # Outside the choices.
        ("ANSWER: E", None),
        ("ANSWER: @", None),
        # Nothing to read.
        ("", None),
        ("\n", None),
        ("ANSWER:", None),
        ("ANSWER: ", None),
        ("ANSWER B", None),
        ("B", None),
        ("B) x", None),
        ("The answer is B.", None),
    ],
)
def test_a_letter(text: str, index: int | None) -> None:
    assert protocol.parse(text, FOUR) == index


def test_the_letters_are_those_of_the_choices() -> None:
    two = Question("1", "teleqna", "What?", ("w", "x"))
    sixteen = Question("1", "teleqna", "What?", tuple(str(at) for at in range(16)))
    assert protocol.parse("ANSWER: C", two) is None
    assert protocol.parse("ANSWER: P", sixteen) == 15
    assert protocol.parse("ANSWER: Q", sixteen) is None


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("ANSWER: RAN1", "RAN1"),
        ("SA6", "SA6"),
        ("answer: ct4", "CT4"),
        ("This is from **SA2**.", "SA2"),
        ("RAN3\r\n", "RAN3"),
        ("3GPP SA5", "SA5"),
        # The first run counts, whatever it is.
        ("ANSWER: SA2\nANSWER: SA3", "SA2"),
        ("TSG RAN WG1, so RAN1", None),
        ("As of Rel17: SA2", None),
        ("5GS2 or SA2", None),
        # The run is AH1.
        ("RAN_AH1", None),
        ("ANSWER: RAN_AH1", None),
        ("RAN1_AH", "RAN1"),
        # A dash and letters belong to the run, a dash and digits do not.
        ("SA2-LI", None),
        ("RAN1-AH1", None),
        ("SA2-1", "SA2"),
        ("SA2 - LI", "SA2"),
        ("RAN12", None),
        ("XRAN1", None),
        ("RAN 1", None),
        ("RAN-1", None),
        ("ANSWER: RAN", None),
        ("B", None),
        ("", None),
    ],
)
def test_a_working_group(text: str, group: str | None) -> None:
    wanted = GROUPS.index(group) if group else None
    assert protocol.parse(text, LABELLED) == wanted


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "RAN_AH1"])
def test_all_working_groups_but_one_can_be_given(group: str) -> None:
    assert protocol.parse(f"ANSWER: {group}", LABELLED) == GROUPS.index(group)


@given(st.text() | st.text("ANSWER: abRS12-_*.\r\n\t", max_size=60))
def test_any_text_is_a_choice_or_none(text: str) -> None:
    for question in (FOUR, LABELLED):
        index = protocol.parse(text, question)
        assert index is None or 0 <= index < len(question.choices)


@pytest.mark.parametrize(
    "text",
    [
        "ANSWER:" + " " * 20_000 + "_",
        "ANSWER:" + " a" * 10_000 + "_",
        "ANSWER: " * 3_000 + "_",
        "A" * 20_000,
    ],
)
def test_a_model_that_repeats_itself_is_read_in_time(text: str) -> None:
    start = time.process_time()
    assert protocol.parse(text, FOUR) is None
    assert protocol.parse(text, LABELLED) is None
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("parsed", "winner"),
    [
        ((1, 1, None, None), 1),
        ((None, None, 1, 1), None),
        ((None, 2, None, 1), None),
        ((2, 1, None, 0), 2),
        ((0, None, None, 0), 0),
        ((None,), None),
    ],
)
def test_texts_without_an_answer_vote_too(
    parsed: tuple[int | None, ...], winner: int | None
) -> None:
    assert votes.majority(parsed) == winner
