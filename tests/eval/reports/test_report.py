"""`tel-report` on made-up results: what it says on the terminal, writes and refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import shown
from made_reports import RIGHTS, Result, floor, put, result, two_categories

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.commands import report
from tel_edge.eval.findings import checks, findings
from tel_edge.eval.reports import render, report_tables, reporting
from tel_edge.eval.scoring import records
from tel_edge.eval.scoring.records import Record, asked_digest
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.workspace import Workspace

Command = Callable[..., tuple[int, str, str]]


def collect(home: Path) -> findings.Report:
    return findings.collect(Workspace(home), "tel-nano")


def notes(home: Path) -> list[str]:
    return list(collect(home).sections[0].notes)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plots, which take most of the time and say nothing that is looked at here."""
    monkeypatch.setattr(reporting, "drawn", lambda _: [])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return two_categories(tmp_path)


@pytest.fixture
def tel_report(home: Path, run_command: Command) -> Command:
    def made(*argv: str) -> tuple[int, str, str]:
        return run_command(report.parser(), report.work, "--workspace", str(home), *argv)

    return made


def test_the_table_and_the_last_lines(tel_report: Command, home: Path) -> None:
    code, said, err = tel_report("--quiet", "--full")
    lines = said.splitlines()
    assert (code, err) == (0, "")
    assert lines[0] == "DEPLOY lora-Q8_0, 7.0 MB"
    begins = [at for at, line in enumerate(lines) if re.match(r"category +variant", line)]
    lines = lines[begins[0] :]
    cells = [re.split(r"\s{2,}", line) for line in lines]
    assert cells[0] == [
        "category", "variant", "n", "Pass@1 (95 %)", "Maj@4 (95 %)", "points (95 %)", "lost/won",
        "verdict", "disk MB",
    ]  # fmt: skip
    assert cells[2:6] == [
        ["oranbench", "base-F16", "1,000", "26.0 [23.4-28.8]", "26.0 [23.4-28.8]",
         "-54.0 [-57.1, -50.9]", "540/0", "loss", "8.0"],
        ["oranbench", "lora-F16", "1,000", "80.0 [77.4-82.4]", "80.0 [77.4-82.4]", "-", "-",
         "reference", "9.5"],
        ["oranbench", "lora-Q8_0", "1,000", "79.9 [77.3-82.3]", "79.9 [77.3-82.3]",
         "-0.1 [-0.6, +0.3]", "1/0", "no loss", "5.5"],
        ["oranbench", "lora-Q4_K_M", "1,000", "60.0 [56.9-63.0]", "60.0 [56.9-63.0]",
         "-20.0 [-22.6, -17.6]", "200/0", "loss", "4.0"],
    ]  # fmt: skip
    assert lines[6] == "    chance 25.0%, best trivial baseline options only 43.0%"
    assert max(map(len, lines[:12])) <= 120
    assert lines[-1] == f"report in {home / 'reports'}; deploy lora-Q8_0"
    assert shown(home / "reports") == [*("lm-eval", "report.html", "report.json", "report.md")]


