"""Places of the right answer, orders of the options and questions seen before, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from made_reports import Result, put, record, result

from tel_edge.eval.benchmarks import duplicates
from tel_edge.eval.benchmarks.duplicates import Duplicate, Duplicates
from tel_edge.eval.findings import answers, findings, leakage
from tel_edge.eval.findings.answers import Answers
from tel_edge.eval.findings.leakage import Position
from tel_edge.eval.reports import report_tables
from tel_edge.eval.scoring import records
from tel_edge.eval.scoring.records import Record
from tel_edge.eval.statistics import share
from tel_edge.runtime.questions.orders import rotations
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.workspace import Workspace

THREE = Question("oranbench/0", "oranbench", "Which?", ("a", "b", "c"), 1)
FOUR = Question("oranbench/1", "oranbench", "What?", ("a", "b", "c", "d"), 3)


def columns(*rows: Record, name: str = "lora-F16", category: str = "oranbench") -> Answers:
    made = result(name, category, of=1).summary
    return answers.of_records(replace(made, **records.measures(rows, 0)), rows)


def answered(question: Question, pick: int) -> Record:
    logprobs = [-3.0] * len(question.choices)
    logprobs[pick] = -0.2
    gold = -1 if question.answer is None else question.answer
    return Record("r", question.id, gold, tuple(logprobs), pick, (pick,), 9, 1.0)


def turned(question: Question, picks: Sequence[int]) -> list[Record]:
    """Return the answers to the other orders, from "<id>#1" on."""
    return [answered(*pair) for pair in zip(rotations(question), picks, strict=True)]


def test_rotations_by_hand() -> None:
    # The first is answered with option b wherever it stands: in b c a at 0, in c a b at 2. The
    # second with the letter A whatever stands there, and its answer d is first in d a b c alone.
    plain = columns(answered(THREE, 1), answered(FOUR, 0))
    moved = columns(*turned(THREE, (0, 2)), *turned(FOUR, (0, 0, 0)))
    made = leakage.rotations(plain, moved)
    assert (made.variant, made.questions) == ("lora-F16", 2)
    assert (made.mean.right, made.mean.of) == (4, 7)
    # d a b c is one place on; no question of three options has an order three places on.
    assert made.by_shift == (share(1, 2), share(2, 2), share(1, 2), share(0, 1))
    assert made.spread == 1.0
    assert made.steady == share(1, 2)


def test_the_order_of_the_rotated_records_is_nothing() -> None:
    plain = columns(answered(THREE, 1), answered(FOUR, 0))
    rows = [*turned(THREE, (0, 2)), *turned(FOUR, (0, 0, 0))]
    mixed = leakage.rotations(plain, columns(*rows[::-1]))
    assert mixed == leakage.rotations(plain, columns(*rows))


def test_questions_without_all_orders_are_left_out() -> None:
    plain = columns(answered(THREE, 1), answered(FOUR, 0))
    made = leakage.rotations(plain, columns(*turned(THREE, (0, 2)), *turned(FOUR, (0, 0, 0))[1:]))
    assert (made.questions, made.mean.right, made.mean.of) == (1, 3, 3)
    # One question says next to nothing, in however many orders.
    assert (made.mean.low, made.mean.high, made.steady) == (0.0, 1.0, share(1, 1))
    # Nor is there anything to say of a question that the plain answers do not have.
    assert leakage.rotations(columns(answered(FOUR, 0)), columns(*turned(THREE, (0, 2)))) == (
        replace(
            made,
            questions=0,
            mean=share(0, 0),
            by_shift=(),
            spread=0.0,
            spread_by_chance=0.0,
            steady=share(0, 0),
        )
    )


def test_positions_by_hand() -> None:
    golds, picks = (0, 0, 0, 1, 3), (0, 0, 1, 1, 2)
    rows = [
        answered(replace(FOUR, id=str(at), answer=gold), pick)
        for at, (gold, pick) in enumerate(zip(golds, picks, strict=True))
    ]
    assert leakage.positions(columns(*rows)) == (
        Position("A", share(2, 3), 0.4, 0.6),
        Position("B", share(1, 1), 0.4, 0.2),
        Position("C", share(0, 0), 0.2, 0.0),
        Position("D", share(0, 1), 0.0, 0.2),
    )
    # Where the labels are names, they are the places.
    named = leakage.positions(columns(*rows, category="3gpp_tsg"))
    assert [each.label for each in named] == ["CT1", "CT3", "CT4", "CT6"]


def near(*ids: str, **changes: str) -> Duplicates:
    pairs = tuple(Duplicate(id, "oranbench/900", 0.9, True) for id in ids)
    made = Duplicates("oranbench", "ot-mini", "test", "split of oranbench", 20, 0.8, pairs)
    return replace(made, **changes)


def test_near_duplicates_and_the_rest() -> None:
    made = result(of=20, wrong={0, 1, 2, 10})
    seen = leakage.seen(
        answers.of_records(made.summary, made.records), near("oranbench/2", "oranbench/5")
    )
    assert (seen.count, seen.of, seen.threshold) == (2, 20, 0.8)
    assert (seen.alike, seen.rest) == (share(1, 2), share(15, 18))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """20 questions in all orders: the reference holds on to its option, Q8_0 to its letter."""
    for name, steady in (("lora-F16", True), ("lora-Q8_0", False)):
        plain = result(name, of=20, wrong={4})
        rows = []
        for each in plain.records:
            question = replace(FOUR, id=each.id, answer=each.gold)
            picks = [(each.pick - by) % 4 if steady else each.pick for by in (1, 2, 3)]
            rows += turned(question, picks)
        moved = replace(plain.summary, **records.measures(rows, 0), rotated=True)
        put(tmp_path, plain, Result(moved, tuple(rows)))
    return tmp_path


def collected(home: Path) -> findings.Report:
    return findings.collect(Workspace(home), "tel-nano")


def test_rotated_results_stand_beside_the_plain_ones(home: Path) -> None:
    made = collected(home)
    (section,) = made.sections
    # They are no variants, and no check takes them for some.
    assert [row.summary.questions for row in section.rows] == [20, 20]
    assert made.checks == ()
    assert section.leakage
    first, second = section.leakage.rotations
    # The interval is that of 20 questions, not of 80 answers.
    assert (first.variant, first.mean.right, first.mean.of) == ("lora-F16", 76, 80)
    assert first.mean.low == pytest.approx(share(19, 20).low, abs=0.03)
    assert (first.steady, first.spread) == (share(20, 20), 0)
    # By its letter a question is right in the one order in which the answer is there.
    assert (second.variant, second.mean.right, second.steady) == ("lora-Q8_0", 20, share(0, 20))
    assert report_tables.leakage(made).rows[0][-3:] == ("95.0 [74.0-99.2]", "0.0 (0.0)", "100.0")
    assert [row[1] for row in report_tables.rotations(made).rows] == ["lora-F16", "lora-Q8_0"]


def test_rotated_results_of_other_questions_are_left_out(home: Path) -> None:
    path = Workspace(home).results("tel-nano", "lora-Q8_0", "oranbench", rotated=True)
    made = records.read_summary(path.with_suffix(".json"))
    records.write_summary(path, replace(made, split="another"))
    (section,) = collected(home).sections
    assert section.leakage
    assert [each.variant for each in section.leakage.rotations] == ["lora-F16"]


def test_near_duplicates_are_read_if_they_are_of_these_questions(home: Path) -> None:
    path = records.duplicates_path(Workspace(home), "oranbench")
    assert report_tables.leakage(collected(home)).rows[0][4:7] == ("-", "-", "-")
    duplicates.write(path, near("oranbench/4", "oranbench/7"))
    assert report_tables.leakage(collected(home)).rows[0][4:7] == (
        "2 of 20", "50.0 [9.5-90.5]", "100.0 [82.4-100.0]"
    )  # fmt: skip
    duplicates.write(path, near())
    assert report_tables.leakage(collected(home)).rows[0][4:6] == ("0 of 20", "-")
    duplicates.write(path, near("oranbench/4", split="another"))
    assert report_tables.leakage(collected(home)).rows[0][4:7] == ("-", "-", "-")


def test_texts_have_no_orders() -> None:
    plain = columns(*(record(at, True, logprobs=()) for at in range(3)))
    moved = columns(*(record(at, True, logprobs=(), id=f"oranbench/{at}#1") for at in range(3)))
    assert leakage.measure(plain, [(plain, moved)], None).rotations == ()
