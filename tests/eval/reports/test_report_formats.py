"""GGUF and ONNX side by side: which format's best variant is smaller, and which took less time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from made_reports import TOKENIZER, Result, floor, put, result

from tel_edge.eval.commands import report
from tel_edge.eval.findings import findings
from tel_edge.eval.findings.findings import Report
from tel_edge.eval.reports import plots, render, report_tables
from tel_edge.eval.reports.tables import escaped
from tel_edge.runtime.workspace import Workspace

Command = Callable[..., tuple[int, str, str]]
N = 1000
CATEGORIES = ("oranbench", "teletables")


def collect(home: Path) -> Report:
    return findings.collect(Workspace(home), "tel-nano")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two categories in GGUF alone, of which Q4_K_M has lost much in one."""
    put(tmp_path, *gguf())
    for category in CATEGORIES:
        floor(tmp_path, 300, N, category)
    return tmp_path


@pytest.fixture
def both(home: Path) -> Path:
    """The same in ONNX: all types answer as F16 does, and int4 is quicker in one category."""
    put(home, *onnx())
    return home


@cache
def gguf() -> tuple[Result, ...]:
    rights = {"base-F16": (250, 250), "lora-F16": (800, 800), "lora-Q8_0": (799, 799)}
    return tuple(
        result(name, category, right, N)
        for name, own in {**rights, "lora-Q4_K_M": (600, 800)}.items()
        for category, right in zip(CATEGORIES, own, strict=True)
    )


@cache
def onnx() -> tuple[Result, ...]:
    times = {"lora-fp32": (10.0, 10.0), "lora-int8": (10.0, 10.0), "lora-int4": (8.0, 11.0)}
    return tuple(
        result(name, category, 800, N, milliseconds=milliseconds)
        for name, own in times.items()
        for category, milliseconds in zip(CATEGORIES, own, strict=True)
    )


SENTENCES = (
    "the smallest variant of each format without a significant loss: lora-Q8_0 (GGUF), 7.0 MB, "
    "10.0 ms a question, no loss; lora-int4 (ONNX), 6.0 MB, 9.5 ms a question, no loss (p50, "
    "median over the categories)",
    "of these lora-int4 (ONNX) is the smallest and took the least time, in 1 of 2 categories; each "
    "was timed once, on the machine and under the load of its run, so a small difference in time "
    "may be chance",
)


def test_formats_stand_side_by_side(both: Path, run_command: Command) -> None:
    argv = ("--workspace", str(both), "--json", "--quiet", "--full")
    code, said, err = run_command(report.parser(), report.work, *argv)
    assert (code, err) == (0, "")
    table = [
        re.split(r"\s{2,}", row)
        for row in said.splitlines()
        if row.startswith("oranb") and "-" in row.split()[1]
    ]
    assert [cells[1:3] for cells in table[:7]] == [
        *(["base-F16", "GGUF"], ["lora-F16", "GGUF"], ["lora-Q8_0", "GGUF"]),
        *(["lora-Q4_K_M", "GGUF"], ["lora-fp32", "ONNX"], ["lora-int8", "ONNX"]),
        ["lora-int4", "ONNX"],
    ]
    assert "disk: backbone, of ONNX with data file and tokenizer, and adapter;" in (
        " ".join(said.split())
    )
    document = json.loads(said.splitlines()[-1])
    assert document["reference"] == "lora-F16"
    assert document["recommendation"]["variant"] == "lora-int4"
    assert document["formats"] == [
        {
            "format": "gguf", "variant": "lora-Q8_0", "bytes": 7_000_000,
            "milliseconds": {"oranbench": 10.0, "teletables": 10.0}, "verdict": "no loss",
        },
        {
            "format": "onnx", "variant": "lora-int4", "bytes": 6_000_000,
            "milliseconds": {"oranbench": 8.0, "teletables": 11.0}, "verdict": "no loss",
        },
    ]  # fmt: skip
    assert document["settings"]["engine"] == "llama-cpp-python 0.3.36 or onnxruntime 1.31"
    page = (both / "reports" / "report.html").read_text()
    markdown = (both / "reports" / "report.md").read_text()
    for sentence in SENTENCES:
        assert sentence in " ".join(said.split())
        assert escaped(sentence) in markdown
        assert f"<li>{sentence}.</li>" in page
    assert "circles are GGUF, squares are ONNX." in page


def test_one_format_says_nothing_of_formats(home: Path) -> None:
    made = collect(home)
    assert "GGUF" not in render.text(made, full=True).replace("(GGUF)", "")
    assert not any("format" in line for line in render.verdict(made))
    assert [each.variant for each in made.formats] == ["lora-Q8_0"]
    assert not any("circles" in plot.caption for plot in plots.plots(made))


