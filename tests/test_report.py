"""`tel-report` on made-up results: what it says, writes and refuses."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tel_edge.eval import baselines, findings, plots, records, render, report
from tel_edge.eval.baselines import Baseline, Baselines
from tel_edge.eval.records import Summary, Variant
from tel_edge.eval.statistics import share
from tel_edge.runtime.workspace import Workspace

Command = Callable[..., tuple[int, str, str]]
SIZES = {"F16": 8_000_000, "Q8_0": 4_000_000, "Q4_K_M": 2_500_000}
ONNX = {"fp32": 16_000_000, "int8": 5_000_000, "int4": 3_000_000}
TOKENIZER = 600_000
EVIL = "<script>alert('x')</script>|$a$"


def summary(name: str = "lora-F16", category: str = "oranbench", **changes: Any) -> Summary:
    """Return one variant's result on 300 questions; `right` and `of` set both shares."""
    right, of = changes.pop("right", 240), changes.pop("of", 300)
    kind, quant = name.split("-", 1)
    size = (SIZES | ONNX).get(quant, 1_000_000)
    lora, onnx = kind == "lora", quant in ONNX
    extra = (TOKENIZER,) if onnx else ()
    format, engine = ("onnx", "onnxruntime 1.31") if onnx else ("gguf", "llama-cpp-python 0.3.36")
    made = Summary(
        backbone="tel-nano",
        variant=Variant(name, quant, format, lora, size, 1_500_000 if lora else 0, *extra),
        category=category,
        dataset="ot-mini",
        part="test",
        split=f"split of {category}",
        run="r",
        made_with={
            "engine": engine,
            "backbone": str(size).ljust(64, "0"),
            "adapter": None,
            "split": f"split of {category}",
            "settings": {"k": 4, "temperature": 0.7, "seed": 42},
        },
        questions=of,
        rejected=0,
        too_long=0,
        unparsed=0,
        pass1=share(right, of),
        majority=share(max(0, right - 1), of),
        majority_exact=max(0, right - 1) / of,
        k=4,
        label_mass=0.97,
        tokens_mean=104.0,
        milliseconds_p50=10.0,
        milliseconds_p95=16.0,
        memory_anonymous=41_000_000,
        memory_file=size,
        memory_peak=90_000_000,
    )
    return replace(made, **changes)


def put(home: Path, *made: Summary) -> Workspace:
    workspace = Workspace(home)
    for each in made:
        path = workspace.results(each.backbone, each.variant.name, each.category)
        records.write_summary(path, each)
    return workspace


def floor(
    home: Path, right: int, of: int = 300, category: str = "oranbench", **changes: Any
) -> None:
    made = Baselines(
        category,
        "ot-mini",
        "test",
        f"split of {category}",
        0.25,
        (Baseline("one letter", share(0, of)), Baseline("options only", share(right, of))),
    )
    baselines.write(Workspace(home), replace(made, **changes))


