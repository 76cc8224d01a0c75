"""What a decision must not rest on: other questions, other orders, questions that were seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_reports import Result, floor, measures, put, result
from test_decision import N, collect, every, turned

from tel_edge.eval.benchmarks import duplicates
from tel_edge.eval.benchmarks.duplicates import Duplicate, Duplicates
from tel_edge.eval.findings import findings
from tel_edge.eval.findings.decision import Decision
from tel_edge.eval.findings.worth import Worth
from tel_edge.eval.reports import card, render
from tel_edge.eval.scoring.records import duplicates_path
from tel_edge.runtime.files import digest
from tel_edge.runtime.workspace import Workspace


def worth(home: Path, *made: Result, trivial: int | None = 900, **budget: Any) -> Worth:
    if trivial is not None:
        floor(home, trivial, N)
    [only] = collect(home, *made, **budget).decision.categories
    return only


def decided(home: Path, *made: Result, **budget: Any) -> Decision:
    floor(home, 900, N)
    return collect(home, *made, **budget).decision


def test_a_bare_backbone_that_was_asked_other_questions_is_not_beaten(tmp_path: Path) -> None:
    """Every question that it was never asked would count as lost by it."""
    rows = every(1600, 500)
    rows[0] = result("base-F16", right=20, of=20)
    found = worth(tmp_path, *rows)
    assert (found.verdict, found.bare) == ("not shown", None)
    assert found.reason == "the bare backbone was not scored on the same questions"


def test_the_bare_backbone_is_the_best_there_is(tmp_path: Path) -> None:
    rows = [*every(1600, 500), result("base-Q8_0", right=1800, of=N)]
    found = worth(tmp_path, *rows)
    assert (found.verdict, found.bare) == ("do not deploy", "base-Q8_0")
    assert found.reason == "the bare backbone is better by 10.0 points"


def test_guessing_is_known_without_baselines(tmp_path: Path) -> None:
    """By the number of options; and what beats guessing is not shown to beat anything else."""
    found = worth(tmp_path, *every(300, 60), trivial=None)
    assert found.reason == "no better than guessing (25.0 %)"
    found = worth(tmp_path, *every(1600, 500), trivial=None)
    assert (found.verdict, found.trivial) == ("not shown", None)
    assert found.reason.startswith("no trivial baselines to compare with")


def test_a_stray_variant_takes_no_baselines_away(tmp_path: Path) -> None:
    rows = [*every(1600, 500), result("lora-Q4_K_M", right=90, of=100, split="another")]
    assert worth(tmp_path, *rows).trivial == "options only"


def test_answers_of_another_part_decide_nothing(tmp_path: Path) -> None:
    rows = [Result(replace(one.summary, part="train"), one.records) for one in every(1600, 500)]
    made = decided(tmp_path, *rows)
    assert made.verdict == "undecided"
    assert made.headline.startswith("undecided: these are answers of the train part")


def test_what_was_seen_is_no_merit(tmp_path: Path) -> None:
    """The questions that are much like one of the train part are right, the others are not."""
    of, alike = 1000, 560
    rows = [result("base-F16", right=250, of=of), result("lora-F16", right=600, of=of)]
    pairs = tuple(Duplicate(f"oranbench/{at}", "t", 0.9, True) for at in range(alike))
    made = Duplicates("oranbench", "ot-mini", "test", "split of oranbench", of, 0.8, pairs)
    duplicates.write(duplicates_path(Workspace(tmp_path), "oranbench"), made)
    floor(tmp_path, 350, of)
    found = collect(tmp_path, *rows).decision.categories[0]
    assert found.verdict == "do not deploy"
    assert found.reason == (
        "no better than guessing on the 440 questions that are unlike any of the train part (9.1 %)"
    )


def half(plain: Result, kept: int) -> Result:
    """Return the answers in other orders of a model that knows the first `kept` of the questions.

    The others it answers by their place.
    """
    first, second = turned(plain, True), turned(plain, False)
    rows = [
        one if int(one.id.split("/")[1].split("#")[0]) < kept else other
        for one, other in zip(first.records, second.records, strict=True)
    ]
    return Result(replace(first.summary, **measures(rows, 0)), tuple(rows))


def test_a_gain_that_the_bare_backbone_has_in_other_orders_too(tmp_path: Path) -> None:
    """40 % over all orders is above guessing, and far below the bare backbone's."""
    bare, adapted = result("base-F16", right=150), result("lora-F16", right=240)
    floor(tmp_path, 90, 300)
    made = collect(tmp_path, bare, turned(bare, True), adapted, half(adapted, 60))
    found = made.decision.categories[0]
    assert found.all_orders is not None
    assert found.bare_orders is not None
    assert found.all_orders.low > 0.25
    assert found.all_orders.value < found.bare_orders.value
    assert found.verdict == "do not deploy"
    assert found.reason.startswith("its gain does not survive other orders of the options")


