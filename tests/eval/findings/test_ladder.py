"""The ladder's variants, and which of them may stand for the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
from made_reports import ADAPTER, Result, put, result

from tel_edge.eval.findings import findings
from tel_edge.eval.findings.findings import Report
from tel_edge.eval.findings.ladder import Rung
from tel_edge.eval.findings.paired import pooled
from tel_edge.eval.reports import render
from tel_edge.eval.statistics import paired_difference
from tel_edge.runtime.workspace import Workspace

Rows = Mapping[str, Result]
N = 2000


def collect(home: Path, *made: Result) -> Report:
    put(home, *made)
    return findings.collect(Workspace(home), "tel-nano")


def rung(made: Report, name: str) -> Rung:
    return next(each for each in made.ladder if each.variant == name)


def missed(*at: int, of: int = N) -> set[int]:
    """Return the reference's misses, every fifth question, with some added or taken away."""
    return set(range(0, of, 5)) ^ set(at)


def lost(count: int, of: int = N) -> set[int]:
    return missed(*range(1, 5 * count, 5), of=of)


def test_a_clear_case(tmp_path: Path) -> None:
    made = collect(
        tmp_path,
        result("base-F16", right=450, of=N),
        result("lora-F16", of=N, wrong=missed()),
        result("lora-Q8_0", of=N, wrong=lost(3)),
        result("lora-Q4_K_M", of=N, wrong=lost(40)),
    )
    assert made.reference == "lora-F16"
    assert [each.variant for each in made.ladder] == [
        *("lora-F16", "lora-Q8_0", "lora-Q4_K_M", "base-F16")
    ]
    assert [each.verdict for each in made.ladder] == ["no loss", "no loss", "loss", "loss"]
    assert (made.decision.variant, made.decision.bytes) == ("lora-Q8_0", 5_500_000)
    assert made.decision.passed == ("lora-F16", "lora-Q8_0")
    assert made.decision.stopped == (
        "lora-Q4_K_M: a loss in oranbench (-2.0, perhaps -2.7), where 1 may be lost"
    )
    assert made.decision.sentences[0] == (
        "against lora-F16 it loses at most 0.44 points of all 2,000 answers (95 %)"
    )
    bound = -100 * paired_difference(0, 3, N).low
    assert f"{bound:.2f}" == "0.44"
    small = rung(made, "lora-Q4_K_M")
    assert small.change
    assert (small.change.lost, small.change.won) == (40, 0)
    assert small.worst == ("oranbench",)


def test_too_few_questions(tmp_path: Path) -> None:
    """Without a single changed answer, 300 questions leave more than a point open."""
    made = collect(tmp_path, result("lora-F16"), result("lora-Q8_0"))
    assert rung(made, "lora-Q8_0").verdict == "n too small"
    assert made.decision.passed == ("lora-F16",)
    assert made.decision.stopped == (
        "lora-Q8_0: 300 questions bound a loss at 1.3 points at best, even if no answer changes"
    )
    assert made.decision.sentences[0] == (
        "it is the reference itself: no smaller one is shown to lose less than 1 point"
    )


def test_a_loss_that_is_seen_is_not_called_too_few_questions(tmp_path: Path) -> None:
    made = collect(tmp_path, result("lora-F16"), result("lora-Q8_0", right=200))
    assert made.decision.stopped == (
        "lora-Q8_0: a loss in oranbench (-13.3, perhaps -17.6), where 1 may be lost"
    )


def test_an_unclear_loss(tmp_path: Path) -> None:
    # 20 lost and 10 won: p 0.099, but the bound is 1.09 points.
    wrong = lost(20) - set(range(0, 50, 5))
    made = collect(
        tmp_path,
        result("lora-F16", of=N, wrong=missed()),
        result("lora-Q8_0", of=N, wrong=wrong),
    )
    change = rung(made, "lora-Q8_0").change
    assert change
    assert (change.lost, change.won) == (20, 10)
    assert rung(made, "lora-Q8_0").verdict == "unclear"
    assert made.decision.passed == ("lora-F16",)
    assert made.decision.stopped == "lora-Q8_0: it may lose up to 1.1 points where 1 may be lost"


