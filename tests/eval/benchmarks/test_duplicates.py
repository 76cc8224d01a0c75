"""Near-duplicates: what is planted is found, what only looks alike is not."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tel_edge.eval.benchmarks import benchmark, duplicates
from tel_edge.eval.benchmarks.duplicates import Duplicate, Duplicates, nearest
from tel_edge.eval.benchmarks.split import Split, split
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.question import Question

ORAN = CATEGORIES["oranbench"]
STEM = "Which of the following is the main purpose of the"
THINGS = "alarm bearer beacon cell codec filter frame gateway handover slice timer tunnel".split()
TEXTS = st.lists(st.lists(st.sampled_from("a b c d 1 2 . +".split()), max_size=6), max_size=8)


def asked(name: str, text: str, answer: str | None = "right") -> Question:
    choices = ("wrong", answer or "right")
    return Question(name, "oranbench", text, choices, None if answer is None else 1)


def train() -> list[Question]:
    """Questions with one stem in which one thing of two words differs."""
    return [
        asked(f"t{at}.{by}", f"{STEM} {one} {other}?")
        for at, one in enumerate(THINGS)
        for by, other in enumerate(THINGS)
        if at < by
    ]


def plain(known: list[Question], scored: list[Question], threshold: float) -> tuple[Duplicate, ...]:
    """The definition, word by word and pair by pair; weights are real numbers here."""

    @cache
    def words(text: str) -> set[str]:
        found = re.findall(r"\d+(?:[\W]+\d+)*\b|\w+", text.lower())
        return {re.sub(r"\W+", " ", word) for word in found} or {text}

    @cache
    def weight(word: str) -> float:
        count = sum(word in words(question.text) for question in known)
        return math.log((len(known) + 1) / max(1, count)) ** 2

    @cache
    def likeness(one: str, other: str) -> float:
        either, both = words(one) | words(other), words(one) & words(other)
        return math.fsum(map(weight, both)) / math.fsum(map(weight, either))

    found = []
    for question in scored:
        best = max((likeness(question.text, other.text) for other in known), default=0.0)
        if best >= threshold:
            first = next(q for q in known if likeness(question.text, q.text) > best - 1e-9)
            found.append(Duplicate(question.id, first.id, best, True))
    return tuple(found)


def test_a_rewording_is_found_and_a_shared_stem_is_not() -> None:
    scored = [
        asked("new", f"{STEM} paging channel?"),
        asked("reworded", "Which is the purpose of the cell timer?"),
        asked("other thing", f"{STEM} cell pager?"),
        asked("upper case", f"{STEM.upper()}: TIMER -- CELL"),
    ]
    found = nearest(train(), scored)
    assert [(each.id, each.train_id) for each in found] == [
        ("reworded", "t3.10"),
        ("upper case", "t3.10"),
    ]
    assert 0.8 < found[0].similarity < found[1].similarity == 1


def test_a_changed_number_is_another_question() -> None:
    known = [
        *train(),
        *(asked(f"n{at}", f"{STEM} band in table {at}.2-1?") for at in range(5, 9)),
    ]
    same, changed = f"{STEM} band, in table 5.2-1", f"{STEM} band in table 5.2-3?"
    found = nearest(known, [asked("same", same), asked("changed", changed)])
    assert [(each.id, each.train_id) for each in found] == [("same", "n5")]
    assert duplicates.terms("Table 5.2-1, 5G") == {"table", "5 2 1", "5g"}


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("Right!", "right", True),
        ("right", "left", False),
        ("+", "+", True),
        ("+", "-", False),
        (None, None, False),
    ],
)
def test_the_text_of_the_right_choice_is_compared(
    ours: str | None, theirs: str | None, same: bool
) -> None:
    assert nearest([asked("t", "x", theirs)], [asked("s", "x", ours)]) == (
        Duplicate("s", "t", 1.0, same),
    )


def test_of_equally_similar_ones_the_same_answer_goes_first_and_then_the_order() -> None:
    known = [asked(f"t{at}", "a b", answer) for at, answer in enumerate(("x", "y", "y", "z"))]
    scored = [asked("s0", "a b", "y"), asked("s1", "b a", "none")]
    assert [each.train_id for each in nearest(known, scored)] == ["t1", "t0"]


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_definition_over_more_than_one_block(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    rng = random.Random(seed)

    def some(kind: str, count: int) -> list[Question]:
        pool = [*THINGS[:6], "5.2-1", "5.2-3", "17", "-"]
        return [
            asked(f"{kind}{at}", " ".join(rng.choices(pool, k=rng.randrange(1, 7))))
            for at in range(count)
        ]

    known, scored = some("t", 40), some("s", 30)
    for threshold in (0.31, 0.62, 0.83):
        found, defined = nearest(known, scored, threshold), plain(known, scored, threshold)
        assert 0 < len(defined) <= 30
        assert [(each.id, each.train_id) for each in found] == [
            (each.id, each.train_id) for each in defined
        ]
        assert [e.similarity for e in found] == pytest.approx([e.similarity for e in defined], 1e-5)


@given(TEXTS, TEXTS, st.sampled_from((0.2, 0.5, 0.8, 1.0)))
def test_bounds_identity_and_a_lower_threshold_finds_no_less(
    one: list[list[str]], other: list[list[str]], threshold: float
) -> None:
    known = [asked(f"t{at}", " ".join(words)) for at, words in enumerate(one)]
    scored = [asked(f"s{at}", " ".join(words)) for at, words in enumerate(other)]
    found = nearest(known, scored, threshold)
    assert all(threshold <= each.similarity <= 1 for each in found)
    assert set(found) <= set(nearest(known, scored, 0.1))
    assert [each.id for each in found] == [q.id for q in scored if q.id in {e.id for e in found}]
    # Every question is its own duplicate, to the last bit.
    assert [(e.id, e.similarity) for e in nearest(known, known, 1.0)] == [(q.id, 1) for q in known]


@given(TEXTS.filter(lambda texts: len(texts) >= 2))
def test_two_alone_are_as_like_either_way(texts: list[list[str]]) -> None:
    one, other = (asked("q", " ".join(words)) for words in texts[:2])
    assert nearest([one], [other], 0.01)[:1] == tuple(
        replace(each, id="q", train_id="q") for each in nearest([other], [one], 0.01)
    )


def test_a_word_that_all_of_train_has_still_counts() -> None:
    known = [asked(f"t{at}", "stem") for at in range(1500)]
    assert nearest(known, [asked("s", "Stem?")]) == (Duplicate("s", "t0", 1.0, True),)


def test_nothing_to_compare_and_a_threshold_that_is_none() -> None:
    assert nearest([], [asked("s", "x")]) == nearest([asked("t", "x")], []) == ()
    for threshold in (0.0, 1.01, math.nan):
        with pytest.raises(ValueError, match="threshold"):
            nearest([], [], threshold)


def measured() -> Duplicates:
    known, same = asked("t", "x y"), asked("s", "y x")
    parts = Split((known,), (asked("v", "z"),), (same, asked("n", "z")), 42, "the digest")
    assert duplicates.measure(parts, ORAN, "ot-mini", "validation").pairs == ()
    return duplicates.measure(parts, ORAN, "ot-mini")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made, path = measured(), tmp_path / "duplicates" / "oranbench.json"
    pair = Duplicate("s", "t", 1.0, True)
    assert made == Duplicates("oranbench", "ot-mini", "test", "the digest", 2, 0.8, (pair,))
    duplicates.write(path, made)
    assert duplicates.read(path) == made
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _: "{", "no near-duplicates"),
        (lambda _: "[]", "no near-duplicates"),
        (lambda made: json.dumps(made | {"schema_version": 2}), "schema_version 2"),
        (lambda made: json.dumps(made | {"of": "many"}), "of: 'many' is no int"),
        (lambda made: json.dumps(made | {"pairs": [{"id": "s"}]}), "train_id"),
        (lambda made: json.dumps({k: v for k, v in made.items() if k != "split"}), "split"),
        (None, "No such file"),
    ],
)
def test_anything_else_is_refused(
    tmp_path: Path, change: Callable[[dict[str, object]], str] | None, said: str
) -> None:
    path = tmp_path / "oranbench.json"
    if change:
        path.write_text(change(asdict(measured())))
    with pytest.raises(InputError, match=said) as raised:
        duplicates.read(path)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "pairs", "same"),
    [
        ("teleqna", 12, 2),
        ("sixg_bench", 0, 0),
        ("3gpp_tsg", 5, 4),
        ("oranbench", 4, 1),
        ("srsranbench", 0, 0),
        ("teletables", 0, 0),
    ],
)
def test_the_real_benchmark_has_few(shared: Path, name: str, pairs: int, same: int) -> None:
    parts = split(benchmark.read(str(shared / "ot-full"), CATEGORIES[name]).questions)
    made = duplicates.measure(parts, CATEGORIES[name], "ot-full")
    assert (len(made.pairs), sum(each.same_answer for each in made.pairs)) == (pairs, same)
    assert made.of == len(parts.test)
