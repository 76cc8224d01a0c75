"""The report's page in a real browser: quiet, offline, readable on every screen and on paper."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import for_browser
import made_answers as made
import pytest

from tel_edge.eval.commands import report
from tel_edge.eval.scoring import records
from tel_edge.eval.scoring.records import Record
from tel_edge.runtime import cli
from tel_edge.runtime.questions.categories import WORKING_GROUPS
from tel_edge.runtime.workspace import Workspace

pytestmark = for_browser.NEEDED

HOSTILE = (
    "</script><script>window.owned = 1</script> ]]> <img src=x onerror='window.owned = 1'> "
    "<!-- <script> ${1} &lt;b&gt;"
)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
# Answers of lora-Q4_K_M that changed, of which 20 and 10 in 3gpp_tsg.
LOST, WON = 60, 40


def made_page(folder: Path) -> Path:
    """Let tel-report write a page with `LOST` and `WON` changes and one hostile question."""
    workspace, data = Workspace(folder / "home"), folder / "data"
    for category, choices, (lost, won) in (
        ("oranbench", 4, (LOST - 20, WON - 10)),
        ("3gpp_tsg", 16, (20, 10)),
    ):
        rows = [_row(category, at) for at in range(200 if choices == 4 else 50)]
        (data / category).mkdir(parents=True)
        (data / category / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        for name, answered in _answers(category, len(rows), choices, lost, won).items():
            path = workspace.results("tel-nano", name, category)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(map(records.line, answered)))
            records.write_summary(path, made.summary(answered, name, category, dataset="data"))
    out = folder / "report"
    argv = ["--workspace", str(workspace.root), "--dataset", str(data), "--out", str(out)]
    assert cli.run(report.parser(), report.work, [*argv, "--quiet"]) == 0
    return out / "report.html"


def _row(category: str, at: int) -> dict[str, Any]:
    if category == "3gpp_tsg":
        text = "The terminal reports the measured quality of the beam. " * 30
        return {"question": f"###TEXT:Paragraph {at}. {text}", "answer": WORKING_GROUPS[at % 16]}
    if at == 0:
        choices = ["<b>bold</b>", "]]>", "</script>", "&amp;"]
        return {"question": HOSTILE, "choices": choices, "answer": 0, "difficulty": "easy"}
    return {
        "question": f"Which O-RAN component terminates interface {at} towards the radio unit?",
        "choices": [
            "The distributed unit",
            "The near-real-time RIC",
            "The service management and orchestration framework, host of the non-real-time RIC",
            "The central unit's user plane",
        ],
        "answer": at % 4,
        "difficulty": ("easy", "medium", "hard")[at % 3],
    }


def _answers(
    category: str, count: int, choices: int, lost: int, won: int
) -> dict[str, list[Record]]:
    """Return lora-F16, lora-Q4_K_M that lost and won so many, and base-F16, always at A."""
    rows: dict[str, list[Record]] = {"lora-F16": [], "lora-Q4_K_M": [], "base-F16": []}
    for at in range(count):
        id, gold, other = f"{category}/{at}", at % choices, (at + 1) % choices
        before, after = (gold, other) if at < lost else (gold, gold)
        if lost <= at < lost + won:
            before, after = other, gold
        for name, pick, sure in (
            ("lora-F16", before, 0.55 + 0.4 * (at % 7) / 7),
            ("lora-Q4_K_M", after, 0.5 + 0.4 * (at % 5) / 5),
            ("base-F16", 0, 1.5 / choices),
        ):
            shares = [(1 - sure) / (choices - 1)] * choices
            shares[pick] = sure
            rows[name].append(made.record(id, gold, shares))
    return rows


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with for_browser.launched(tmp_path_factory.mktemp("home")) as launched:
        yield launched


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_page(tmp_path_factory.mktemp("page"))


@pytest.fixture
def visit(browser: Any, file: Path) -> Iterator[Callable[..., Any]]:
    """Open the page; whatever it says on the console or asks of the network fails the test."""
    said: list[str] = []
    contexts = []

    def open_page(hash: str = "", **options: Any) -> Any:
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: said.append(f"request: {request.url}"))
        page.goto(file.as_uri() + hash)
        said.remove(f"request: {file.as_uri()}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("TEL_ARTIFACTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def count(page: Any) -> int:
    found = re.match(r"([\d,]+) question", page.inner_text(".count"))
    return int(found[1].replace(",", "")) if found else 0


def kind(page: Any, name: str) -> None:
    page.locator(f".kinds input[value='{name}']").check(force=True)


def test_everything_is_there_and_nothing_is_asked_of_the_network(
    visit: Callable[..., Any], artifacts: Path
) -> None:
    page = visit(viewport=DESKTOP)
    assert page.locator("svg").count() >= 2
    assert page.locator("table").count() >= 1
    assert count(page) == LOST + WON
    assert page.locator(".card").count() == 25
    # All of it only where it is kept: it takes seconds.
    whole = "TEL_ARTIFACTS" in os.environ
    page.screenshot(path=artifacts / "desktop-light.png", full_page=whole)


def test_filters_narrow_what_is_shown(visit: Callable[..., Any]) -> None:
    page = visit(viewport=DESKTOP)
    kind(page, "lost")
    assert count(page) == LOST
    assert set(page.locator(".card .kind").all_inner_texts()) == {"right to wrong"}
    page.select_option("[name=category]", "oranbench")
    assert count(page) == LOST - 20
    page.select_option("[name=difficulty]", "hard")
    assert count(page) == sum(at % 3 == 2 for at in range(LOST - 20))
    page.fill("[name=words]", "INTERFACE 11")
    assert count(page) == 1
    page.fill("[name=words]", "no such words")
    assert page.inner_text(".count") == "No question matches."
    page.get_by_role("button", name="Clear").click()
    assert count(page) == LOST + WON
    page.select_option("[name=after]", "lora-F16")
    assert count(page) == 0
    # A category without difficulties offers none.
    page.select_option("[name=category]", "3gpp_tsg")
    assert not page.locator("[name=difficulty]").is_visible()


def test_the_largest_change_comes_first_and_pages_turn_by_keyboard(
    visit: Callable[..., Any],
) -> None:
    page = visit(viewport=DESKTOP)
    seen = []
    for _ in range(4):
        heads = page.locator(".card .head").all_inner_texts()
        seen += [float(re.search(r"([\d.]+) % of", head)[1]) for head in heads]  # type: ignore[index]
        page.get_by_role("button", name="Next").last.press("Enter")
    assert len(seen) == LOST + WON
    assert seen == sorted(seen, reverse=True)
    # On the last page "Next" keeps the focus and does nothing.
    assert page.inner_text(".pages >> nth=0").split("\n")[1] == "Page 4 of 4"
    assert page.evaluate("document.activeElement.textContent") == "Next"


def test_a_card_says_what_each_variant_answered(visit: Callable[..., Any]) -> None:
    page = visit("#questions?words=oranbench%2F11", viewport=DESKTOP)
    card = page.locator(".card")
    assert card.count() == 1
    assert card.locator(".option.gold").inner_text().startswith("D")
    assert "picked before" in card.locator(".option.gold").inner_text()
    assert "picked after" in card.locator(".option").first.inner_text()
    card.locator("summary").click()
    rows = card.locator("tbody tr").all_inner_texts()
    assert [row.split("\t")[:2] for row in rows] == [
        ["lora-F16", "D ✓"],
        ["lora-Q4_K_M", "A"],
        ["base-F16", "A"],
    ]


def test_hostile_text_is_shown_as_text(visit: Callable[..., Any]) -> None:
    page = visit("#questions?words=window.owned", viewport=DESKTOP)
    assert page.inner_text(".card .text") == HOSTILE
    assert page.inner_text(".option.gold .words").startswith("<b>bold</b>")
    assert page.locator(".card script, .card img, .card b").count() == 0
    assert page.evaluate("window.owned") is None


def test_a_link_restores_the_view(visit: Callable[..., Any]) -> None:
    page = visit(viewport=DESKTOP)
    assert "#" not in page.url
    page.select_option("[name=before]", "base-F16")
    kind(page, "won")
    page.fill("[name=words]", "unit?")
    page.get_by_role("button", name="Next").first.click()
    there, shown = count(page), page.locator(".card .place").all_inner_texts()
    hash = page.url.split("#")[1]
    again = visit("#" + hash, viewport=DESKTOP)
    assert count(again) == there > 25
    assert again.locator(".card .place").all_inner_texts() == shown
    assert again.input_value("[name=before]") == "base-F16"
    # One that was cut or made up is no error.
    visit("#questions?before=none&kind=__proto__&page=-3&category=x&constructor=1&page=x")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_shows_all_of_it(
    scheme: str, visit: Callable[..., Any], artifacts: Path
) -> None:
    page = visit(viewport=PHONE, color_scheme=scheme, device_scale_factor=2, has_touch=True)
    page.locator(".every summary").first.click()
    for hash in ("", "#questions?category=3gpp_tsg"):
        page.evaluate("hash => { location.hash = hash }", hash)
        page.wait_for_function(f"document.forms[0].category.value === '{hash[20:]}'")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.screenshot(path=artifacts / f"phone-{scheme}.png")


def test_both_colour_schemes_can_be_read(visit: Callable[..., Any], artifacts: Path) -> None:
    papers = []
    for scheme in ("light", "dark"):
        page = visit("#questions?kind=lost", viewport=DESKTOP, color_scheme=scheme)
        page.locator(".every summary").first.click()
        found = page.evaluate(for_browser.CONTRAST)
        assert len(found) > 300
        assert found[0][0] >= 4.5, found[:5]
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        if scheme == "dark":
            page.screenshot(path=artifacts / "desktop-dark.png")
    assert papers[0] != papers[1]


def test_paper_has_the_tables_and_not_the_browser(
    visit: Callable[..., Any], artifacts: Path
) -> None:
    page = visit(viewport=DESKTOP, color_scheme="dark")
    assert not page.locator(".on-paper").is_visible()
    page.emulate_media(media="print")
    assert page.locator(".on-paper").is_visible()
    assert not page.locator(".browser").is_visible()
    assert page.locator("table").first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    # A4 less the margins, in CSS pixels: nothing is cut off.
    page.set_viewport_size({"width": 718, "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    made_pdf = page.pdf(path=artifacts / "report.pdf", format="A4")
    assert made_pdf.startswith(b"%PDF-")
    assert made_pdf.count(b"/Type /Page\n") < 8


def test_without_scripts_the_page_says_so(visit: Callable[..., Any]) -> None:
    page = visit(viewport=DESKTOP, java_script_enabled=False)
    assert page.locator("noscript p").is_visible()
    assert not page.locator("form").is_visible()


def test_controls_have_names(visit: Callable[..., Any]) -> None:
    page = visit(viewport=DESKTOP)
    names = page.evaluate(
        """() => [...document.querySelectorAll("select, input, button, summary")].map((each) =>
          (each.labels?.length ? each.labels[0].firstChild : each).textContent.trim()
          || each.nextElementSibling?.textContent)"""
    )
    assert {"Before", "After", "Words", "right to wrong 60", "Next"} <= set(names)
    assert all(names)