def test_all_categories_together(tel_report: Command) -> None:
    table = (
        tel_report("--quiet", "--full")[1].partition("all categories together")[2].split("\n\n")[1]
    )
    header, *rows = [re.split(r"\s{2,}", line) for line in table.splitlines()]
    assert header[:8] == [
        "variant", "disk MB", "Pass@1", "Maj@k", "points (95 %)", "p", "same answer", "KL mean"
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["lora-F16", "lora-Q8_0", "lora-Q4_K_M", "base-F16"]
    assert rows[0][4:9] == [*"----", "reference"]
    # The mean of 79.9 and 66.0, over 2,000 questions of which one is answered otherwise.
    assert rows[1][2:7] == ["73.0", "73.0", "-0.1 [-0.3, +0.1]", "1.000", "100.0"]
    assert [row[8] for row in rows[1:]] == ["no loss", "loss in 1 of 2", "loss in 2 of 2"]


def test_bare_backbones_come_first_and_large_before_small(home: Path) -> None:
    made = collect(home)
    assert [section.category for section in made.sections] == ["oranbench", "teletables"]
    assert findings.variants(made) == tuple(RIGHTS)
    for section in made.sections:
        assert [row.summary.variant.name for row in section.rows] == list(RIGHTS)


@pytest.mark.parametrize(("right", "trivial", "remarked"), [
    (240, 130, False), (240, 235, True), (240, 290, True), (240, 226, True), (240, 225, False),
])  # fmt: skip
def test_a_baseline_that_does_as_well_is_marked_and_named(
    tmp_path: Path, right: int, trivial: int, remarked: bool
) -> None:
    put(tmp_path, result("base-F16", right=60), result("lora-F16", right=right))
    floor(tmp_path, trivial)
    made = collect(tmp_path)
    found = [note for note in made.sections[0].notes if "trivial baseline does as well" in note]
    assert bool(found) == remarked
    # The bare backbone is no better either, which nobody expects.
    cells = [row[3] for row in report_tables.results(made, made.sections[0]).rows]
    assert [cell.endswith("]!") for cell in cells] == [False, remarked]
    assert report_tables.leakage(made).rows[0][1].endswith("!") == remarked
    if remarked:
        assert found == [
            f"a trivial baseline does as well: options only {trivial / 300:.1%} against lora-F16"
        ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"of": 99, "right": 80}, "99 questions are too few to tell differences of a few points"),
        ({"rejected": 3}, "3 malformed rows of the data set left out"),
        ({"too_long": 2}, "lora-F16: 2 questions longer than the context, counted as wrong"),
        ({"label_mass": 0.1}, "less than half of the probability is on the labels: lora-F16"),
        ({"label_mass": 0.0}, "less than half of the probability is on the labels: lora-F16"),
        ({"unparsed": 4}, "lora-F16: 4 texts give no answer, counted as wrong"),
        ({}, "no trivial baselines to compare with; tel-eval --baselines makes them"),
    ],
)
def test_what_a_reader_must_know_is_said(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    put(tmp_path, result(**changes))
    assert said in notes(tmp_path)
    put(tmp_path, result(of=100, right=80))
    floor(tmp_path, 20)
    assert notes(tmp_path) == []


@pytest.mark.parametrize(
    ("names", "reference"),
    [
        ("lora-fp32 lora-F16 base-F16", "lora-F16"),
        ("lora-Q8_0 lora-fp32 lora-int4", "lora-fp32"),
        ("lora-Q8_0 lora-int8 lora-int4 base-fp32", "lora-int8"),
        ("base-F16 lora-Q8_0 lora-Q4_K_M", "lora-Q8_0"),
        ("base-F16 base-int4", "base-F16"),
        ("lora-Q8_0-generate lora-Q8_0", "lora-Q8_0"),
    ],
)
def test_the_reference_is_what_lost_least(tmp_path: Path, names: str, reference: str) -> None:
    put(tmp_path, *(result(name, of=20, right=10) for name in names.split()))
    made = collect(tmp_path)
    assert made.reference == reference
    assert "points: Pass@1 less that of " + reference in render.units(made)
    assert bool(made.footprints) == any("lora" in name for name in names.split())
    assert reference in render.text(made)


def test_other_questions_are_not_compared(tmp_path: Path) -> None:
    put(tmp_path, result("lora-F16"), result("lora-Q8_0", split="another"))
    made = collect(tmp_path)
    assert [row.change for row in made.sections[0].rows] == [None, None]
    assert [rung.variant for rung in made.ladder] == ["lora-F16"]
    assert "lora-Q8_0: scored on other questions, not compared" in notes(tmp_path)
    cells = report_tables.results(made, made.sections[0]).rows
    assert [row[-2] for row in cells] == ["reference", "-"]


def test_baselines_of_other_questions_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, result())
    floor(tmp_path, 299, split="another")
    assert collect(tmp_path).sections[0].baselines is None
    assert notes(tmp_path) == [
        "the trivial baselines on file are about other questions; run tel-eval --baselines"
    ]


def test_the_seen_part_stands_beside_the_unseen_one(home: Path) -> None:
    """The results on the train part have files of their own and a place of their own."""
    plain = collect(home)
    before = render.text(plain, full=True).splitlines()
    seen = result("lora-F16", right=900, of=1000, part="train")
    put(home, seen, result("lora-F16", right=800, of=1000, part="validation"))
    assert (home / "results" / "tel-nano" / "lora-F16" / "oranbench.train.jsonl").is_file()
    made = collect(home)
    assert made.part == "test"
    assert (made.ladder, made.checks) == (plain.ladder, ())
    assert {row.summary.part for section in made.sections for row in section.rows} == {"test"}
    gaps = [line.gap.value for line in made.paper.lines if line.gap]
    assert gaps == [pytest.approx(0.1)]
    # All that the report said before is still there.
    said = render.text(made, full=True).splitlines()
    assert [line for line in before if line not in said] == []
    # Where nothing else was scored the train part is the report's.
    for file in (home / "results" / "tel-nano").glob("*/*.json*"):
        if ".train." not in file.name:
            file.unlink()
    assert collect(home).part == "train"


