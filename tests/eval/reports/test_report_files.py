"""report.md, report.json and report.html: whole, the same twice, and nothing in them is markup."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import shown
from made_reports import Result, put, result, two_categories

from tel_edge.eval import documents
from tel_edge.eval.commands import report
from tel_edge.eval.findings import findings
from tel_edge.eval.reports import paper_plots, plots, render, report_document, reporting
from tel_edge.eval.scoring.records import line
from tel_edge.runtime.workspace import Workspace

Command = Callable[..., tuple[int, str, str]]
EVIL = "<script>alert('x')</script>|$a$"


def collect(home: Path) -> findings.Report:
    return findings.collect(Workspace(home), "tel-nano")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return two_categories(tmp_path)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plots, which take most of the time."""
    monkeypatch.setattr(reporting, "drawn", lambda _: [])


@pytest.fixture
def tel_report(home: Path, run_command: Command) -> Command:
    def made(*argv: str) -> tuple[int, str, str]:
        return run_command(report.parser(), report.work, "--workspace", str(home), *argv)

    return made


def trained(home: Path, text: str | None = None) -> None:
    path = Workspace(home).adapter("tel-nano", "oranbench") / "training.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    losses = [1.4, 0.9, float("nan")]
    curve: list[dict[str, Any]] = [
        {"step": at * 10, "epoch": at, "loss": loss, "validation_loss": loss, "other": "x"}
        for at, loss in enumerate(losses)
    ]
    curve.append({"step": 40, "loss": None, "validation_loss": 0.5})
    document = {"seconds": 127.4, "parameters": 390_000, "config": {"rank": 16}, "curve": curve}
    path.write_text(json.dumps(document) if text is None else text)


@pytest.mark.usefixtures("undrawn")
def test_json_is_the_last_line_and_the_file(tel_report: Command, home: Path) -> None:
    code, said, _ = tel_report("--json", "--quiet")
    document = json.loads(said.splitlines()[-1])
    assert code == 0
    assert document == json.loads((home / "reports" / "report.json").read_text())
    assert (document["schema_version"], document["reference"]) == (4, "lora-F16")
    assert document["recommendation"]["variant"] == "lora-Q8_0"
    assert document["recommendation"]["bytes"] == 7_000_000
    first = document["categories"][0]
    assert (first["best_baseline"]["name"], first["chance"]) == ("options only", 0.25)
    quantized = first["variants"][3]
    assert quantized["variant"]["name"] == "lora-Q4_K_M"
    assert quantized["change"]["points"]["value"] == pytest.approx(-0.2)
    assert (quantized["change"]["verdict"], quantized["disk_bytes"]) == ("loss", 4_000_000)
    assert first["variants"][1]["change"] is None
    assert [rung["verdict"] for rung in document["ladder"]] == [
        *("no loss", "no loss", "loss", "loss")
    ]
    assert document["categories"][1]["chance"] == 0.25
    settings = document["settings"]
    assert settings["engine"] == "llama-cpp-python 0.3.36"
    assert settings["temperature"] == "0.7"
    assert settings["split teletables"] == "split of teletables"
    assert settings["backbone"] == "800000000000 or 250000000000 or 400000000000"


def test_the_same_inputs_give_the_same_bytes(home: Path, tmp_path: Path) -> None:
    trained(home)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        reporting.write(collect(home), folder)
    for name in ("report.md", "report.json", "report.html"):
        one, two = ((folder / name).read_bytes() for folder in folders)
        assert one == two, name
        assert len(one) > 500


@pytest.mark.usefixtures("undrawn")
def test_the_report_goes_where_it_is_told(tel_report: Command, home: Path) -> None:
    code, said, _ = tel_report("--out", str(home / "a" / "b"), "--quiet")
    assert code == 0
    assert f"report in {home / 'a' / 'b'};" in said
    assert (home / "a" / "b" / "report.json").is_file()
    assert not (home / "reports").exists()


def test_training_is_shown_when_it_is_known(home: Path) -> None:
    trained(home)
    made = collect(home)
    assert made.trainings[0].curve[3] == {"step": 40, "validation_loss": 0.5}
    assert "| oranbench | rank 16 | 127 | 390,000 |" in render.markdown(made, figures=True)
    json.dumps(report_document.document(made), allow_nan=False)
    assert [plot.title for plot in plots.plots(made)] == [
        *("Ladder", "Loss", "Reliability", "Training", "Pass@1", "Time")
    ]


def test_a_record_of_training_without_anything_known(home: Path) -> None:
    trained(home, "{}")
    made = collect(home)
    assert "| oranbench | - | - | - |" in render.markdown(made, figures=True)
    assert [plot.title for plot in plots.plots(made)] == [
        *("Ladder", "Loss", "Reliability", "Pass@1", "Time")
    ]