def test_orders_of_a_few_questions_say_nothing(tmp_path: Path) -> None:
    plain = result("lora-F16", right=1600, of=N)
    few = turned(plain, True)
    kept = few.records[:90]
    some = Result(replace(few.summary, **measures(kept, 0)), kept)
    found = worth(tmp_path, result("base-F16", right=500, of=N), plain, some)
    assert (found.all_orders, found.orders_of) == (None, None)


def test_orders_that_the_reference_was_asked_in_are_called_so(tmp_path: Path) -> None:
    rows = every(1600, 500)
    found = worth(tmp_path, *rows, turned(rows[1], True))
    assert found.orders_of == "lora-F16"
    made = collect(tmp_path, *rows)
    assert "all orders: Pass@1 over all orders of the options (*: of lora-F16)" in card.columns(
        made
    )


def test_a_reference_that_lacks_a_category_is_not_replaced_in_silence(tmp_path: Path) -> None:
    rows = [
        *every(1600, 300),
        result("lora-Q4_K_M", right=900, of=N),
        result("lora-Q4_K_M", "teletables", 1000, N),
        result("base-F16", "teletables", 300, N),
    ]
    made = decided(tmp_path, *rows)
    assert made.verdict == "undecided"
    assert made.headline == (
        "undecided: lora-F16 was not scored on every category, so what lora-Q4_K_M loses against "
        "it is known in part only"
    )


def test_without_adapters_there_is_nothing_to_decide(tmp_path: Path) -> None:
    made = decided(tmp_path, result("base-F16", right=500, of=N), result("base-Q8_0", of=N))
    assert (
        made.headline == "undecided: no adapter was scored, so there is nothing to decide between"
    )
    made = decided(tmp_path / "none", result("lora-F16", right=0, of=0))
    assert made.headline == "undecided: no question was scored"


def test_a_limit_says_what_it_left_out(tmp_path: Path) -> None:
    rows = [Result(replace(one.summary, left_out=500), one.records) for one in every(1600, 500)]
    made = decided(tmp_path, *rows)
    assert "not all questions were asked: oranbench (2,000 of 2,500)" in made.sentences


def test_a_budget_is_told_and_what_it_left_out(tmp_path: Path) -> None:
    rows = every(1600, 500)
    rows[2] = result("lora-Q8_0", right=1600, of=N, milliseconds=20.0)
    floor(tmp_path, 900, N)
    made = collect(tmp_path, *rows, milliseconds=15.0)
    assert made.decision.variant == "lora-F16"
    assert made.decision.over_budget == {"lora-Q8_0": "20.00 ms a question, more than 15"}
    assert (
        "over the budget: lora-Q8_0: 20.00 ms a question, more than 15" in made.decision.sentences
    )
    assert not any("no smaller one" in each for each in made.decision.sentences)
    assert card.commands(made)[0].endswith("--margin 1 --max-ms 15 --write --ship tel-deploy")
    there = replace(made, home=Path("my ws"), bench=(Path("b.txt"),))
    assert card.commands(there)[0] == (
        "tel-report --backbone tel-nano --workspace 'my ws' --margin 1 --max-ms 15 --bench b.txt "
        "--write --ship tel-deploy"
    )


def test_a_limit_of_time_holds_in_every_category(tmp_path: Path) -> None:
    for category in ("oranbench", "teletables", "teleqna"):
        floor(tmp_path, 900, N, category)
    rows = [
        result(name, category, right, N, milliseconds=time)
        for name, right in (("base-F16", 500), ("lora-F16", 1600))
        for category, time in (("oranbench", 5.0), ("teletables", 6.0), ("teleqna", 900.0))
    ]
    made = collect(tmp_path, *rows, milliseconds=10.0)
    assert made.decision.headline == (
        "do not deploy: nothing that may stand for the reference fits the budget; the smallest, "
        "lora-F16: 900.00 ms a question, more than 10"
    )