def test_memory_that_cannot_be_read_is_a_dash(tmp_path: Path) -> None:
    put(tmp_path, result(memory_anonymous=None, memory_file=None, memory_peak=7_000_000))
    assert report_tables.footprint(collect(tmp_path)).rows[0][:6] == (
        "lora-F16", "9.5", "-", "-", "7.0", "-"
    )  # fmt: skip


def test_what_was_measured_of_memory_time_and_energy(tmp_path: Path) -> None:
    put(
        tmp_path,
        result(
            first_answer_ms=12.5, kv_bytes_per_token=2048, context=4096, joules_per_question=0.25,
            power_mode="15W",
        ),
        result("lora-F16", "teletables", first_answer_ms=14.5, joules_per_question=0.75,
               memory_anonymous=50_000_000),
    )  # fmt: skip
    made = collect(tmp_path)
    assert report_tables.footprint(made).rows == (
        ("lora-F16", "9.5", "50.0", "8.0", "90.0", "2.0", "8.4", "13.5", "10.0", "10.0", "0.50",
         "15W"),
    )  # fmt: skip
    assert report_tables.ladder(made).header[-1] == "J/question"
    assert report_tables.ladder(made).rows[0][-1] == "0.50"


def test_reliability_by_hand(tmp_path: Path) -> None:
    """Right answers have 72 %, wrong ones 52 %: those could be surer, these are too sure."""
    put(tmp_path, result(right=240), result("lora-F16", "teletables", right=300))
    made = collect(tmp_path)
    assert list(made.reliability) == ["lora-F16"]
    rows = report_tables.reliability(made).rows
    assert [row[:4] for row in rows] == [
        ("lora-F16", "50-60", "60", "52.0"), ("lora-F16", "70-80", "540", "72.0")
    ]  # fmt: skip
    assert [row[4].split()[0] for row in rows] == ["0.0", "100.0"]
    first, second = (section.rows[0] for section in made.sections)
    assert first.calibration_error == pytest.approx(0.8 * 0.28 + 0.2 * 0.52, abs=1e-3)
    assert second.calibration_error == pytest.approx(0.28, abs=1e-3)
    assert report_tables.statistics(made).rows[0][-2] == "32.8"


def test_the_recommended_variant_has_bins_of_its_own(home: Path) -> None:
    assert list(collect(home).reliability) == ["lora-F16", "lora-Q8_0"]
    texts = result("lora-F16-generate", of=20, right=10)
    path = home / "other"
    put(path, texts)
    made = collect(path)
    assert (made.reliability, made.sections[0].rows[0].calibration_error) == ({}, None)
    assert report_tables.statistics(made).rows[0][2] == "-"


def test_a_summary_that_its_records_contradict_is_told(tel_report: Command, home: Path) -> None:
    assert "OWN CHECKS" not in tel_report("--quiet")[1]
    path = Workspace(home).results("tel-nano", "lora-Q8_0", "oranbench").with_suffix(".json")
    made = records.read_summary(path)
    records.write_summary(path, replace(made, pass1=replace(made.pass1, right=998, value=0.998)))
    code, said, _ = tel_report("--quiet")
    assert code == 0
    told = said.partition("THE REPORT'S OWN CHECKS\n")[2].splitlines()
    assert told[0].startswith("    oranbench lora-Q8_0: ")
    assert "998 of 1000" in told[0]
    assert checks.KINDS["records"] in " ".join(part.strip() for part in told)
    assert "the report's own checks found 1 thing that should not be so" in " ".join(said.split())
    for name in ("report.md", "report.html"):
        text = (home / "reports" / name).read_text()
        assert "The report's own checks" in text.replace("&#x27;", "'")
        assert "998 of 1000" in text
    document = json.loads((home / "reports" / "report.json").read_text())
    assert [each["kind"] for each in document["checks"]] == ["records"]