def test_a_loss_in_one_category_only(tmp_path: Path) -> None:
    """Over all questions nothing is lost, since the other category wins as much."""
    other = missed() - set(range(0, 60, 5))
    made = collect(
        tmp_path,
        result("lora-F16", of=N, wrong=missed()),
        result("lora-F16", "teletables", of=N, wrong=missed()),
        result("lora-Q8_0", of=N, wrong=lost(12)),
        result("lora-Q8_0", "teletables", of=N, wrong=other),
    )
    small = rung(made, "lora-Q8_0")
    assert small.change
    assert (small.change.verdict, small.worst, small.verdict) == (
        "no loss", ("oranbench",), "loss"
    )  # fmt: skip
    assert made.decision.passed[-1] == "lora-F16"
    verdicts = [row.change and row.change.verdict for s in made.sections for row in s.rows]
    assert verdicts == [None, "loss", None, "gain"]
    table = render.text(made, full=True).partition("all categories together")[2]
    assert "loss in 1 of 2" in table


def test_holm_over_the_categories_decides_what_a_loss_is(tmp_path: Path) -> None:
    """6 lost and none won has p 0.031: a loss of one category, none of the smaller of two."""
    rows = [
        result("lora-F16", of=N, wrong=missed()),
        result("lora-Q8_0", of=N, wrong=lost(6)),
    ]
    made = collect(tmp_path, *rows)
    # And one that is shown to be smaller than the margin.
    assert (rung(made, "lora-Q8_0").worst, made.decision.passed[-1]) == (
        ("oranbench",), "lora-Q8_0"
    )  # fmt: skip
    even = missed(0, 1)
    made = collect(
        tmp_path,
        result("lora-F16", "teletables", of=N, wrong=missed()),
        result("lora-Q8_0", "teletables", of=N, wrong=even),
    )
    change = made.sections[0].rows[1].change
    assert change
    assert (change.lost, change.p, change.adjusted) == (6, 0.03125, 0.0625)
    assert (rung(made, "lora-Q8_0").worst, made.decision.passed[-1]) == ((), "lora-Q8_0")


def test_a_gain_is_not_called_a_loss(tmp_path: Path) -> None:
    made = collect(
        tmp_path,
        result("lora-F16", of=N, wrong=missed()),
        result("lora-Q8_0", of=N, wrong=missed() - set(range(0, 100, 5))),
    )
    assert rung(made, "lora-Q8_0").verdict == "gain"
    assert made.decision.passed == ("lora-F16", "lora-Q8_0")


def test_a_bare_backbone_without_records_says_nothing(tmp_path: Path) -> None:
    bare = result("base-F16", right=239)
    made = collect(tmp_path, Result(bare.summary, ()), result("lora-F16"), result("lora-Q8_0"))
    assert rung(made, "base-F16").verdict == "no records"
    # Nothing is decided by summaries without records.
    assert made.decision.verdict == "undecided"


def test_without_any_records_the_report_is_made(tmp_path: Path) -> None:
    rows = (result("base-F16", right=80), result("lora-F16"), result("lora-Q8_0", right=238))
    made = collect(tmp_path, *(Result(each.summary, ()) for each in rows))
    assert {each.verdict for each in made.ladder} == {"no records"}
    assert (made.decision.verdict, made.decision.passed) == ("undecided", ())
    assert made.formats == ()
    assert "no records" in render.text(made, full=True)


def test_the_only_variant_is_recommended_by_name_alone(tmp_path: Path) -> None:
    made = collect(tmp_path, result("lora-F16", of=N, wrong=missed()))
    assert (made.decision.passed, made.decision.stopped) == (("lora-F16",), None)


def test_a_large_reference_model_is_neither_deployed_nor_a_bare_backbone(tmp_path: Path) -> None:
    """A model behind an endpoint has no bytes, and answers as well as the adapters."""
    large = result("reference-big", of=N, wrong=missed())
    variant = replace(large.summary.variant, format="endpoint", backbone_bytes=0)
    made = collect(
        tmp_path,
        result("base-F16", right=450, of=N),
        result("lora-F16", of=N, wrong=missed()),
        result("lora-Q8_0", of=N, wrong=missed()),
        Result(replace(large.summary, variant=variant), large.records),
    )
    assert [each.kind for each in made.ladder] == ["lora", "lora", "base", "reference"]
    assert [each.variant for each in made.ladder if each.front] == ["lora-Q8_0"]
    assert made.decision.passed[-1] == "lora-Q8_0"
    assert not any("formats" in line or "ENDPOINT" in line for line in render.verdict(made))


