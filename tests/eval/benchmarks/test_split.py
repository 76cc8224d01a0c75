"""The split is a partition, keeps equal texts together and depends on (rows, seed) alone."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tel_edge.eval.benchmarks.split import SHARES, capped, normalised, split
from tel_edge.runtime.questions.question import Question

PARTS = ("train", "validation", "test")
GOLDEN = [
    ["q/3", "q/4", "q/6", "q/7", "q/8", "q/9"],
    ["q/2", "q/5"],
    ["q/0", "q/1"],
]
DIGEST = "15523abbf5edfc68ed21067dc8e92e9409fdb40c8715dcbcda6d3e964b866015"


def asked(texts: list[str]) -> list[Question]:
    return [Question(f"q/{at}", "oranbench", text, ("a", "b"), 0) for at, text in enumerate(texts)]


# Few words, so that equal texts are common; then each is dressed up in another way.
WORDS = st.lists(st.sampled_from(["gNB", "é", "ﬁbre", "N2", "straße", "Δ"]), min_size=1, max_size=2)
DRESSES = (
    str,
    str.upper,
    str.casefold,
    lambda text: f"  {text} ?!",
    lambda text: text.replace(" ", " - "),
    lambda text: unicodedata.normalize("NFD", text),
    lambda text: unicodedata.normalize("NFKC", text),
)
TEXTS = st.lists(
    st.builds(lambda words, dress: dress(" ".join(words)), WORDS, st.sampled_from(DRESSES)),
    max_size=60,
)


@given(TEXTS, st.integers(0, 5))
def test_the_parts_are_a_partition_in_the_order_of_the_rows(texts: list[str], seed: int) -> None:
    questions = asked(texts)
    made = split(questions, seed)
    dealt = [question for name in PARTS for question in made.part(name)]
    assert Counter(q.id for q in dealt) == Counter(q.id for q in questions)
    for name in PARTS:
        part = made.part(name)
        assert list(part) == [question for question in questions if question in part]


@given(TEXTS, st.integers(0, 5))
def test_equal_texts_are_in_one_part(texts: list[str], seed: int) -> None:
    made = split(asked(texts), seed)
    seen = [{normalised(question.text) for question in made.part(name)} for name in PARTS]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


@given(WORDS, st.sampled_from(DRESSES))
def test_case_punctuation_space_and_unicode_form_make_no_difference(
    words: list[str], dress: Callable[[str], str]
) -> None:
    text = " ".join(words)
    assert normalised(dress(text)) == normalised(text)


@given(TEXTS, st.integers(0, 5))
def test_each_part_is_within_one_group_of_its_share(texts: list[str], seed: int) -> None:
    questions = asked(texts)
    largest = max(Counter(normalised(text) for text in texts).values(), default=0)
    made = split(questions, seed)
    ends = 0, len(made.train), len(made.train) + len(made.validation), len(questions)
    # Both borders of a part are at most one group behind where they should be.
    for at, name in enumerate(PARTS):
        wanted = SHARES[at] * len(questions)
        assert abs(len(made.part(name)) - wanted) < largest + 1e-6 or not texts
        assert -1e-6 <= ends[at] - sum(SHARES[:at]) * len(questions) < largest + 1e-6


@given(TEXTS, st.integers(0, 5))
def test_the_split_is_a_function_of_rows_and_seed(texts: list[str], seed: int) -> None:
    assert split(asked(texts), seed) == split(asked(texts), seed)


def test_the_digest_changes_with_seed_and_rows() -> None:
    questions = asked([f"question {at}" for at in range(20)])
    changes: list[dict[str, Any]] = [
        {"id": "x"}, {"text": "x"}, {"choices": ("a", "c")}, {"answer": 1}
    ]  # fmt: skip
    digests = {
        split(questions, 42).digest,
        split(questions, 43).digest,
        split(questions[:-1], 42).digest,
        *(
            split([*questions[:-1], replace(questions[-1], **change)], 42).digest
            for change in changes
        ),
    }
    assert len(digests) == 7


def test_the_split_of_a_small_list_never_changes() -> None:
    """A digest of yesterday's adapters has to be that of today's questions."""
    made = split(asked([*(f"question {at}" for at in range(9)), "QUESTION 3!"]), 42)
    assert [[q.id for q in made.part(name)] for name in PARTS] == GOLDEN
    assert made.digest == DIGEST


def test_texts_of_symbols_alone_are_not_one_group() -> None:
    made = split(asked(["?", "!", "+", "-", "*"]), 0)
    assert [len(made.part(name)) for name in PARTS] == [3, 1, 1]


@pytest.mark.parametrize("most", [None, 0, 3, 10, 99])
def test_a_cap_keeps_the_order_and_the_sample(most: int | None) -> None:
    made = capped(range(10), most, 42)
    assert len(made) == min(10, 10 if most is None else most)
    assert list(made) == sorted(made)
    assert made == capped(range(10), most, 42)


def test_caps_are_drawn_not_cut() -> None:
    assert {capped(range(100), 5, seed) for seed in range(3)} != {(0, 1, 2, 3, 4)}
    assert len({capped(range(100), 5, seed) for seed in range(3)}) == 3