def with_texts(home: Path, dataset: str = "ot-mini") -> list[str]:
    """Write answers to ot-mini's first questions, of which Q8_0 loses one; return their texts."""
    questions = benchmark.read("ot-mini", CATEGORIES["oranbench"]).questions[:30]
    for name, wrong in (("lora-F16", ()), ("lora-Q8_0", (4,))):
        made = result(name, of=30, wrong=wrong, dataset=dataset)
        rows = []
        for at, (each, question) in enumerate(zip(made.records, questions, strict=True)):
            gold, digest = question.answer or 0, asked_digest(question)
            pick = gold if at not in wrong else (gold + 1) % 4
            logprobs = tuple(-0.2 if label == pick else -3.0 for label in range(4))
            rows.append(Record("r", question.id, gold, logprobs, pick, (pick,), 9, 1.0, None,
                               digest if each else ""))  # fmt: skip
        fields = records.measures(rows, 0)
        put(home, Result(replace(made.summary, **fields), tuple(rows)))
    return [question.text for question in questions]


def embedded(home: Path) -> Any:
    """Return the data of the page's browser."""
    page = (home / "reports" / "report.html").read_text()
    return json.loads(page.partition('id="answers">')[2].partition("</script>")[0])


def test_texts_of_questions_are_in_the_page_unless_they_are_not_wanted(
    tmp_path: Path, run_command: Command
) -> None:
    texts = with_texts(tmp_path)
    argv = ("--workspace", str(tmp_path))
    code, _, err = run_command(report.parser(), report.work, *argv, "--samples")
    assert (code, err) == (0, "")
    assert embedded(tmp_path)["categories"][0]["texts"] == [texts[4]]
    samples = list((tmp_path / "reports" / "lm-eval").glob("*/samples_oranbench_*.jsonl"))
    assert len(samples) == 2
    assert all(json.dumps(texts[7])[1:-1] in file.read_text() for file in samples)
    assert run_command(report.parser(), report.work, *argv, "--samples", "--no-texts")[0] == 0
    assert embedded(tmp_path)["categories"][0]["texts"] == [None]
    every = [file.read_text() for file in (tmp_path / "reports").rglob("*") if file.is_file()]
    assert not any(text in found for text in texts for found in every)
    # Right answers, too, can be what must not be passed on.
    assert run_command(report.parser(), report.work, *argv, "--no-questions")[0] == 0
    assert 'id="answers"' not in (tmp_path / "reports" / "report.html").read_text()


def test_a_text_that_is_not_the_one_asked_is_left_out(tmp_path: Path, run_command: Command) -> None:
    texts = with_texts(tmp_path)
    for path in tmp_path.glob("results/*/*/*.jsonl"):
        path.write_text(re.sub(r'"asked": "\w+"', '"asked": "00000000"', path.read_text()))
    code, _, err = run_command(report.parser(), report.work, "--workspace", str(tmp_path))
    assert (code, err) == (0, "")
    assert embedded(tmp_path)["categories"][0]["texts"] == [None]
    assert texts[4] not in (tmp_path / "reports" / "report.html").read_text()


def test_another_data_set_is_said_and_the_report_made(tmp_path: Path, run_command: Command) -> None:
    with_texts(tmp_path, dataset="mine")
    argv = ("--workspace", str(tmp_path))
    code, said, err = run_command(report.parser(), report.work, *argv)
    assert (code, err) == (
        0, "results are of mine, not of ot-mini: no texts of questions; pass --dataset\n"
    )  # fmt: skip
    assert embedded(tmp_path)["categories"][0]["texts"] == [None]
    code, _, err = run_command(
        report.parser(), report.work, *argv, "--dataset", str(tmp_path / "none")
    )
    assert code == 0
    assert err.startswith("no texts of questions: ")
    assert f"report in {tmp_path / 'reports'}" in said


def test_results_of_two_seeds_are_no_error(tmp_path: Path, run_command: Command) -> None:
    with_texts(tmp_path)
    for path in tmp_path.glob("results/*/lora-Q8_0/*.json"):
        path.write_text(path.read_text().replace('"seed": 42', '"seed": 43'))
    code, _, err = run_command(report.parser(), report.work, "--workspace", str(tmp_path))
    assert (code, err) == (0, "")
    assert collect(tmp_path).settings["seed"] == "42 or 43"