def test_a_variant_that_misses_a_category_has_no_rung(tmp_path: Path) -> None:
    made = collect(
        tmp_path,
        result("lora-F16", of=N, wrong=missed()),
        result("lora-F16", "teletables", of=N, wrong=missed()),
        result("lora-tiny", of=N, wrong=missed()),
    )
    assert [each.variant for each in made.ladder] == ["lora-F16"]
    made = collect(tmp_path, result("lora-tiny", "teletables", of=N, wrong=missed()))
    assert made.decision.passed[-1] == "lora-tiny"


def test_a_rung_is_worked_by_hand(tmp_path: Path) -> None:
    made = collect(
        tmp_path,
        result("lora-F16", right=240, of=300),
        result("lora-F16", "teletables", right=60, of=100),
        result("lora-Q8_0", right=230, of=300, milliseconds=4.0, memory_anonymous=5),
        result("lora-Q8_0", "teletables", right=61, of=100, milliseconds=7.0, memory_anonymous=9),
    )
    small = rung(made, "lora-Q8_0")
    # Plain means over categories, and one change over all 400 questions.
    assert small.pass1 == pytest.approx(mean((230 / 300, 0.61)))
    assert small.majority == small.pass1
    assert (small.milliseconds, small.memory) == (5.5, 9)
    assert small.bytes == 4_000_000 + 2 * ADAPTER
    assert small.change
    assert (small.change.of, small.change.lost, small.change.won) == (400, 10, 1)
    own = [row.change for s in made.sections for row in s.rows if row.change]
    assert small.change == pooled(own)
    # The larger one is more accurate: both are on the front.
    assert [each.front for each in made.ladder] == [True, True]
    made = collect(
        tmp_path, result("lora-tiny"), result("lora-tiny", "teletables", right=60, of=100)
    )
    assert [each.variant for each in made.ladder if each.front] == ["lora-tiny"]


def test_merged_models_are_one_for_each_category(tmp_path: Path) -> None:
    rows = [
        result(name, category, of=N, wrong=missed())
        for name in ("lora-F16", "merged-Q4_K_M", "lora-Q4_K_M")
        for category in ("oranbench", "teletables", "teleqna")
    ]
    made = collect(tmp_path, *rows)
    assert (rung(made, "merged-Q4_K_M").kind, rung(made, "merged-Q4_K_M").bytes) == (
        "merged", 3 * 2_500_000
    )  # fmt: skip
    assert rung(made, "lora-Q4_K_M").bytes == 2_500_000 + 3 * ADAPTER
    assert made.decision.passed[-1] == "lora-Q4_K_M"
    # The disk table sets adapters against merged models and has no row for these themselves.
    assert [(each.quant, each.merged) for each in made.footprints] == [
        ("F16", 24_000_000), ("Q4_K_M", 7_500_000)
    ]  # fmt: skip
    assert [row.disk for row in made.sections[0].rows] == [9_500_000, 4_000_000, 2_500_000]


def test_a_merged_model_is_smaller_and_nothing_that_tel_run_takes(tmp_path: Path) -> None:
    names = ("lora-F16", "lora-Q4_K_M", "merged-Q4_K_M")
    made = collect(tmp_path, *(result(name, of=N, wrong=missed()) for name in names))
    assert rung(made, "merged-Q4_K_M").bytes == 2_500_000
    assert (made.decision.variant, made.decision.bytes) == ("lora-Q4_K_M", 4_000_000)


def test_adapters_of_another_type_are_variants_of_their_own(tmp_path: Path) -> None:
    names = ("lora-F16", "lora-Q4_K_M", "lora-Q4_K_M+Q8_0")
    made = collect(tmp_path, *(result(name, of=N, wrong=missed()) for name in names))
    assert rung(made, "lora-Q4_K_M+Q8_0").bytes == 2_500_000 + ADAPTER // 2
    # tel-run takes the usual one.
    assert made.decision.passed[-1] == "lora-Q4_K_M"
    # The disk table is about the usual adapters.
    assert [(each.quant, each.adapters) for each in made.footprints] == [
        ("F16", ADAPTER), ("Q4_K_M", ADAPTER)
    ]  # fmt: skip
    assert made.checks == ()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("base-F16", "base"),
        ("lora-Q8_0", "lora"),
        ("merged-F16", "merged"),
        ("reference-endpoint", "reference"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert result(name, of=1).summary.variant.kind == kind
