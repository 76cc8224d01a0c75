"""The reference paper's tables and figures from made-up results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import made_answers
import pytest

from tel_edge.eval.findings import paper, published
from tel_edge.eval.reports import paper_plots, paper_tables
from tel_edge.eval.reports.tables import Table, tabled
from tel_edge.eval.scoring import records
from tel_edge.eval.scoring.records import Summary
from tel_edge.eval.statistics import share
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.workspace import Workspace

EVIL = "<b>a|$b$&_c</b>"
LLAMA = "llama-3.2-1b"


def summary(name: str, right: int, of: int, category: str = "oranbench", **changes: Any) -> Summary:
    """Return a result with so many right by Pass@1, one fewer by Maj@4."""
    made = made_answers.summary([], name, category, backbone=LLAMA)
    shares = {"pass1": share(right, of), "majority": share(right - 1, of)}
    return replace(made, questions=of, label_mass=0.9, **{**shares, **changes})


def put(home: Path, *made: Summary) -> None:
    for each in made:
        path = Workspace(home).results(each.backbone, each.variant.name, each.category, each.part)
        path.parent.mkdir(parents=True, exist_ok=True)
        records.write_summary(path, each)


def reference(right: int, of: int, called: str = "Llama-3.1-8B-Instruct", **more: Any) -> Summary:
    made = summary("reference-endpoint", right, of, backbone=called, **more)
    return replace(made, variant=replace(made.variant, format="endpoint"))


def swept(home: Path, rank: int, right: int, name: str = f"rank-{LLAMA}", **more: Any) -> None:
    path = home / "sweeps" / name / "rows" / f"rank-{rank}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {
        "error": None, "category": "3gpp_tsg", "adapter_bytes": rank * 2_800_000,
        "options": {"backbone": LLAMA, "rank": str(rank)}, "majority": asdict(share(right, 400)),
    }  # fmt: skip
    path.write_text(json.dumps(row | more))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """One category in full: 75 % seen, 60 % unseen, 40 % before, 70 % for the large model."""
    put(
        tmp_path,
        summary("base-F16", 120, 300),
        summary("lora-F16", 180, 300),
        summary("lora-Q8_0", 100, 300),
        summary("lora-F16", 675, 900, part="train"),
        reference(210, 300),
    )
    return tmp_path


def collect(home: Path, with_published: bool = True) -> paper.Paper:
    return paper.collect(Workspace(home), None, with_published)


def table(made: paper.Paper, start: str, **more: Any) -> Table:
    return next(t for title, t in paper_tables.tables(made, **more) if title.startswith(start))


def cells(made: Table, row: int = 0) -> dict[str, str]:
    return dict(zip(made.header, made.rows[row], strict=True))


def test_table_2_by_hand(home: Path) -> None:
    made = collect(home)
    (line,) = made.lines
    # Newcombe's interval from the Wilson limits [.7207, .7772] and [.5436, .6538].
    assert line.gap
    assert (line.gap.value, line.gap.low, line.gap.high) == pytest.approx(
        (0.15, 0.15 - (0.0293**2 + 0.0538**2) ** 0.5, 0.15 + (0.0272**2 + 0.0564**2) ** 0.5),
        abs=2e-4,
    )
    assert cells(table(made, "Table 2")) == {
        "backbone": LLAMA,
        "category": "oranbench",
        "n seen": "900",
        "n unseen": "300",
        "seen Pass@1 (95 %)": "75.0 [72.1-77.7]",
        "unseen Pass@1 (95 %)": "60.0 [54.4-65.4]",
        "gap (95 %)": "+15.0 [+8.9, +21.3]",
        "published seen": "75.78",
        "published unseen": "61.67",
        "published gap": "+14.11",
    }


def test_figures_1_and_2_as_a_table(home: Path) -> None:
    assert cells(table(collect(home), "Figures 1")) == {
        "backbone": LLAMA,
        "category": "oranbench",
        "large reference": "Llama-3.1-8B-Instruct",
        "Pass@1 before": "40.0 [34.6-45.6]",
        "Pass@1 after": "60.0 [54.4-65.4]",
        "Pass@1 reference": "70.0 [64.6-74.9]",
        "Maj@4 before": "39.7 [34.3-45.3]",
        "Maj@4 after": "59.7 [54.0-65.1]",
        "Maj@4 reference": "69.7 [64.2-74.6]",
    }


def test_without_published_nothing_is_said_of_the_paper(home: Path) -> None:
    swept(home, 4, 150)
    made = collect(home, with_published=False)
    shown = paper_tables.tables(made)
    plots = paper_plots.plots(made)
    text = repr(shown) + repr(paper_tables.notes(made)) + repr(plots)
    assert [title.partition(":")[0] for title, _ in shown] == [
        "Table 2", "Figures 1 and 2", "Figure 3"
    ]  # fmt: skip
    assert "published" not in text
    assert "61.67" not in text


def test_published_values_are_never_in_a_measured_column(home: Path) -> None:
    swept(home, 4, 150)
    made = collect(home)
    printed = {f"{value:.2f}" for p in published.TABLE_2 for value in (p.seen, p.unseen)}
    printed |= {f"{row.majority:.2f}" for row in published.FIGURE_3}
    for _, shown in paper_tables.tables(made):
        for column, *values in zip(shown.header, *shown.rows, strict=True):
            assert column.startswith("published") or not printed & set(values), column
    first, second, third = paper_plots.plots(made)
    assert "published, after" in first.svg
    assert "published" not in second.svg
    # Nor a mark without a name.
    assert second.svg == paper_plots.plots(collect(home, with_published=False))[1].svg
    assert f"published, {LLAMA}" in third.svg
    assert all("not measured here" in plot.caption for plot in (first, third))


@pytest.mark.parametrize(
    ("seen", "unseen", "said"),
    [(30, 30, "+0.0 ["), (29, 300, "n too small"), (300, 29, "n too small"), (0, 300, "-")],
)
def test_a_gap_needs_thirty_questions_a_part(
    tmp_path: Path, seen: int, unseen: int, said: str
) -> None:
    put(tmp_path, summary("lora-F16", unseen, unseen))
    if seen:
        put(tmp_path, summary("lora-F16", seen, seen, part="train"))
    made = collect(tmp_path)
    assert cells(table(made, "Table 2"))["gap (95 %)"].startswith(said)
    assert bool(made.lines[0].gap) == said.startswith("+")


def six(home: Path, without: Sequence[str] = ()) -> paper.Paper:
    """Unseen 10, 20, ... 60 % and seen 5 points more; what is without has no seen part."""
    for at, name in enumerate(CATEGORIES, start=1):
        put(home, summary("lora-F16", at * 10, 100, name))
        if name not in without:
            put(home, summary("lora-F16", at * 10 + 5, 100, name, part="train"))
    return collect(home)


def test_means_are_plain_and_of_all_categories_only(tmp_path: Path) -> None:
    shown = table(six(tmp_path), "Table 2")
    assert len(shown.rows) == 7
    assert shown.rows[-1] == (
        LLAMA, "plain mean of all 6", "", "", "40.0", "35.0", "+5.0", "68.23", "56.48", "+11.76"
    )  # fmt: skip
    figures = table(collect(tmp_path), "Figures 1")
    assert figures.rows[-1] == (LLAMA, "plain mean of all 6", "-", "35.0", "-", "34.0")
    (tmp_path / "results" / LLAMA / "lora-F16" / "teletables.json").unlink()
    assert len(table(collect(tmp_path), "Figures 1").rows) == 5
    shown = table(collect(tmp_path), "Table 2")
    assert shown.rows[-1][4:7] == ("40.0", "-", "-")


def test_a_missing_seen_part_leaves_its_mean_open(tmp_path: Path) -> None:
    shown = table(six(tmp_path, without=["teleqna"]), "Table 2")
    assert shown.rows[0][2:7] == ("-", "100", "-", "10.0 [5.5-17.4]", "-")
    assert shown.rows[-1][4:7] == ("-", "35.0", "-")


def test_questions_give_table_1_and_mark_what_is_capped(home: Path) -> None:
    whole = {"oranbench": (1000, 300, 300)}
    made = collect(home)
    assert table(made, "Table 1", questions=whole).rows == (
        ("ORANBench", "1,600", "1,000", "300", "300"),
    )
    row = cells(table(made, "Table 2", questions=whole))
    assert (row["n seen"], row["n unseen"]) == ("900 of 1,000", "300")
    assert any("scored of all" in note for note in paper_tables.notes(made, whole))
    assert not any("scored of all" in note for note in paper_tables.notes(made))
    put(home, summary("lora-F16", 180, 300, too_long=2))
    assert cells(table(collect(home), "Table 2", questions=whole))["n unseen"] == "298 of 300"


def test_empty_tables_and_figures_are_left_out(tmp_path: Path) -> None:
    assert paper_tables.tables(collect(tmp_path)) == ()
    assert paper_plots.plots(collect(tmp_path)) == ()
    put(tmp_path, summary("base-F16", 120, 300))
    assert [line.after for line in collect(tmp_path).lines] == [None]
    assert paper_tables.tables(collect(tmp_path, with_published=False)) == ()
    put(tmp_path, summary("lora-F16", 120, 300))
    made = collect(tmp_path, with_published=False)
    assert [title for title, _ in paper_tables.tables(made)] == [
        "Figures 1 and 2: before and after"
    ]


def test_the_bare_backbone_is_of_the_adapted_ones_type(tmp_path: Path) -> None:
    put(tmp_path, summary("base-F16", 120, 300), summary("lora-Q8_0", 180, 300))
    (line,) = collect(tmp_path).lines
    assert line.before
    assert line.after
    assert (line.before.variant.name, line.after.variant.name) == ("base-F16", "lora-Q8_0")
    put(tmp_path, summary("base-Q8_0", 110, 300))
    (line,) = collect(tmp_path).lines
    assert line.before
    assert line.before.variant.name == "base-Q8_0"


def test_results_of_another_split_are_left_out_with_a_note(home: Path) -> None:
    put(
        home,
        summary("lora-F16", 890, 900, part="train", split="another"),
        reference(299, 300, split="another"),
    )
    made = collect(home)
    assert (made.lines[0].seen, made.lines[0].gap) == (None, None)
    assert made.reference(made.lines[0]) is None
    (note,) = made.notes
    assert note == (
        f"{LLAMA}, oranbench: lora-F16 on the seen part was scored on another data set or split "
        "than lora-F16 and is left out"
    )


@pytest.mark.parametrize(
    ("called", "known"),
    [
        ("Meta-Llama-3.1-8B-Instruct", True),
        ("meta-llama_llama-3-1-8b-instruct-fp8", True),
        (LLAMA, True),
        ("Qwen3-8B", False),
    ],
)
def test_whose_reference_a_large_model_is(tmp_path: Path, called: str, known: bool) -> None:
    put(tmp_path, summary("lora-F16", 180, 300), reference(210, 300, called))
    made = collect(tmp_path)
    assert [line.backbone for line in made.lines] == [LLAMA]
    assert bool(made.reference(made.lines[0])) == known
    assert bool(made.notes) == (not known)


def test_a_large_model_is_told_by_its_format_too(tmp_path: Path) -> None:
    made = reference(210, 300, LLAMA)
    put(tmp_path, replace(made, variant=replace(made.variant, name="base-bf16", format="hf")))
    assert (collect(tmp_path).lines, len(collect(tmp_path).references)) == ((), 1)


def test_ranks_beside_the_published_ones(home: Path) -> None:
    swept(home, 16, 200)
    swept(home, 64, 210)
    swept(home, 8, 390, error="out of memory")
    swept(home, 32, 390, category="teleqna")
    swept(home, 2, 390, name="modules")
    shown = table(collect(home), "Figure 3")
    assert shown.header[-2:] == ("published Maj@4", "published MB (2^20)")
    assert shown.rows == (
        (LLAMA, "4", "-", "-", "-", "34.25", "-"),
        (LLAMA, "8", "-", "-", "-", "41.75", "-"),
        (LLAMA, "16", "400", "44.8", "50.0 [45.1-54.9]", "40.75", "43.03"),
        (LLAMA, "32", "-", "-", "-", "41.75", "86.03"),
        (LLAMA, "64", "400", "179", "52.5 [47.6-57.3]", "-", "-"),
    )
    (path,) = (home / "sweeps" / f"rank-{LLAMA}" / "rows").glob("rank-16.json")
    path.write_text("{}")
    with pytest.raises(InputError, match=r"rank-16\.json: no row of a rank sweep"):
        collect(home)


def test_the_ranks_of_a_backbone_that_the_paper_has_not(tmp_path: Path) -> None:
    """A folder's backbone stands with its path in the sweep's rows."""
    put(tmp_path, summary("lora-F16", 180, 300, backbone="own"))
    swept(tmp_path, 4, 200, name="rank", options={"backbone": "/models/own", "rank": "4"})
    made = collect(tmp_path)
    assert [(p.rank, p.adapter_bytes, p.published) for p in made.ranks["own"]] == [
        (4, 11_200_000, None)
    ]
    assert made.lines[0].published is None


def test_published_sizes_are_those_of_llama() -> None:
    """Rank 16 on seven projections of 16 layers, in float32, without the file's header."""
    query, key, mlp = 2048 + 2048, 2048 + 512, 2048 + 8192
    weights = 16 * 16 * (2 * query + 2 * key + 3 * mlp)
    by = {row.rank: row for row in published.FIGURE_3}
    assert published.rank_bytes(by[16]) == pytest.approx(4 * weights, rel=1e-3)
    assert published.rank_bytes(by[32]) == pytest.approx(8 * weights, rel=1e-3)
    assert published.rank_bytes(by[4]) == pytest.approx(weights, rel=1e-3)


