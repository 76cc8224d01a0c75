"""Two variants question by question: counts, verdicts and sums, worked by hand."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_reports import Result, put, record, result

from tel_edge.eval.findings import answers, paired
from tel_edge.eval.findings.answers import Answers
from tel_edge.eval.findings.paired import Change
from tel_edge.eval.scoring import records
from tel_edge.eval.scoring.records import Record
from tel_edge.eval.statistics import holm, mcnemar, paired_difference, share
from tel_edge.runtime.errors import InputError


def columns(made: Result) -> Answers:
    return answers.of_records(made.summary, made.records)


def answered(wrong: Collection[int] = (), of: int = 20, **changes: Any) -> Answers:
    return columns(result(of=of, wrong=wrong, **changes))


def of_rows(*rows: Record, too_long: int = 0) -> Answers:
    made = result(of=1)
    fields = records.measures(rows, too_long)
    return columns(Result(replace(made.summary, **fields), rows))


def scored(id: str, probabilities: tuple[float, ...], gold: int = 0) -> Record:
    logprobs = tuple(math.log(p) for p in probabilities)
    pick = max(range(len(logprobs)), key=logprobs.__getitem__)
    return Record("r", id, gold, logprobs, pick, (pick,), 9, 1.0)


def test_every_kind_of_change_is_counted() -> None:
    # Lost are 1 and 2, won is 3; 4 is wrong in both and answered alike, 5 is wrong otherwise.
    before = answered({3, 4, 5})
    other = answered({1, 2, 4, 5})
    pick = other.pick.copy()
    pick[5] = next(p for p in range(4) if p not in (before.pick[5], before.gold[5]))
    made = paired.change(before, replace(other, pick=pick))
    assert (made.of, made.lost, made.won, made.other) == (20, 2, 1, 1)
    assert made.agreement == share(16, 20)
    assert made.points == paired_difference(1, 2, 20)
    assert made.points.value == -1 / 20
    assert made.p == made.adjusted == mcnemar(1, 2) == 1
    back = paired.change(replace(other, pick=pick), before)
    assert (back.lost, back.won, back.other) == (1, 2, 1)


def test_the_order_of_the_records_is_nothing() -> None:
    before, made = result(of=30, wrong={3, 9}), result(of=30, wrong={1, 2, 3})
    mixed = Result(made.summary, (*made.records[17:], *reversed(made.records[:17])))
    wanted = paired.change(columns(before), columns(made))
    assert (wanted.lost, wanted.won) == (2, 1)
    assert paired.change(columns(before), columns(mixed)) == wanted
    ours, theirs = answers.aligned(columns(before), columns(mixed))
    assert list(ours) == list(range(30))
    ids = columns(mixed).ids
    assert [ids[at] for at in theirs] == list(columns(before).ids)


def test_questions_that_did_not_fit_count_as_wrong() -> None:
    # Questions 18 and 19 could not be asked; 19 was wrong before.
    made = paired.change(answered({19}), answered({0}, too_long=2))
    assert (made.of, made.lost, made.won, made.other) == (20, 2, 0, 0)
    assert made.agreement == share(17, 20)
    made = paired.change(answered({0}, too_long=2), answered({19}))
    assert (made.of, made.lost, made.won) == (20, 0, 2)
    # Of different questions that did not fit, each is one that the other one has.
    fewer = result(of=20, wrong=())
    first = replace(columns(Result(fewer.summary, fewer.records[1:])))
    last = columns(Result(fewer.summary, fewer.records[:-1]))
    made = paired.change(first, last)
    assert (made.of, made.lost, made.won) == (20, 1, 1)


def test_divergence_by_hand_and_beside_a_question_that_only_one_was_asked() -> None:
    before = of_rows(scored("a", (0.5, 0.25, 0.25)), scored("b", (0.8, 0.2)))
    after = of_rows(scored("a", (0.25, 0.5, 0.25)), scored("b", (0.8, 0.2)))
    by_hand = 0.25 * math.log(2)
    made = paired.change(before, after)
    assert made.kl_mean == pytest.approx(by_hand / 2, rel=1e-5)
    assert made.kl_p99 is None
    # The only one with three choices is missing, so its column is too.
    short = of_rows(scored("b", (0.8, 0.2)), too_long=1)
    assert short.logprobs.shape[1] == 2
    for one, other in ((before, short), (short, before)):
        made = paired.change(one, other)
        assert made.kl_mean == pytest.approx(0, abs=1e-7)
        assert (made.of, made.lost + made.won) == (2, 1)


def test_a_percentile_takes_a_hundred_questions() -> None:
    for of, known in ((99, False), (100, True)):
        made = paired.change(answered(of=of), answered({0, 1, 2}, of=of))
        assert (made.kl_p99 is not None) == known
    # Three of a hundred questions changed, so the percentile is one of them.
    assert made.kl_p99
    assert made.kl_mean
    assert made.kl_p99 > 0.1 > made.kl_mean > 0


def test_texts_have_no_divergence() -> None:
    texts = columns(result("lora-F16-generate", of=20, wrong={1}))
    made = paired.change(answered(), texts)
    assert (made.lost, made.kl_mean, made.kl_p99) == (1, None, None)


def test_a_summary_that_counts_less_than_the_records_stops_nothing() -> None:
    before, after = answered(), answered(range(15))
    few = replace(after, summary=replace(after.summary, questions=3))
    zero = replace(before, summary=replace(before.summary, questions=3))
    assert paired.change(zero, few).lost == 15
    # A question with two records is counted once for each, and never less than none.
    made = result(of=20, wrong={0})
    twice = columns(Result(made.summary, (*made.records, *made.records[:3])))
    for one, other in ((before, twice), (twice, before)):
        made_of = paired.change(one, other)
        assert min(made_of.lost, made_of.won, made_of.other) >= 0


def change(won: int, lost: int, of: int) -> Change:
    p = mcnemar(won, lost)
    return Change(of, lost, won, 0, paired_difference(won, lost, of), p, p, share(of, of), 0.1, 0.2)


# Won, lost, of. 380 questions bound a loss at 1.001 points at best, 381 at 0.998.
VERDICTS = (
    (0, 12, 2000, "loss"),
    (12, 0, 2000, "gain"),
    (2, 5, 2000, "no loss"),
    (20, 20, 2000, "no loss"),
    (30, 40, 2000, "unclear"),
    (0, 0, 381, "no loss"),
    (0, 1, 381, "unclear"),
    (0, 0, 380, "n too small"),
    (0, 5, 300, "n too small"),
    (0, 6, 300, "loss"),
    # Significant and below one point: small, but no chance.
    (20, 40, 4000, "loss"),
    (0, 0, 0, "n too small"),
)


@pytest.mark.parametrize(("won", "lost", "of", "verdict"), VERDICTS)
def test_verdicts(won: int, lost: int, of: int, verdict: str) -> None:
    assert change(won, lost, of).verdict == verdict


def test_holm_goes_over_the_categories() -> None:
    # p 0.031 alone would be a loss; with a second category it is 0.063.
    one, other = change(0, 6, 2000), change(1, 1, 2000)
    assert one.verdict == "loss"
    made = paired.corrected({"a": one, "b": other})
    assert list(made) == ["a", "b"]
    assert [each.adjusted for each in made.values()] == holm([one.p, other.p]) == [0.0625, 1]
    assert [each.p for each in made.values()] == [one.p, other.p]
    assert [each.verdict for each in made.values()] == ["no loss", "no loss"]
    assert paired.corrected({"a": one}) == {"a": one}
    assert paired.corrected({}) == {}


def test_pooled_is_over_all_questions() -> None:
    one, other = change(1, 3, 100), replace(change(4, 2, 300), other=5, kl_mean=0.5)
    made = paired.pooled([one, other])
    assert (made.of, made.lost, made.won, made.other) == (400, 5, 5, 5)
    assert (made.points, made.p, made.adjusted) == (paired_difference(5, 5, 400), 1, 1)
    assert made.agreement == share(400, 400)
    assert made.kl_mean == pytest.approx((0.1 * 100 + 0.5 * 300) / 400)
    assert made.kl_p99 is None
    assert paired.pooled([one, replace(other, kl_mean=None)]).kl_mean is None


@pytest.mark.parametrize(
    "broken",
    [
        {"gold": 100_000},
        {"pick": "x"},
        {"id": 3},
        {"asked": None},
        {"logprobs": (math.nan, -1.0)},
        {"logprobs": ()},
        {"logprobs": (math.inf, -1.0)},
    ],
)
def test_records_of_nonsense_are_refused_with_their_file(
    broken: dict[str, Any], tmp_path: Path
) -> None:
    made = result(of=2)
    bad = Result(made.summary, (made.records[0], record(1, True, **broken)))
    path = put(tmp_path, bad).results("tel-nano", "lora-F16", "oranbench")
    with pytest.raises(InputError, match=r"oranbench\.jsonl: .*delete the file") as caught:
        answers.read(path, made.summary)
    assert len(str(caught.value).splitlines()) == 1


def test_only_records_of_the_summarys_run_are_read(tmp_path: Path) -> None:
    made = result(of=4, wrong={1})
    stale = tuple(replace(each, run="older") for each in result(of=9).records)
    path = put(tmp_path, Result(made.summary, (*stale, *made.records))).results(
        "tel-nano", "lora-F16", "oranbench"
    )
    read = answers.read(path, made.summary)
    assert read.ids == tuple(f"oranbench/{at}" for at in range(4))
    assert read.right.tolist() == [True, False, True, True]
    assert read.logprobs.shape == (4, 4)
    assert answers.read(tmp_path / "none.jsonl", made.summary).ids == ()


def test_a_share_of_some_rows_is_of_those_rows() -> None:
    made = answered({0, 1}, of=10, too_long=2)
    assert made.share() == share(6, 10)
    assert made.share(np.arange(8) < 4) == share(2, 4)
    voted = replace(made, vote=(made.gold + 1) % 4)
    assert voted.share(voted=True) == share(0, 10)