def test_memory_that_is_not_known_in_one_category_fits_nothing(tmp_path: Path) -> None:
    for category in ("oranbench", "teletables"):
        floor(tmp_path, 900, N, category)
    rows = [*every(1600, 500), *every(1600, 500, "teletables")]
    rows = [
        Result(replace(one.summary, memory_anonymous=None), one.records)
        if one.summary.category == "teletables" else one
        for one in rows
    ]  # fmt: skip
    made = collect(tmp_path, *rows, memory=50_000_000).decision
    assert made.over_budget["lora-Q8_0"] == "its memory is not known"


def test_a_margin_is_what_may_be_lost(tmp_path: Path) -> None:
    """1.0 points lost, surely, and no more than 1.5: where 5 may be lost, it is taken."""
    rows = every(1600, 500)
    rows[2] = result("lora-Q8_0", right=1580, of=N)
    assert decided(tmp_path, *rows, margin=0.05).variant == "lora-Q8_0"
    made = decided(tmp_path, *rows)
    assert made.variant == "lora-F16"
    assert made.stopped == (
        "lora-Q8_0: a loss in oranbench (-1.0, perhaps -1.5), where 1 may be lost"
    )


def test_what_is_wrong_with_another_variant_decides_nothing(tmp_path: Path) -> None:
    """One question was too long for the smallest: it is not taken, and the others are judged."""
    rows = [*every(1600, 500), result("lora-Q4_K_M", right=1500, of=N, too_long=1)]
    made = decided(tmp_path, *rows)
    assert (made.verdict, made.variant) == ("deploy", "lora-Q8_0")
    assert made.stopped is not None
    assert "too long for it" in made.stopped


def test_the_cause_stands_on_the_card(tmp_path: Path) -> None:
    rows = every(1600, 500)
    rows[1] = result("lora-F16", right=1300, of=N, too_long=300)
    made = collect(tmp_path, *rows)
    assert made.decision.headline == "undecided: the report's own checks found what cannot be"
    assert "too long for it" in made.decision.sentences[0]
    lines = render.text(made).splitlines()
    assert lines[0].startswith("UNDECIDED: the report's own checks")
    assert max(map(len, lines)) <= 80


def test_texts_are_shipped_as_texts(tmp_path: Path) -> None:
    floor(tmp_path, 900, N)
    rows = [
        result("base-F16-generate", right=500, of=N),
        result("lora-F16-generate", right=1600, of=N),
    ]
    made = collect(tmp_path, *rows)
    assert card.commands(made) == (
        "tel-run --bundle tel-workspace/bundles/tel-nano --quant F16 --protocol generate "
        "questions.jsonl",
    )


def test_the_record_of_another_training_is_not_this_adapters(tmp_path: Path) -> None:
    folder = Workspace(tmp_path).adapter("tel-nano", "oranbench")
    folder.mkdir(parents=True)
    (folder / "training.json").write_text(json.dumps({"seconds": 5.0, "curve": []}))
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    own = digest.of_adapter(folder)
    for source, count in ((own, 1), ("f" * 64, 0), (None, 1)):
        one = result("lora-F16")
        variant = replace(one.summary.variant, source=source)
        put(tmp_path, Result(replace(one.summary, variant=variant), one.records))
        assert len(findings.collect(Workspace(tmp_path), "tel-nano").trainings) == count


@pytest.mark.parametrize(
    ("field", "value", "what", "certain"),
    [
        ("made_with", {"weights": "b" * 64}, "backbone's weights", True),
        ("made_with", {"backbone": "b" * 64}, "backbone's file", True),
        ("made_with", {"engine": "llama-cpp-python 0.2.1"}, "engine", False),
        ("made_with", {"engine_settings": {"context": 512}}, "context", False),
        ("dataset", "another", "data set", False),
    ],
)
def test_mixtures_across_categories_are_found(
    tmp_path: Path, field: str, value: Any, what: str, certain: bool
) -> None:
    rows = [*every(1600, 500), *every(1600, 500, "teletables")]
    context = {"engine_settings": {"context": 4096}, "weights": "a" * 64}
    rows = [
        Result(replace(one.summary, made_with={**one.summary.made_with, **context}), one.records)
        for one in rows
    ]
    put(tmp_path, *rows)
    assert findings.collect(Workspace(tmp_path), "tel-nano").checks == ()
    last = rows[-1].summary
    new = {**last.made_with, **value} if field == "made_with" else value
    put(tmp_path, Result(replace(last, **{field: new}), rows[-1].records))
    found = findings.collect(Workspace(tmp_path), "tel-nano").checks
    [mixed] = [each for each in found if each.kind == "mixed"]
    assert (mixed.variant, mixed.certain) == ("lora-Q8_0", certain)
    assert f"not of one {what}: oranbench" in mixed.text
