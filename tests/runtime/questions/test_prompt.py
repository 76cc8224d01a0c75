"""The prompt, letter for letter: adapters are trained on it and bundles carry its digest."""

from __future__ import annotations

import pytest

from tel_edge.runtime.questions import prompt
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.question import Question

CHOICE = Question("1", "oranbench", "What is E2?", ("an interface", "a timer", "C) a trap"), 0)
CHOICE_TEXT = """Answer with one letter.
What is E2?
A) an interface
B) a timer
C) C) a trap
Answer:"""

LABELLED = Question("1", "3gpp_tsg", "Paging in idle.", CATEGORIES["3gpp_tsg"].labels)
LABELLED_TEXT = """Answer with one letter.
Which 3GPP working group is this text from?
Paging in idle.
A) CT1
B) CT3
C) CT4
D) CT6
E) RAN1
F) RAN2
G) RAN3
H) RAN4
I) RAN5
J) RAN_AH1
K) SA1
L) SA2
M) SA3
N) SA4
O) SA5
P) SA6
Answer:"""


def test_a_question_with_choices() -> None:
    assert prompt.render(CHOICE) == CHOICE_TEXT
    assert prompt.labels(CHOICE) == (" A", " B", " C")


def test_a_question_with_the_categorys_labels() -> None:
    assert prompt.render(LABELLED) == LABELLED_TEXT
    assert prompt.labels(LABELLED) == tuple(f" {letter}" for letter in "ABCDEFGHIJKLMNOP")


@pytest.mark.parametrize("question", [CHOICE, LABELLED])
def test_what_all_questions_share_comes_first(question: Question) -> None:
    assert prompt.render(question).startswith(prompt.HEADER)


def test_neither_the_answer_nor_the_id_is_shown() -> None:
    shown = {
        prompt.render(Question(id, "oranbench", "What?", ("a", "b"), answer))
        for id, answer in (("1", 0), ("secret", 1), ("x", None))
    }
    assert len(shown) == 1


def test_the_digest_never_changes_unseen() -> None:
    """When the prompt is changed on purpose, every adapter has to be trained again."""
    assert prompt.digest() == "580eff14e0b2f73629cdd656aafef0e3b9abd4345efbfbfc6cab4d5fc28fa6c1"


@pytest.mark.parametrize(
    ("name", "value"), [("HEADER", "Answer.\n"), ("LETTERS", "abcdefghijklmnop")]
)
def test_the_digest_covers_the_prompt(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prompt.digest()
    monkeypatch.setattr(prompt, name, value)
    assert prompt.digest() != before