def test_every_cell_of_the_published_table_is_there() -> None:
    found = {(row.backbone, row.category) for row in published.TABLE_2}
    assert len(published.TABLE_2) == 18
    assert found == {(b, c) for b, _ in found for c in CATEGORIES}
    low = published.pair("qwen3-0.6b", "srsranbench")
    assert low
    assert low.gap == pytest.approx(-1.94)


def test_figures_are_the_same_bytes_and_whole(home: Path) -> None:
    for rank, right in ((4, 150), (8, 160), (16, 170)):
        swept(home, rank, right)
    one, two = (paper_plots.plots(collect(home)) for _ in range(2))
    assert one == two
    ids: list[str] = []
    for plot in one:
        root = ElementTree.fromstring(plot.svg)
        ids += [found for part in root.iter() if (found := part.get("id"))]
        assert "#010203" not in plot.svg
    assert len(ids) == len(set(ids))
    first, second, third = one
    assert "meta-llama/Llama-3.1-8B-Instruct" in first.svg
    assert "Maj@4, %" in second.svg
    assert [f"r {rank}" in third.svg for rank in (4, 8, 16, 32)] == [True, True, True, False]


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    put(tmp_path, summary("lora-F16", 180, 300))
    folder = tmp_path / "results" / LLAMA / "lora-F16"
    made = json.loads((folder / "oranbench.json").read_text())
    (folder / "x.json").write_text(json.dumps(made | {"backbone": EVIL, "category": EVIL}))
    (line,) = [line for line in collect(tmp_path).lines if line.backbone == EVIL]
    assert line.category == EVIL
    shown = tabled(table(collect(tmp_path), "Figures 1"))
    assert "<b>" not in shown.replace("\\<b\\>", "")
    assert "a|$b$" not in shown
    for plot in paper_plots.plots(collect(tmp_path)):
        texts = "".join(ElementTree.fromstring(plot.svg).itertext())
        assert texts.count(EVIL) == 2