def notes(home: Path) -> list[str]:
    return list(findings.collect(Workspace(home), "tel-nano").sections[0].notes)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two categories; Q8_0 loses nothing that can be seen, Q4_K_M loses in one of them."""
    put(
        tmp_path,
        summary("base-F16", right=80),
        summary("lora-F16", right=240),
        summary("lora-Q8_0", right=238),
        summary("lora-Q4_K_M", right=180),
        summary("base-F16", "teletables", right=60),
        summary("lora-F16", "teletables", right=200),
        summary("lora-Q8_0", "teletables", right=201),
        summary("lora-Q4_K_M", "teletables", right=198),
    )
    floor(tmp_path, 130)
    return tmp_path


@pytest.fixture
def tel_report(home: Path, run_command: Command) -> Callable[..., tuple[int, str, str]]:
    def made(*argv: str) -> tuple[int, str, str]:
        return run_command(report.parser(), report.work, "--workspace", str(home), *argv)

    return made


def test_the_table_and_the_last_line(tel_report: Command, home: Path) -> None:
    code, said, err = tel_report()
    lines = said.splitlines()
    assert (code, err) == (0, "")
    assert max(map(len, lines[:-1])) <= 110
    row = next(line for line in lines if "lora-Q4_K_M" in line)
    assert re.split(r"\s{2,}", row) == [
        "oranbench",
        "lora-Q4_K_M",
        "300",
        "60.0 [54.4-65.4]",
        "59.7 [54.0-65.1]",
        "-20.0",
        "4.0",
        "41.0 / 2.5",
        "10.0 / 16.0",
    ]
    assert "    chance 25.0%, best trivial baseline options only 43.3%" in lines
    assert lines[-1] == (
        f"report in {home / 'reports'}; smallest variant whose Pass@1 interval overlaps that of "
        "lora-F16 in all 2 categories: lora-Q8_0, 7.0 MB"
    )
    assert sorted(file.name for file in (home / "reports").iterdir()) == [
        "report.html",
        "report.json",
        "report.md",
    ]


def test_bare_backbones_come_first_and_large_before_small(home: Path) -> None:
    made = findings.collect(Workspace(home), "tel-nano")
    assert [section.category for section in made.sections] == ["oranbench", "teletables"]
    assert findings.variants(made) == ("base-F16", "lora-F16", "lora-Q8_0", "lora-Q4_K_M")
    assert [row.summary.variant.name for row in made.sections[0].rows] == [
        *("base-F16", "lora-F16", "lora-Q8_0", "lora-Q4_K_M")
    ]


def test_disk_is_one_backbone_and_all_adapters_against_merged_models(home: Path) -> None:
    found = {made.quant: made for made in findings.collect(Workspace(home), "tel-nano").footprints}
    assert list(found) == ["F16", "Q8_0", "Q4_K_M"]
    small = found["Q4_K_M"]
    assert (small.categories, small.backbone, small.adapters) == (2, 2_500_000, 3_000_000)
    assert (small.together, small.merged) == (5_500_000, 5_000_000)


def test_json_is_the_last_line_and_the_file(tel_report: Command, home: Path) -> None:
    code, said, _ = tel_report("--json")
    document = json.loads(said.splitlines()[-1])
    assert code == 0
    assert document == json.loads((home / "reports" / "report.json").read_text())
    assert document["schema_version"] == 1
    assert document["reference"] == "lora-F16"
    assert document["smallest"] == {
        "variant": "lora-Q8_0", "bytes": 7_000_000, "categories": 2, "bare": []
    }  # fmt: skip
    first = document["categories"][0]
    assert first["best_baseline"]["name"] == "options only"
    assert first["chance"] == 0.25
    quantized = first["variants"][3]
    assert quantized["variant"]["name"] == "lora-Q4_K_M"
    assert quantized["points"] == pytest.approx(-20)
    assert quantized["disk_bytes"] == 4_000_000
    assert document["categories"][1]["chance"] is None
    assert document["settings"]["engine"] == "llama-cpp-python 0.3.36"
    assert document["settings"]["temperature"] == "0.7"
    assert document["settings"]["split teletables"] == "split of teletables"
    assert document["settings"]["backbone"] == "800000000000 or 250000000000 or 400000000000"
    assert "adapter" not in document["settings"]


def test_the_same_inputs_give_the_same_bytes(home: Path, tmp_path: Path) -> None:
    trained(home)
    made = findings.collect(Workspace(home), "tel-nano")
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        report.write(made, folder)
    for name in ("report.md", "report.json", "report.html"):
        one, two = ((folder / name).read_bytes() for folder in folders)
        assert one == two, name
        assert len(one) > 500


def test_the_report_goes_where_it_is_told(tel_report: Command, home: Path) -> None:
    code, said, _ = tel_report("--out", str(home / "a" / "b"))
    assert code == 0
    assert f"report in {home / 'a' / 'b'};" in said
    assert (home / "a" / "b" / "report.json").is_file()
    assert not (home / "reports").exists()


# Right answers of the adapter and of the best baseline among 300, and whether that is remarked.
AS_GOOD = (
    (240, 130, False),
    (240, 235, True),
    (240, 290, True),
    (240, 226, True),
    (240, 225, False),
)


@pytest.mark.parametrize(("right", "trivial", "remarked"), AS_GOOD)
def test_a_baseline_that_does_as_well_is_named(
    tmp_path: Path, right: int, trivial: int, remarked: bool
) -> None:
    put(tmp_path, summary("base-F16", right=60), summary("lora-F16", right=right))
    floor(tmp_path, trivial)
    found = [note for note in notes(tmp_path) if "trivial baseline does as well" in note]
    assert bool(found) == remarked
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
    put(tmp_path, summary(**changes))
    assert said in notes(tmp_path)
    put(tmp_path, summary(of=100, right=80))
    floor(tmp_path, 20)
    assert notes(tmp_path) == []


def generated(name: str, **changes: Any) -> Summary:
    """Return a result of the variant whose answers were read from texts."""
    made = summary(name, label_mass=None, majority_exact=None, **changes)
    return replace(made, variant=replace(made.variant, name=f"{name}-generate"))


def test_answers_read_from_texts_stand_beside_those_by_letters(
    tel_report: Command, home: Path
) -> None:
    put(home, generated("lora-F16", right=90, unparsed=20))
    code, said, _ = tel_report("--json")
    assert code == 0
    document = json.loads(said.splitlines()[-1])
    assert (document["reference"], document["smallest"]["variant"]) == ("lora-F16", "lora-Q8_0")
    made = {row["variant"]["name"]: row for row in document["categories"][0]["variants"]}
    assert made["lora-F16-generate"]["points"] == pytest.approx(-50)
    assert made["lora-F16-generate"]["label_mass"] is None
    assert "lora-F16-generate: 20 texts give no answer, counted as wrong" in notes(home)
    assert not any("on the labels" in note for note in notes(home))


@pytest.fixture
def both(home: Path) -> Path:
    """The two categories in ONNX too: all types are as good as F16, and int4 is quicker in one."""
    for category, right in (("oranbench", 239), ("teletables", 199)):
        put(
            home,
            summary("lora-fp32", category, right=right),
            summary("lora-int8", category, right=right),
            summary("lora-int4", category, right=right, milliseconds_p50=8.0),
        )
    put(home, summary("lora-int4", "teletables", right=199, milliseconds_p50=11.0))
    return home


def test_formats_stand_side_by_side(tel_report: Command, both: Path) -> None:
    code, said, err = tel_report("--json")
    assert (code, err) == (0, "")
    table = [re.split(r"\s{2,}", line) for line in said.splitlines() if line.startswith("oranb")]
    assert [cells[1:3] for cells in table] == [
        *(["base-F16", "GGUF"], ["lora-F16", "GGUF"], ["lora-Q8_0", "GGUF"]),
        *(["lora-Q4_K_M", "GGUF"], ["lora-fp32", "ONNX"], ["lora-int8", "ONNX"]),
        ["lora-int4", "ONNX"],
    ]
    assert "disk: backbone, of ONNX with data file and tokenizer, and adapter;" in (
        " ".join(said.split())
    )
    document = json.loads(said.splitlines()[-1])
    assert document["reference"] == "lora-F16"
    assert document["smallest"]["variant"] == "lora-int4"
    assert document["smallest"]["bytes"] == 6_000_000
    assert document["formats"] == [
        {
            "format": "gguf", "variant": "lora-Q8_0", "bytes": 7_000_000,
            "milliseconds": {"oranbench": 10.0, "teletables": 10.0},
        },
        {
            "format": "onnx", "variant": "lora-int4", "bytes": 6_000_000,
            "milliseconds": {"oranbench": 8.0, "teletables": 11.0},
        },
    ]  # fmt: skip
    assert document["settings"]["engine"] == "llama-cpp-python 0.3.36 or onnxruntime 1.31"
    sentences = (
        "the smallest variant of each format that overlaps lora-F16 so: lora-Q8_0 (GGUF), 7.0 MB, "
        "10.0 ms a question; lora-int4 (ONNX), 6.0 MB, 9.5 ms a question (p50, median over the "
        "categories)",
        "of these lora-int4 (ONNX) is the smallest and took the least time, in 1 of 2 categories; "
        "each was timed once, on the machine and under the load of its run, so a small difference "
        "in time may be chance",
    )
    page = read_page(both / "reports" / "report.html")
    markdown = (both / "reports" / "report.md").read_text()
    for sentence in sentences:
        assert sentence in said.splitlines()
        assert render.escaped(sentence) in markdown
        assert f"{sentence[0].upper()}{sentence[1:]}." in page.texts
    assert "circles are GGUF, squares are ONNX." in "".join(page.texts)
    assert any(text.startswith("ONNX") for text in page.texts)
    assert len(page.ids) == len(set(page.ids))


def test_one_format_says_nothing_of_formats(tel_report: Command, home: Path) -> None:
    _, said, _ = tel_report("--json")
    assert "GGUF" not in said.replace("(GGUF)", "")
    assert "each format" not in said
    assert [each["variant"] for each in json.loads(said.splitlines()[-1])["formats"]] == [
        "lora-Q8_0"
    ]
    assert "circles" not in (home / "reports" / "report.html").read_text()


def test_the_disk_of_onnx_has_the_tokenizer_once(tel_report: Command, both: Path) -> None:
    made = findings.collect(Workspace(both), "tel-nano")
    found = {each.quant: each for each in made.footprints}
    assert list(found) == ["F16", "Q8_0", "Q4_K_M", "fp32", "int8", "int4"]
    small = found["int4"]
    assert (small.format, small.backbone, small.tokenizer) == ("onnx", 3_000_000, TOKENIZER)
    assert (small.together, small.merged) == (6_000_000, 2 * 2_400_000 + TOKENIZER)
    assert "2 x 2.4 + 0.6 = 5.4" in tel_report()[1]
    assert "int4 (ONNX)" in [row[0] for row in render.footprint(made).rows]


@pytest.mark.parametrize(
    ("names", "reference"),
    [
        ("lora-fp32 lora-F16 base-F16", "lora-F16"),
        ("lora-Q8_0 lora-fp32 lora-int4", "lora-fp32"),
        ("lora-Q8_0 lora-int8 lora-int4 base-fp32", "lora-int8"),
        ("base-F16 base-int4", "base-F16"),
    ],
)
def test_the_reference_is_what_lost_least(tmp_path: Path, names: str, reference: str) -> None:
    put(tmp_path, *map(summary, names.split()))
    assert findings.collect(Workspace(tmp_path), "tel-nano").reference == reference


def test_a_format_that_lost_too_much_is_not_compared(tel_report: Command, home: Path) -> None:
    put(home, summary("lora-int4", right=100, milliseconds_p50=1.0))
    put(home, summary("lora-int4", "teletables", right=199, milliseconds_p50=1.0))
    _, said, _ = tel_report()
    assert (
        "no ONNX variant overlaps lora-F16 everywhere, so the formats are not compared"
        in said.splitlines()
    )
    assert "each format" not in said


def test_texts_are_not_timed_against_letters(home: Path) -> None:
    """An answer read from a text takes many times as long."""
    put(home, generated("lora-int4"), generated("lora-int4", category="teletables", right=199))
    made = findings.collect(Workspace(home), "tel-nano")
    assert [best.variant for best in made.formats] == ["lora-Q8_0"]
    assert "not compared" in " ".join(render.verdict(made))


def test_the_smallest_need_not_be_the_quickest(tmp_path: Path) -> None:
    put(tmp_path, summary("lora-F16"), summary("lora-fp32", milliseconds_p50=4.0))
    said = render.verdict(findings.collect(Workspace(tmp_path), "tel-nano"))[-1]
    assert said.startswith(
        "of these lora-F16 (GGUF) is the smallest and lora-fp32 (ONNX) took the least time; each"
    )


def test_equal_sizes_and_times_have_no_winner(tmp_path: Path) -> None:
    one, other = summary("lora-F16"), summary("lora-fp32")
    same = replace(other.variant, backbone_bytes=one.variant.backbone_bytes)
    put(tmp_path, one, replace(other, variant=same))
    said = render.verdict(findings.collect(Workspace(tmp_path), "tel-nano"))
    assert said[-1].startswith("of these they are of one size and they took the same time; ")


def test_the_points_of_formats_differ_in_shape(both: Path) -> None:
    pytest.importorskip("matplotlib")
    made = findings.collect(Workspace(both), "tel-nano")
    looks = [plots._mark(made, name) for name in findings.variants(made)]
    assert [look["marker"] for look in looks] == [*"oooo", *"sss"]
    # A type's own colour, base and adapter alike.
    assert len({look["color"] for look in looks}) == 6
    long = summary("lora-int4", category="oranbench")
    name = "lora-dynamic-int8-generate"
    put(both, replace(long, variant=replace(long.variant, name=name, quant="dynamic-int8")))
    made = findings.collect(Workspace(both), "tel-nano")
    assert all(name in plot.svg for plot in plots.plots(made)[:3])


def test_the_reference_is_not_read_from_texts(tmp_path: Path) -> None:
    put(tmp_path, generated("lora-Q8_0"), summary("lora-Q8_0"))
    made = findings.collect(Workspace(tmp_path), "tel-nano")
    assert (made.reference, made.smallest.variant) == ("lora-Q8_0", "lora-Q8_0")


def test_other_questions_are_not_compared(tmp_path: Path) -> None:
    put(tmp_path, summary("lora-F16"), summary("lora-Q8_0", split="another"))
    made = findings.collect(Workspace(tmp_path), "tel-nano")
    assert [row.points for row in made.sections[0].rows] == [0, None]
    assert made.smallest.variant == "lora-F16"
    assert "lora-Q8_0: scored on other questions, not compared" in notes(tmp_path)


def test_baselines_of_other_questions_are_left_out(tmp_path: Path) -> None:
    put(tmp_path, summary())
    floor(tmp_path, 299, split="another")
    made = findings.collect(Workspace(tmp_path), "tel-nano")
    assert made.sections[0].baselines is None
    assert notes(tmp_path) == [
        "the trivial baselines on file are about other questions; run tel-eval --baselines"
    ]


def test_a_variant_that_misses_a_category_is_not_the_smallest(home: Path) -> None:
    put(home, summary("lora-tiny"))
    assert findings.collect(Workspace(home), "tel-nano").smallest.variant == "lora-Q8_0"
    put(home, summary("lora-tiny", "teletables", right=200))
    assert findings.collect(Workspace(home), "tel-nano").smallest.variant == "lora-tiny"


def test_a_bare_backbone_that_does_as_well_is_told(tmp_path: Path) -> None:
    put(tmp_path, summary("base-F16", right=239), summary("lora-F16"), summary("lora-Q8_0"))
    made = findings.collect(Workspace(tmp_path), "tel-nano")
    assert (made.smallest.variant, made.smallest.bare) == ("lora-Q8_0", ("base-F16",))
    assert "do not show that the adapters help" in render.verdict(made)[-1]


@pytest.mark.parametrize(
    ("names", "reference"),
    [
        (("base-F16", "lora-F16", "lora-Q8_0"), "lora-F16"),
        (("base-F16", "lora-Q8_0", "lora-Q4_K_M"), "lora-Q8_0"),
        (("base-F16", "base-Q8_0"), "base-F16"),
    ],
)
def test_without_lora_f16_the_largest_is_the_reference(
    tmp_path: Path, names: tuple[str, ...], reference: str
) -> None:
    put(tmp_path, *map(summary, names))
    made = findings.collect(Workspace(tmp_path), "tel-nano")
    assert made.reference == reference
    assert "points: Pass@1 less that of " + reference in render.units(made)
    assert bool(made.footprints) == any("lora" in name for name in names)
    render.text(made)


def test_memory_that_cannot_be_read_is_a_dash(tmp_path: Path) -> None:
    put(tmp_path, summary(memory_anonymous=None, memory_file=None))
    assert "- / -" in render.text(findings.collect(Workspace(tmp_path), "tel-nano"))


def trained(home: Path, text: str | None = None) -> None:
    path = Workspace(home).adapter("tel-nano", "oranbench") / "training.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    losses = [1.4, 0.9, float("nan")]
    curve = [
        {"step": at * 10, "epoch": at, "loss": loss, "validation_loss": loss, "other": "x"}
        for at, loss in enumerate(losses)
    ]
    curve.append({"step": 40, "loss": None, "validation_loss": 0.5})
    document = {"seconds": 127.4, "parameters": 390_000, "config": {"rank": 16}, "curve": curve}
    path.write_text(json.dumps(document) if text is None else text)


def test_training_is_shown_when_it_is_known(home: Path) -> None:
    assert len(plots.plots(findings.collect(Workspace(home), "tel-nano"))) == 3
    trained(home)
    made = findings.collect(Workspace(home), "tel-nano")
    assert made.trainings[0].curve[2] == {"step": 20, "epoch": 2}
    assert made.trainings[0].curve[3] == {"step": 40, "validation_loss": 0.5}
    assert "| oranbench | rank 16 | 127 | 390,000 |" in render.markdown(made, figures=True)
    json.loads(json.dumps(findings.document(made), allow_nan=False))
    assert [plot.title for plot in plots.plots(made)][-1] == "Training"


def test_a_record_of_training_without_anything_known(home: Path) -> None:
    trained(home, "{}")
    made = findings.collect(Workspace(home), "tel-nano")
    assert "| oranbench | - | - | - |" in render.markdown(made, figures=True)
    assert len(plots.plots(made)) == 3


class Reader(HTMLParser):
    """Checks that every element is closed in order and collects what could load something."""

    VOID = frozenset({"meta"})

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
    tel_report()
    path = home / "reports" / "report.html"
    page, text = read_page(path), path.read_text()
    assert page.open == []
    assert page.tags.count("svg") == 4
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
    assert "60.0 [54.4-65.4]" in page.texts


def test_names_are_text_and_never_markup(tmp_path: Path, run_command: Command) -> None:
    evil = summary(dataset=EVIL, made_with={EVIL: EVIL})
    path = Workspace(tmp_path).results("tel-nano", "lora-F16", "oranbench")
    records.write_summary(path, replace(evil, variant=replace(evil.variant, name=EVIL)))
    records.write_summary(path.with_name("b.jsonl"), replace(evil, category=EVIL))
    code, said, err = run_command(report.parser(), report.work, "--workspace", str(tmp_path))
    assert (code, err) == (0, "")
    assert EVIL in said
    page = read_page(tmp_path / "reports" / "report.html")
    assert page.open == []
    assert "script" not in page.tags
    assert page.texts.count(EVIL) >= 4
    markdown = (tmp_path / "reports" / "report.md").read_text()
    assert "<script" not in markdown.replace(r"\<script", "")
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} <= {8, 11, 4}


def test_markdown_tables_have_equal_rows(tel_report: Command, home: Path) -> None:
    tel_report()
    markdown = (home / "reports" / "report.md").read_text()
    blocks = [block for block in markdown.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 5
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "| oranbench | lora-F16 | 300 | 80.0 \\[75.1-84.1\\]" in markdown
    assert "[report.html](report.html)" in markdown


def test_without_matplotlib_all_but_the_page_is_made(
    tel_report: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tel_report()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, said, err = tel_report("--quiet")
    assert code == 0
    assert err == (
        "tel-report: no report.html: matplotlib is not installed; "
        "run: pip install 'tel-edge[report]'\n"
    )
    assert "lora-Q8_0, 7.0 MB" in said.splitlines()[-1]
    # The page of the run before is gone too, since nothing keeps it in step with the table.
    assert sorted(file.name for file in (home / "reports").iterdir()) == [
        "report.json",
        "report.md",
    ]
    assert "report.html" not in (home / "reports" / "report.md").read_text()


def test_the_plots_leave_matplotlib_as_it_was(home: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    # A plain `dict` would ask for the backend, which imports pyplot.
    before, known = matplotlib.rcParams.copy(), "matplotlib.pyplot" in sys.modules
    plots.plots(findings.collect(Workspace(home), "tel-nano"))
    assert matplotlib.rcParams.copy() == before
    assert ("matplotlib.pyplot" in sys.modules) == known


# What is broken first (a file and its new text), the arguments, exit code, and what is said.
SUMMARY = "results/tel-nano/lora-F16/oranbench.json"
TRAINING = "adapters/tel-nano/oranbench/training.json"
LINES: tuple[tuple[str, str, str, int, str], ...] = (
    ("", "", "", 0, ""),
    ("", "", "--backbone nothing", 2, "no backbone 'nothing': it is neither a folder nor one of"),
    ("", "", "--backbone qwen3-0.6b", 2, "no results; make some with: tel-eval --backbone qwen3"),
    ("", "", "--backbone ..", 2, "no results; make some with: tel-eval"),
    ("", "", "--category oranbench", 2, "unrecognized arguments: --category oranbench"),
    ("", "", "--out", 2, "argument --out: expected one argument"),
    ("", "", "--out FILE", 2, "a file is in the way; choose another folder with --out"),
    (SUMMARY, "{", "", 2, f"{SUMMARY}: no summary"),
    (SUMMARY, '{"schema_version": 9}', "", 2, "schema_version 9"),
    ("results/baselines/oranbench.json", "[]", "", 2, "oranbench.json: no baselines"),
    (TRAINING, "[]", "", 2, "training.json: not the record of a training"),
    (TRAINING, '{"curve": [{"step": "x"}]}', "", 2, "train again: tel-train --backbone tel-nano"),
)


@pytest.mark.parametrize(("broken", "text", "line", "code", "said"), LINES)
def test_command_lines(
    tel_report: Command, home: Path, broken: str, text: str, line: str, code: int, said: str
) -> None:
    (home / "file").touch()
    if broken:
        (home / broken).parent.mkdir(parents=True, exist_ok=True)
        (home / broken).write_text(text)
    argv = [str(home / "file") if part == "FILE" else part for part in line.split()]
    found, out, err = tel_report(*argv)
    assert found == code, err
    assert said in err
    assert len(err.splitlines()) <= 2
    assert bool(out) == (code == 0)
    assert (home / "reports").exists() == (code == 0)


def test_results_of_a_folder_backbone_need_no_folder(tmp_path: Path, run_command: Command) -> None:
    put(tmp_path, summary(backbone="my-model"))
    argv = ("--workspace", str(tmp_path), "--backbone", "my-model")
    code, said, _ = run_command(report.parser(), report.work, *argv)
    assert code == 0
    assert "lora-F16" in said
