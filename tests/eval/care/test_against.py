"""Figures of answers, and pairs of them: against values computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tel_edge.eval.care.answers.against import against, paired, parting, verdict
from tel_edge.eval.care.answers.along import compared
from tel_edge.eval.care.answers.measured import Measured
from tel_edge.eval.care.answers.records import (
    Along,
    Record,
    figures,
    line,
    put_away,
    read,
    read_along,
    write,
)
from tel_edge.eval.statistics import Mean, clustered_mean
from tel_edge.runtime.errors import InputError

SAID = Measured(("check", "fix"), ("check", "fix"), (), True, 10, 0.0, False, False, False, False)


def record(name: str, tokens: tuple[int, ...] = (1, 2, 3), ended: bool = True,
           **of: object) -> Record:  # fmt: skip
    made = replace(SAID, **of)  # type: ignore[arg-type]
    scenario = name.partition(".")[0]
    return Record("r", name, scenario, "a", ("text",), (tokens,), (ended,), 5, 1.0, made)


def test_figures_are_those_counted_by_hand() -> None:
    made = figures(
        [
            record("a.0"),
            record("a.1", right=("check",), wrong=("x", "y"), named=False),
            record("b.0", right=(), ended=False, words=40, loops=True),
            record("b.1", wanted=("check", "fix", "escalate"), right=("check", "escalate")),
            record("c.0", right=("check", "fix", "escalate")),
        ]
    )
    shares = {name: (one.value, one.of) for name, one in made.items()}
    assert shares["precision"] == (8 / 10, 10)
    assert shares["recall"] == (7 / 11, 11)
    assert shares["check"] == (4 / 5, 5)
    assert shares["fix"] == (2 / 5, 5)
    assert shares["escalate"] == (1.0, 1)
    assert shares["unasked"] == (1 / 4, 4)
    assert shares["named"] == shares["stopped"] == (4 / 5, 5)
    assert shares["loops"] == (1 / 5, 5)
    assert shares["words"] == (16, 5)
    third = 2 * (1 / 3) * 0.5 / (1 / 3 + 0.5)
    assert shares["f1"] == (pytest.approx((1 + third + 0 + 0.8 + 1) / 5), 5)
    for one in made.values():
        assert one.low is not None
        assert one.low <= one.value <= one.high  # type: ignore[operator]


def test_of_no_facts_there_is_no_precision() -> None:
    made = figures([record("a.0", right=()), record("b.0", right=())])
    assert (made["precision"].of, made["recall"].value) == (0, 0.0)


def test_a_clustered_mean_of_single_values_is_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [float(at % 7) + 0.1 * at for at in range(40)]
    made = clustered_mean([[value] for value in values])
    low, high = stats.t.interval(
        0.95, len(values) - 1, np.mean(values), np.std(values, ddof=1) / math.sqrt(len(values))
    )
    assert (made.value, made.of, made.groups) == (pytest.approx(np.mean(values)), 40, 40)
    assert (made.low, made.high) == (pytest.approx(low, abs=2e-3), pytest.approx(high, abs=2e-3))
    # Each value twice says no more.
    twice = clustered_mean([[value, value] for value in values])
    assert (twice.low, twice.high) == (pytest.approx(made.low), pytest.approx(made.high))
    assert clustered_mean([[1.0, 2.0]]) == Mean(1.5, None, None, 2, 1)
    assert clustered_mean([]).of == 0


@pytest.mark.parametrize(
    ("one", "other", "at"),
    [
        (record("a"), record("a"), None),
        (record("a"), record("a", (1, 9, 3)), 1),
        (record("a"), record("a", (1, 2)), 2),
        (record("a"), record("a", ended=False), 3),
    ],
)
def test_answers_part_at_the_first_other_token(one: Record, other: Record, at: int | None) -> None:
    assert parting(one, other) == parting(other, one) == at


def test_answers_of_two_exchanges_part_behind_the_first() -> None:
    one = replace(record("a"), tokens=((1, 2), (3, 4)), ended=(True, True))
    assert parting(one, replace(one, tokens=((1, 2), (3, 5)))) == 3
    assert parting(one, one) is None


def test_changed_facts_are_counted_pair_by_pair() -> None:
    theirs = [record("a.0"), record("b.0"), record("c.0", wrong=("x",))]
    mine = [
        record("a.0", right=("check", "escalate")),
        record("b.0", (1, 2, 9), wrong=("y", "z")),
        record("c.0"),
    ]
    made = against("lora-Q4_0", "lora-F16", list(zip(theirs, mine, strict=True)), [])
    assert (made.lost, made.won, made.wrong_more, made.wrong_less) == (1, 1, 2, 1)
    assert (made.same.right, made.same.of, made.first) == (2, 3, 2)
    changes = [2 / 3 - 1, 2 * 0.5 * 1 / 1.5 - 1, 1 - 2 * (2 / 3) / (2 / 3 + 1)]
    assert made.f1.value == pytest.approx(sum(changes) / 3)
    assert (made.kl, made.agreed, made.kl_p99) == (None, None, None)


def test_divergences_are_those_over_the_whole_vocabulary() -> None:
    reference = np.log(np.array([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]], np.float32))
    other = np.log(np.array([[0.25, 0.25, 0.5], [0.7, 0.2, 0.1]], np.float32))
    kl, gap, agreed = compared(reference, other, [0, 2])
    second = 0.8 * math.log(0.8 / 0.7) + 0.1 * math.log(0.1 / 0.2)
    assert kl.tolist() == pytest.approx([0.25 * math.log(2), second], abs=1e-6)
    assert gap.tolist() == pytest.approx([math.log(2), 0.0], abs=1e-6)
    assert agreed == 1


def test_divergences_are_means_over_tokens() -> None:
    along = [Along("r", "a.0", "a", "x", (0.1,) * 99, (0.0,) * 99, 90),
             Along("r", "b.0", "b", "x", (1.1,), (0.5,), 0)]  # fmt: skip
    made = against("q", "f", [(record("a.0"), record("a.0"))], along)
    assert made.kl is not None
    assert made.gap is not None
    assert made.agreed is not None
    assert made.kl.value == pytest.approx((99 * 0.1 + 1.1) / 100)
    assert made.gap.value == pytest.approx(0.005)
    assert (made.agreed.right, made.agreed.of, made.kl_p99) == (90, 100, 1.1)


@pytest.mark.parametrize(
    ("value", "low", "high", "of", "reference", "said"),
    [
        (-0.05, -0.08, -0.03, 300, 0.9, "loss"),
        (-0.005, -0.009, -0.001, 3000, 0.9, "loss (of less than 2 points)"),
        (0.0, -0.01, 0.01, 300, 0.9, "no loss"),
        (0.0, 0.0, 0.0, 189, 0.9, "no loss"),
        (0.0, 0.0, 0.0, 188, 0.9, "cannot be told (n too small)"),
        (-0.01, -0.03, 0.01, 300, 0.9, "cannot be told (n too small)"),
        (0.0, None, None, 300, 0.9, "cannot be told (n too small)"),
        (0.0, 0.0, 0.0, 300, 0.05, "cannot be told (the reference says hardly a fact)"),
    ],
)
def test_verdicts(
    value: float, low: float | None, high: float | None, of: int, reference: float, said: str
) -> None:
    assert verdict(Mean(value, low, high, of, 50), reference) == said


def test_pairs_are_of_dialogues_that_both_answered() -> None:
    mine = {name: record(name) for name in ("a", "b", "c")}
    theirs = {"a": record("a"), "b": replace(record("b"), fault="too long")}
    assert [one.id for one, _ in paired(mine, theirs)] == ["a"]


def test_records_come_back_as_they_were_and_a_torn_line_ends_them(tmp_path: Path) -> None:
    out = tmp_path / "care.jsonl"
    # What separates lines elsewhere may stand in a text.
    made = [replace(record("a"), texts=("one\u2028two\x85",)), record("b", wrong=("x",))]
    write(out, made)
    assert list(read(out)) == made
    out.write_text(out.read_text() + line(record("c"))[:-9])
    assert list(read(out)) == made
    out.write_text("{}\n" + out.read_text())
    with pytest.raises(InputError, match="line 1: no record"):
        list(read(out))
    kept = Along("r", "a", "s", "x", (0.25,), (1.5,), 1)
    write(out, [kept, replace(kept, run="other")])
    assert list(read_along(out, "r")) == [kept]


def test_answers_of_another_run_are_put_away_and_found_again(tmp_path: Path) -> None:
    out = tmp_path / "care.jsonl"
    write(out, [record("a")])
    put_away(out, "other")
    assert not out.exists()
    write(out, [replace(record("b"), run="other")])
    put_away(out, "r")
    assert [one.id for one in read(out)] == ["a"]
    put_away(out, "other")
    assert [one.id for one in read(out)] == ["b"]
