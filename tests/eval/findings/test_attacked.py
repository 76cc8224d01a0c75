"""Results that somebody damaged, mixed or left incomplete: nothing of it flatters in silence."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_reports import Result, floor, measures, put, result
from test_decision import N, collect, decided, every, turned

from tel_edge.eval.benchmarks import duplicates
from tel_edge.eval.benchmarks.duplicates import Duplicate, Duplicates
from tel_edge.eval.commands import report
from tel_edge.eval.findings.benched import Benched, by_variant
from tel_edge.eval.scoring.records import duplicates_path, summaries
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.workspace import Workspace

Command = Callable[..., tuple[int, str, str]]
OF = 300


def orders(made: Result, **made_with: str) -> Result:
    """Return the answers in other orders, made with other files than the plain ones."""
    moved = turned(made, True)
    known = {**moved.summary.made_with, **made_with}
    return Result(replace(moved.summary, made_with=known), moved.records)


@pytest.mark.parametrize("what", ["adapter", "backbone", "prompt"])
def test_other_orders_of_other_files_do_not_count(tmp_path: Path, what: str) -> None:
    floor(tmp_path, 90, OF)
    plain = result("lora-F16", right=200)
    made = collect(tmp_path, result("base-F16", right=70), plain, orders(plain, **{what: "e" * 64}))
    assert made.decision.categories[0].all_orders is None
    assert any("not asked with the options in other orders" in s for s in made.decision.sentences)
    assert any("with other files or questions" in note for note in made.sections[0].notes)


def test_the_bare_backbone_in_another_type_was_asked_in_other_orders(tmp_path: Path) -> None:
    """The best bare one was not, but one was, and its answers survive: the gain does not."""
    floor(tmp_path, 90, OF)
    asked, best = result("base-F16", right=260), result("base-Q8_0", right=70)
    rows = [asked, turned(asked, True), result("lora-F16", right=200)]
    made = decided(tmp_path, *rows, best, turned(rows[2], True))
    assert made.categories[0].bare_orders is not None
    assert made.verdict == "do not deploy"


def test_a_bare_backbone_that_was_not_asked_in_other_orders_is_told(tmp_path: Path) -> None:
    floor(tmp_path, 90, OF)
    plain = result("lora-F16", right=200)
    made = decided(tmp_path, result("base-F16", right=70), plain, turned(plain, True))
    said = "the bare backbone was not asked with the options in other orders: oranbench"
    assert said in made.sentences


def test_answers_to_other_questions_are_no_answers(tmp_path: Path) -> None:
    rows = every(1600, 500)
    other = tuple(replace(each, id=f"other/{each.id}") for each in rows[2].records)
    made = collect(tmp_path, rows[0], rows[1], Result(rows[2].summary, other))
    assert made.decision.variant != "lora-Q8_0"
    assert any(
        finding.certain and "lora-Q8_0 has questions that lora-F16 has not" in finding.text
        for finding in made.checks
    )


def alike(home: Path, count: int, of: int) -> None:
    pairs = tuple(Duplicate(f"oranbench/{at}", "t", 0.9, True) for at in range(count))
    made = Duplicates("oranbench", "ot-mini", "test", "split of oranbench", of, 0.8, pairs)
    duplicates.write(duplicates_path(Workspace(home), "oranbench"), made)


def test_too_few_questions_unlike_the_train_part_show_nothing(tmp_path: Path) -> None:
    floor(tmp_path, 90, OF)
    alike(tmp_path, OF - 20, OF)
    made = decided(tmp_path, result("base-F16", right=70), result("lora-F16", right=OF - 20))
    assert made.categories[0].verdict == "not shown"
    assert "only 20 of 300 questions are unlike" in made.categories[0].reason


def test_what_was_not_looked_for_is_told(tmp_path: Path) -> None:
    floor(tmp_path, 90, OF)
    rows = [result("base-F16", right=70), result("lora-F16", right=200)]
    said = "near-duplicates of the train part were not looked for: oranbench; tel-eval --baselines"
    assert any(each.startswith(said) for each in decided(tmp_path, *rows).sentences)
    alike(tmp_path, 3, OF)
    assert not any(each.startswith(said) for each in decided(tmp_path, *rows).sentences)


def test_other_orders_of_some_questions_only_are_told(tmp_path: Path) -> None:
    floor(tmp_path, 90, OF)
    plain = result("lora-F16", right=200)
    moved = turned(plain, True)
    some = moved.records[: 3 * 200]
    part = Result(replace(moved.summary, **measures(some, 0)), some)
    made = decided(tmp_path, result("base-F16", right=70), plain, part)
    assert made.categories[0].all_orders is None
    assert any("not asked with the options in other orders" in s for s in made.sentences)


def test_a_bare_backbone_that_is_left_out_is_named(tmp_path: Path) -> None:
    floor(tmp_path, 900, N)
    rows = [*every(1600, 500), result("base-Q8_0", right=1900, of=N)]
    broken = replace(rows[3].summary, pass1=replace(rows[3].summary.pass1, right=1800))
    made = decided(tmp_path, *rows[:3], Result(broken, rows[3].records))
    assert any("not compared with base-Q8_0 (see the checks): oranbench" in s
               for s in made.sentences)  # fmt: skip


def benched(adapter: str, milliseconds: float, memory: int, machine: str = "Pi") -> Benched:
    return Benched("4000000".ljust(64, "0"), adapter, milliseconds, memory, machine, 4, None)


def test_the_slowest_measurement_counts() -> None:
    own = [result("lora-Q8_0").summary]
    slow, quick = benched("srsranbench", 1000.0, 5), benched("teleqna", 1.0, 9)
    for made in ([slow, quick], [quick, slow]):
        found = by_variant(made, own)["lora-Q8_0"]
        assert (found.milliseconds, found.memory) == (1000.0, 9)
    with pytest.raises(InputError, match="measured on 2 machines"):
        by_variant([slow, benched("teleqna", 1.0, 9, "Server")], own)


WRONG: tuple[tuple[str, Any], ...] = (
    ("milliseconds_p50", math.nan),
    ("milliseconds_p50", None),
    ("milliseconds_p50", -1),
    ("memory_anonymous", math.inf),
    ("made_with", None),
    ("part", "tést"),
    ("label_mass", "q"),
    ("left_out", -200),
    ("questions", 2.5),
    ("variant", {"name": "lora-F16"}),
    ("pass1", {"right": 7, "of": 3, "value": 0.5, "low": 0.4, "high": 0.6}),
)


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_summary_of_impossible_values_is_refused(
    tmp_path: Path, run_command: Command, field: str, value: Any
) -> None:
    path = put(tmp_path, result()).results("tel-nano", "lora-F16", "oranbench").with_suffix(".json")
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {field: value}))
    code, _, err = run_command(report.parser(), report.work, "--workspace", str(tmp_path))
    assert code == 2
    assert err.startswith(f"tel-report: {path}: no summary (")


def test_a_share_is_made_anew_of_its_counts(tmp_path: Path) -> None:
    home = put(tmp_path, result(right=240))
    path = home.results("tel-nano", "lora-F16", "oranbench").with_suffix(".json")
    document = json.loads(path.read_text())
    document["pass1"] |= {"value": 0.99, "low": 0.98, "high": 1.0}
    path.write_text(json.dumps(document))
    (made,) = summaries(home, "tel-nano")
    assert made.pass1.value == 0.8
    assert 0.74 < made.pass1.low < 0.8 < made.pass1.high < 0.85


def test_a_copied_summary_is_refused(tmp_path: Path) -> None:
    home = put(tmp_path, result())
    path = home.results("tel-nano", "lora-F16", "oranbench").with_suffix(".json")
    shutil.copyfile(path, path.with_name("zzz.json"))
    with pytest.raises(InputError, match=r"zzz\.json: .* is a summary of lora-F16 on oranb"):
        summaries(home, "tel-nano")