class Reader(HTMLParser):
    """Checks that every element is closed in order and collects what could load something."""

    VOID = frozenset({"meta", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data") and value:
                self.loads.append(value)
            if name == "id" and value:
                self.ids.append(value)
            assert not name.startswith("on")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read_page(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    return reader


def test_the_page_is_whole_and_loads_nothing(tel_report: Command, home: Path) -> None:
    trained(home)
    tel_report("--quiet")
    path = home / "reports" / "report.html"
    page, text = read_page(path), path.read_text()
    assert page.open == []
    # Six of the report's own, and the reference paper's.
    paper = paper_plots.plots(collect(home).paper)
    assert page.tags.count("svg") == 6 + len(paper) == text.count("<figcaption>")
    assert page.loads
    assert all(target.startswith("#") for target in page.loads)
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    # Two plots must not share an id, or one would be cut to the shape of the other.
    assert len(page.ids) == len(set(page.ids))
    assert {target[1:] for target in page.loads} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert "currentColor" in text
    assert plots.INK not in text
    assert "60.0 [56.9-63.0]" in page.texts
    # The verdict stands before everything else.
    assert text.index("Deploy lora-Q8_0, 7.0 MB") < text.index("<svg")


def test_names_are_text_and_never_markup(tmp_path: Path, run_command: Command) -> None:
    made = result("lora-F16", of=20, wrong={3})
    folder = tmp_path / "results" / "tel-nano" / "evil"
    evil = replace(made.summary, dataset=EVIL, made_with={EVIL: EVIL})
    evil = replace(evil, variant=replace(evil.variant, name=EVIL))
    for at, category in enumerate(("oranbench", EVIL)):
        documents.write(folder / f"{at}.json", asdict(replace(evil, category=category)))
    # Ids and texts come from records.
    rows = tuple(replace(each, id=EVIL + each.id) for each in made.records)
    moved = replace(rows[0], pick=(rows[0].pick + 1) % 4)
    first, other = (
        result(name, "teletables", of=20, wrong={3}) for name in ("lora-F16", "lora-Q8_0")
    )
    put(tmp_path, Result(first.summary, rows), result("lora-F16", of=20))
    put(tmp_path, Result(other.summary, (moved, *rows[1:])))
    code, said, _ = run_command(
        report.parser(), report.work, "--workspace", str(tmp_path), "--quiet"
    )
    assert code == 0
    assert EVIL in said
    text = (tmp_path / "reports" / "report.html").read_text()
    page = read_page(tmp_path / "reports" / "report.html")
    assert page.open == []
    # The browser's data and the browser, and not what the names say.
    assert page.tags.count("script") == 2
    assert "<script>alert" not in text
    assert page.texts.count(EVIL) >= 4
    assert EVIL.replace("<", "\\u003c") in text
    markdown = (tmp_path / "reports" / "report.md").read_text()
    assert r"\<script\>alert" in markdown
    assert "<script" not in markdown.replace(r"\<script", "")
    for block in markdown.split("\n\n"):
        if block.startswith("|"):
            rows_ = [re.split(r"(?<!\\)\|", row) for row in block.splitlines()]
            assert len({len(cells) for cells in rows_}) == 1


@pytest.mark.usefixtures("undrawn")
def test_markdown_has_all_chapters_and_equal_rows(tel_report: Command, home: Path) -> None:
    tel_report("--quiet")
    markdown = (home / "reports" / "report.md").read_text()
    for block in markdown.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
    chapters = re.findall(r"^## (.+)$", markdown, flags=re.MULTILINE)
    own = [title for title in chapters if not re.match("Table|Figure", title)]
    assert own == [
        "Ladder", "ORANBench", "TeleTables", "What the verdicts rest on", "Leakage",
        "Memory and time", "Disk", "Reliability", "Settings",
    ]  # fmt: skip
    assert "| oranbench | lora-F16 | 1,000 | 80.0 \\[77.4-82.4\\]" in markdown
    assert "| lora-Q8\\_0 | 7.0 | 73.0 |" in markdown
    assert markdown.splitlines()[2] == "**Deploy lora-Q8\\_0, 7.0 MB**"
    assert "[report.html](report.html)" in markdown


def test_without_matplotlib_all_but_the_page_is_made(
    tel_report: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tel_report("--quiet")
    assert (home / "reports" / "report.html").is_file()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, said, err = tel_report("--quiet")
    assert code == 0
    assert err == (
        "tel-report: no report.html: matplotlib is not installed; "
        "run: pip install 'tel-edge[report]'\n"
    )
    assert "; deploy lora-Q8_0" in said.splitlines()[-1]
    # The page of the run before is gone too, since nothing keeps it in step with the table.
    assert shown(home / "reports") == [
        "lm-eval", "report.json", "report.md"
    ]  # fmt: skip
    assert "report.html" not in (home / "reports" / "report.md").read_text()


def test_the_plots_leave_matplotlib_as_it_was(home: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    # A plain `dict` would ask for the backend, which imports pyplot.
    before, known = matplotlib.rcParams.copy(), "matplotlib.pyplot" in sys.modules
    plots.plots(collect(home))
    assert matplotlib.rcParams.copy() == before
    assert ("matplotlib.pyplot" in sys.modules) == known


# What is broken first (a file and its new text), the arguments, exit code, and what is said.
SUMMARY = "results/tel-nano/lora-F16/oranbench.json"
RECORDS = "results/tel-nano/lora-Q8_0/oranbench.jsonl"
TRAINING = "adapters/tel-nano/oranbench/training.json"
TORN = line(result(of=1).records[0]) + "{}\n" + line(result(of=1).records[0])
LINES: tuple[tuple[str, str, str, int, str], ...] = (
    ("", "", "", 0, ""),
    ("", "", "--backbone nothing", 2, "no backbone 'nothing': it is neither a folder, a GGUF file"),
    ("", "", "--backbone qwen3-0.6b", 2, "no results; make some with: tel-eval --backbone qwen3"),
    ("", "", "--backbone ..", 2, "no results; make some with: tel-eval"),
    ("", "", "--category oranbench", 2, "unrecognized arguments: --category oranbench"),
    ("", "", "--out", 2, "argument --out: expected one argument"),
    ("", "", "--out FILE", 2, "a file is in the way; choose another folder with --out"),
    ("", "", "--compare lora-F16", 2, "argument --compare: expected 2 arguments"),
    (SUMMARY, "{", "", 2, f"{SUMMARY}: no summary"),
    (SUMMARY, '{"schema_version": 9}', "", 2, "schema_version 9"),
    (RECORDS, TORN, "", 2, f"{RECORDS}, line 2: no record"),
    (RECORDS, TORN[:40], "", 2, f"{RECORDS}: 0 records of 0 questions, but 20 in its summary"),
    (RECORDS, "", "", 2, f"{RECORDS}: 0 records of 0 questions, but 20 in its summary"),
    (RECORDS, TORN.replace('"gold":0', '"gold":99999').replace("{}\n", ""), "", 2,
     f"{RECORDS}: records of something else"),
    ("results/baselines/oranbench.json", "[]", "", 2, "oranbench.json: no baselines"),
    ("results/baselines/oranbench.duplicates.json", "[]", "", 2, "no near-duplicates"),
    (TRAINING, "[]", "", 2, "training.json: not the record of a training"),
    (TRAINING, '{"curve": [{"step": "x"}]}', "", 2, "train again: tel-train --backbone tel-nano"),
)  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Path:
    names = ("base-F16", "lora-F16", "lora-Q8_0")
    put(tmp_path, *(result(name, of=20, right=15) for name in names))
    return tmp_path


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("broken", "text", "words", "code", "said"), LINES)
def test_command_lines(
    run_command: Command,
    small: Path,
    broken: str,
    text: str,
    words: str,
    code: int,
    said: str,
) -> None:
    (small / "file").touch()
    if broken:
        (small / broken).parent.mkdir(parents=True, exist_ok=True)
        (small / broken).write_text(text)
    argv = [str(small / "file") if part == "FILE" else part for part in words.split()]
    found, out, err = run_command(
        report.parser(), report.work, "--workspace", str(small), "--quiet", *argv
    )
    assert found == code, err
    assert said in err
    assert len(err.splitlines()) <= 2
    assert bool(out) == (code == 0)
    assert (small / "reports").exists() == (code == 0)


def test_other_orders_alone_are_no_results(tmp_path: Path, run_command: Command) -> None:
    put(tmp_path, result(of=20, rotated=True))
    code, _, err = run_command(report.parser(), report.work, "--workspace", str(tmp_path))
    assert (code, len(err.splitlines())) == (2, 1)
    assert "no results; make some with: tel-eval --backbone tel-nano" in err


@pytest.mark.usefixtures("undrawn")
def test_results_of_a_folder_backbone_need_no_folder(tmp_path: Path, run_command: Command) -> None:
    put(tmp_path, result(backbone="my-model", of=20, right=15))
    argv = ("--workspace", str(tmp_path), "--backbone", "my-model", "--quiet")
    code, said, _ = run_command(report.parser(), report.work, *argv)
    assert code == 0
    assert "lora-F16" in said
