"""What is decided, and what it is decided by: nothing is recommended that is worse than nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import made_reports
import pytest
from made_reports import Result, floor, put, result

from tel_edge.eval.findings import decision, findings
from tel_edge.eval.findings.decision import Budget, Decision
from tel_edge.eval.findings.findings import Report
from tel_edge.eval.reports import card, render
from tel_edge.runtime.questions.orders import rotations
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.workspace import Workspace

N = 2000


def collect(home: Path, *made: Result, **budget: Any) -> Report:
    put(home, *made)
    return findings.collect(Workspace(home), "tel-nano", budget=Budget(**budget))


def decided(home: Path, *made: Result, **budget: Any) -> Decision:
    return collect(home, *made, **budget).decision


def every(right: int, bare: int, category: str = "oranbench") -> list[Result]:
    """Return an adapter in two types and the bare backbone on one category."""
    return [
        result("base-F16", category, bare, N),
        result("lora-F16", category, right, N),
        result("lora-Q8_0", category, right, N),
    ]


def test_what_is_worth_it_is_deployed(tmp_path: Path) -> None:
    floor(tmp_path, 900, N)
    made = collect(tmp_path, *every(1600, 500))
    (worth,) = made.decision.categories
    assert made.decision.verdict == "deploy"
    assert made.decision.headline == "deploy lora-Q8_0, 5.5 MB"
    assert (worth.verdict, worth.reason) == (
        "deploy", "55.0 points over the bare backbone, 35.0 over options only"
    )  # fmt: skip
    assert card.commands(made) == (
        "tel-report --backbone tel-nano --write --ship tel-deploy",
        "tel-run --bundle tel-deploy questions.jsonl",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("right", "bare", "trivial", "verdict", "reason"),
    [
        (1000, 1200, 800, "do not deploy", "the bare backbone is better by 10.0 points"),
        (520, 300, 400, "do not deploy", "no better than guessing (25.0 %)"),
        (1000, 500, 1360, "do not deploy",
         "options only alone reaches 68.0 %, 18.0 points more"),
        (1000, 500, 980, "not shown", "not shown to beat options only (49.0 %)"),
        (1000, 1000, 700, "not shown", "not shown to be better than the bare backbone"),
    ],
)  # fmt: skip
def test_what_is_worse_than_nothing_is_not(
    tmp_path: Path, right: int, bare: int, trivial: int, verdict: str, reason: str
) -> None:
    floor(tmp_path, trivial, N)
    made = collect(tmp_path, *every(right, bare))
    (worth,) = made.decision.categories
    assert (worth.verdict, worth.reason) == (verdict, reason)
    assert made.decision.verdict == "do not deploy"
    assert made.decision.headline.startswith("do not deploy: lora-Q8_0 is not shown to be worth it")
    assert card.commands(made) == ()
    assert "DO NOT DEPLOY" in render.text(made)


def test_texts_that_give_no_answer_decide(tmp_path: Path) -> None:
    floor(tmp_path, 300, 1000)
    rows = [result("lora-F16-generate", right=400, of=1000, unparsed=550)]
    rows.append(result("base-F16-generate", right=100, of=1000))
    made = decided(tmp_path, *rows)
    assert made.categories[0].reason == "550 of 1,000 texts give no answer"


def test_one_category_may_be_worth_it_and_another_not(tmp_path: Path) -> None:
    for category, trivial in (("oranbench", 900), ("teletables", 1500)):
        floor(tmp_path, trivial, N, category)
    made = collect(tmp_path, *every(1600, 500), *every(1200, 500, "teletables"))
    assert made.decision.verdict == "deploy in part"
    assert made.decision.headline == ("deploy lora-Q8_0, 7.0 MB, for oranbench; not for teletables")
    assert any(
        each == "teletables: do not deploy, options only alone reaches 75.0 %, 15.0 points more"
        for each in card.sentences(made)
    )


def test_who_was_not_asked_everything_cannot_stand_for_all(tmp_path: Path) -> None:
    """One variant lacks a category, another has it alone."""
    rows = [*every(1600, 500), *every(1600, 500, "teletables")]
    rows += [result("lora-Q4_K_M", right=1600, of=N)]
    made = collect(tmp_path, *rows)
    assert made.decision.variant == "lora-Q8_0"
    assert made.decision.left_out == {"lora-Q4_K_M": ("teletables",)}
    assert "left out, not scored on every category: lora-Q4_K_M (teletables)" in card.sentences(
        made
    )


def test_without_one_that_was_asked_everything_nothing_is_decided(tmp_path: Path) -> None:
    rows = [result("lora-F16", right=1600, of=N), result("lora-Q8_0", "teletables", 1600, N)]
    made = decided(tmp_path, *rows)
    assert (made.verdict, made.variant) == ("undecided", None)
    assert "lora-F16 lacks teletables; lora-Q8_0 lacks oranbench" in made.sentences[0]


def test_a_small_category_is_named_with_its_bound(tmp_path: Path) -> None:
    """Of all answers nothing is lost, of the small category up to 14.7 points may be."""
    rows = [*every(1600, 500)]
    rows += [result("base-F16", "teletables", 10, 70), result("lora-F16", "teletables", 50, 70)]
    rows += [result("lora-Q8_0", "teletables", 45, 70, wrong=range(45, 70))]
    made = decided(tmp_path, *rows)
    assert made.variant == "lora-Q8_0"
    assert "; most in teletables, -7.1 [-15.7, " in made.sentences[0]


def test_won_answers_do_not_make_up_for_too_few_questions(tmp_path: Path) -> None:
    won = [result("lora-F16", right=30, of=50), result("lora-Q8_0", right=35, of=50)]
    made = decided(tmp_path, *won)
    assert made.passed == ("lora-F16",)
    assert made.stopped == (
        "lora-Q8_0: 50 questions bound a loss at 7.1 points at best, even if no answer changes"
    )


def test_the_first_that_fails_ends_the_sequence(tmp_path: Path) -> None:
    """A smaller one that happens to pass is not looked at: it would be the luckiest of many."""
    rows = [*every(1600, 500), result("lora-Q4_K_M", right=1600, of=N)]
    rows[2] = result("lora-Q8_0", right=1500, of=N)
    made = decided(tmp_path, *rows)
    assert made.passed == ("lora-F16",)
    assert made.stopped is not None
    assert made.stopped.startswith("lora-Q8_0: a loss in oranbench (-5.0")


def test_a_quantized_reference_is_called_one(tmp_path: Path) -> None:
    made = decided(
        tmp_path, result("lora-Q8_0", right=1600, of=N), result("lora-Q4_K_M", right=1600, of=N)
    )
    assert any(
        "lora-Q8_0, which all are held against, is quantized itself" in s for s in made.sentences
    )


NOTHING = (
    "do not deploy: nothing that may stand for the reference fits the budget; the smallest, "
    "lora-Q4_K_M: "
)


@pytest.mark.parametrize(
    ("budget", "variant", "said"),
    [
        ({"bytes": 5_000_000}, "lora-Q4_K_M", "deploy lora-Q4_K_M, 4.0 MB"),
        ({"milliseconds": 8.0}, "lora-Q8_0", "deploy lora-Q8_0, 5.5 MB"),
        ({"bytes": 1_000_000}, None, f"{NOTHING}4.00 MB on disk, more than 1"),
        ({"margin": 0.0001}, "lora-F16", "deploy lora-F16, 9.5 MB"),
        ({"memory": 40_000_000}, None, f"{NOTHING}41.00 MB of memory, more than 40"),
    ],
)  # fmt: skip
def test_budgets(tmp_path: Path, budget: Any, variant: str | None, said: str) -> None:
    floor(tmp_path, 900, N)
    rows = [*every(1600, 500), result("lora-Q4_K_M", right=1600, of=N, milliseconds=12.0)]
    rows[2] = result("lora-Q8_0", right=1600, of=N, milliseconds=7.0)
    made = decided(tmp_path, *rows, **budget)
    assert made.variant == variant
    assert made.headline.startswith(said)


def turned(plain: Result, moves: bool) -> Result:
    """Return the answers in all other orders: the same option, or the same place."""
    rows = []
    for each in plain.records:
        question = Question(each.id, "oranbench", "?", tuple("abcd"), each.gold)
        for moved in rotations(question):
            gold = moved.answer or 0
            pick = (gold + each.pick - each.gold) % 4 if moves else each.pick
            look = made_reports.RIGHT if pick == gold else made_reports.WRONG
            logprobs = tuple(look[(label - pick) % 4] for label in range(4))
            new = {"id": moved.id, "gold": gold, "pick": pick, "draws": (pick,) * 4}
            rows.append(replace(each, **new, logprobs=logprobs))
    fields = made_reports.measures(rows, 0)
    return Result(replace(plain.summary, rotated=True, **fields), tuple(rows))


@pytest.mark.parametrize("moves", [True, False])
def test_a_gain_has_to_survive_other_orders(tmp_path: Path, moves: bool) -> None:
    """An adapter that has learned where answers stand is guessing where they stand elsewhere."""
    floor(tmp_path, 90, 300)
    plain = result("lora-F16", right=200)
    made = decided(tmp_path, result("base-F16", right=70), plain, turned(plain, moves))
    (worth,) = made.categories
    assert worth.all_orders is not None
    if moves:
        assert worth.verdict == "deploy"
        assert worth.all_orders.value == pytest.approx(2 / 3)
    else:
        assert worth.reason.startswith("with the options in other orders it is guessing (25.0 %)")
        assert made.verdict == "do not deploy"


def test_a_certain_finding_decides_that_nothing_is(tmp_path: Path) -> None:
    """Trained on another split: the questions may be in its training."""
    known = every(1600, 500)[1].summary.made_with
    rows = every(1600, 500)
    rows[1] = result("lora-F16", right=1600, of=N, made_with={**known, "trained_split": "5" * 64})
    made = collect(tmp_path, *rows)
    assert made.decision.verdict == "undecided"
    assert [each.kind for each in made.checks] == ["split"]
    assert "trained on another split (555555555555)" in made.checks[0].text


def test_a_reference_that_could_not_be_asked_all_is_no_measure(tmp_path: Path) -> None:
    rows = every(1600, 500)
    rows[1] = result("lora-F16", right=1300, of=N, too_long=300)
    made = collect(tmp_path, *rows)
    assert made.decision.verdict == "undecided"
    assert [each.kind for each in made.checks if each.certain] == ["questions"]


def test_the_card_fits_eighty_columns(tmp_path: Path) -> None:
    """With the longest words there are, and of many variants not all."""
    floor(tmp_path, 900, N)
    floor(tmp_path, 1900, N, "srsranbench")
    rows = [*every(1600, 500), *every(1600, 500, "srsranbench")]
    long = "lora-Q4_K_M-imatrix-mixed+Q8_0"
    rows += [result(long, name, 1000, N) for name in ("oranbench", "srsranbench")]
    rows += [
        result(f"lora-Q{at}_K_M", name, 1000, N)
        for at in range(20) for name in ("oranbench", "srsranbench")
    ]  # fmt: skip
    made = collect(tmp_path, *rows)
    lines = render.text(made).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("no deploy" in line for line in lines)
    assert any(line.startswith("8 variants more; all tables:") for line in lines)


def test_times_say_where_they_are_from(tmp_path: Path) -> None:
    where = {"machine": "Fast 9000, 2 cores", "threads": 2, "date": "2026-11-28", "load": 3.2}
    rows = every(1600, 500)
    rows[2] = result("lora-Q8_0", right=1600, of=N, measured=where)
    made = collect(tmp_path, *rows)
    assert card.sentences(made)[:2] == (
        "measured with tel-nano on the test part of ot-mini, 2,000 questions in 1 category, whose "
        "facts are invented: it says nothing of real ones",
        "it takes 5.5 MB on disk, 41.0 MB of memory beside the mapped file, 10.0 ms a question "
        "(p50, median and largest of the categories; Fast 9000, 2 cores, 2 threads, 2026-11-28, "
        "beside a load of 3.2 by others)",
    )


def test_types_without_a_loss_are_named_so() -> None:
    assert set(decision.UNQUANTIZED) == {"F32", "BF16", "F16", "fp32"}