def test_the_disk_of_onnx_has_the_tokenizer_once(both: Path) -> None:
    made = collect(both)
    found = {each.quant: each for each in made.footprints}
    assert list(found) == ["F16", "Q8_0", "Q4_K_M", "fp32", "int8", "int4"]
    small = found["int4"]
    assert (small.format, small.backbone, small.tokenizer) == ("onnx", 3_000_000, TOKENIZER)
    assert (small.together, small.merged) == (6_000_000, 2 * 2_400_000 + TOKENIZER)
    small = found["Q4_K_M"]
    assert (small.categories, small.backbone, small.adapters) == (2, 2_500_000, 3_000_000)
    assert (small.together, small.merged) == (5_500_000, 5_000_000)
    rows = report_tables.disk(made).rows
    assert rows[-1] == ("int4 (ONNX)", "2", "3.0", "3.0", "6.0", "2 x 2.4 + 0.6 = 5.4")


NOT_COMPARED = (
    "no ONNX variant is shown to answer all questions as lora-F16 does without a significant loss, "
    "so the formats are not compared"
)


def test_a_format_that_lost_too_much_is_not_compared(home: Path) -> None:
    put(home, result("lora-int4", right=100, of=N, milliseconds=1.0))
    put(home, result("lora-int4", "teletables", right=800, of=N, milliseconds=1.0))
    made = collect(home)
    assert [best.variant for best in made.formats] == ["lora-Q8_0"]
    assert NOT_COMPARED in render.verdict(made)


def test_texts_are_not_timed_against_letters(home: Path) -> None:
    """An answer read from a text takes many times as long."""
    put(home, *(result("lora-int4-generate", category, 800, N) for category in CATEGORIES))
    made = collect(home)
    assert [best.variant for best in made.formats] == ["lora-Q8_0"]
    assert NOT_COMPARED in render.verdict(made)


def test_a_format_without_records_is_not_compared(home: Path) -> None:
    put(home, *(Result(result("lora-int4", name, 800, N).summary, ()) for name in CATEGORIES))
    assert NOT_COMPARED in render.verdict(collect(home))


def test_answers_read_from_texts_stand_beside_those_by_letters(home: Path) -> None:
    put(home, result("lora-F16-generate", right=500, of=N, unparsed=20))
    made = collect(home)
    assert (made.reference, made.decision.passed[-1]) == ("lora-F16", "lora-Q8_0")
    rows = {row.summary.variant.name: row for row in made.sections[0].rows}
    texts = rows["lora-F16-generate"]
    assert texts.change
    assert (texts.change.lost, texts.change.kl_mean) == (300, None)
    assert (texts.calibration_error, texts.summary.label_mass) == (None, None)
    said = made.sections[0].notes
    assert "lora-F16-generate: 20 texts give no answer, counted as wrong" in said
    assert not any("on the labels" in note for note in said)


def test_the_smallest_need_not_be_the_quickest(tmp_path: Path) -> None:
    put(tmp_path, result("lora-F16"), result("lora-fp32", milliseconds=4.0))
    said = render.verdict(collect(tmp_path))[-1]
    assert said.startswith(
        "of these lora-F16 (GGUF) is the smallest and lora-fp32 (ONNX) took the least time; each"
    )


def test_equal_sizes_and_times_have_no_winner(tmp_path: Path) -> None:
    one, other = result("lora-F16"), result("lora-fp32")
    size = one.summary.variant.backbone_bytes
    same = replace(other.summary.variant, backbone_bytes=size)
    put(tmp_path, one, Result(replace(other.summary, variant=same), other.records))
    said = render.verdict(collect(tmp_path))
    assert said[-1].startswith("of these they are of one size and they took the same time; ")


def test_the_points_of_formats_differ_in_shape(both: Path) -> None:
    pytest.importorskip("matplotlib")
    made = collect(both)
    looks = [plots._mark(made, name) for name in findings.variants(made)]
    assert [look["marker"] for look in looks] == [*"oooo", *"sss"]
    # A type's own colour, base and adapter alike.
    assert len({look["color"] for look in looks}) == 6
    long = result("lora-int4", of=20, right=15)
    name = "lora-dynamic-int8-generate"
    variant = replace(long.summary.variant, name=name, quant="dynamic-int8")
    put(both, Result(replace(long.summary, variant=variant), long.records))
    drawn = {plot.title: plot.svg for plot in plots.plots(collect(both))}
    assert all(name in drawn[title] for title in ("Ladder", "Pass@1", "Time"))
