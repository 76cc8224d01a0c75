"""A study's page in a real browser: offline, and answers side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import for_browser
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import made_study as made

from tel_edge.eval.care.study import found, written
from tel_edge.runtime.workspace import Workspace

pytestmark = for_browser.NEEDED


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("study")
    truth = made.Truth((1.0, 0.4, -0.1, -0.3, -1.0), (4.0,) * 5)
    made.write(home / "studies" / "care", truth, prompts=24)
    report = found.collect(home / "studies" / "care", Workspace(home), None)
    written.write(report, home / "out")
    return home / "out" / "report.html"


@pytest.fixture(scope="module")
def page(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    said: list[str] = []
    with for_browser.launched(tmp_path_factory.mktemp("browser")) as browser:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.on("console", lambda one: said.append(one.text))
        page.on("pageerror", lambda one: said.append(str(one)))
        page.on("request", lambda one: said.append(f"request: {one.url}"))
        page.goto(file.as_uri())
        said.remove(f"request: {file.as_uri()}")
        yield page
        context.close()
    assert said == []


def test_answers_stand_side_by_side_and_filters_narrow_them(page: Any) -> None:
    assert page.locator("svg").count() == 5
    assert page.inner_text(".count") == "24 prompts"
    assert page.locator(".card").count() == 10
    names = page.locator(".card").first.locator(".name").all_inner_texts()
    assert names == ["system-00", "system-01"]
    page.locator(".kinds input[value='flipped']").check(force=True)
    few = page.locator(".card").count()
    assert 0 < few < 24
    assert "a flip, counted as a tie" in page.locator(".said-by").first.inner_text()
    page.get_by_role("button", name="Clear").click()
    page.fill("[name=words]", "term-7")
    assert page.inner_text(".count") == "1 prompt"
    page.get_by_role("button", name="Clear").click()


def test_a_telephone_shows_all_of_it_and_texts_can_be_read(page: Any) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(for_browser.CONTRAST)[0][0] >= 4.5
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
