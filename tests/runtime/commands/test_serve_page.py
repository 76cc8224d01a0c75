"""The page of `tel-serve` in a real browser: asks, shows, stays text, and says who is gone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_engine as fake
import for_browser
import pytest
from test_serve import asked, children, started

pytestmark = for_browser.NEEDED
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 800}
HOSTILE = "<img src=x onerror='window.owned = 1'> </textarea><script>window.owned = 1</script>"
QUIET = "Failed to load resource"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with for_browser.launched(tmp_path_factory.mktemp("home")) as launched:
        yield launched


def service(folder: Path, *argv: str) -> tuple[subprocess.Popen[str], str]:
    fake.bundle(folder, adapters=("3gpp_tsg", "oranbench"))
    return started(folder, *argv)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    process, where = service(tmp_path_factory.mktemp("service"))
    yield where
    process.terminate()
    process.communicate(timeout=20)


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open the page; a word on the console or a request to elsewhere fails the test."""
    said: list[str] = []
    contexts = []

    def open_page(
        address: str, clock: bool = False, ready: str = "#model option", **options: Any
    ) -> Any:
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        contexts.append(context)
        page = context.new_page()
        if clock:
            page.clock.install()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: said.append(f"request: {request.url}"))
        page.goto(address)
        page.wait_for_selector(ready, state="attached")
        # The browser itself tells of replies that are errors.
        own.extend((f"request: {address}/", f"console: {QUIET}"))
        return page

    own: list[str] = []
    yield open_page
    for context in contexts:
        context.close()
    assert [one for one in said if not one.startswith(tuple(own))] == []


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("TEL_ARTIFACTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def ask(page: Any, text: str, choices: str = "A1\nE2\nO1", model: str = "oranbench") -> None:
    page.select_option("#model", model)
    page.fill("#question", text)
    if model == "oranbench":
        page.fill("#choices", choices)
    page.click("button.main")


def facts(page: Any, place: str) -> dict[str, str]:
    rows = page.locator(f"{place} div")
    names, values = rows.locator("dt").all_inner_texts(), rows.locator("dd").all_inner_texts()
    return dict(zip(names, values, strict=True))


def test_it_shows_what_answers_and_the_load(
    address: str, visit: Callable[..., Any], artifacts: Path
) -> None:
    page = visit(address)
    assert page.inner_text("#state").startswith("Ready")
    told = facts(page, "#bundle")
    assert (told["File"], told["Engine"], told["Backbone"]) == (
        "nano-Q4_K_M.gguf", "fake 1", "tel-nano",
    )  # fmt: skip
    assert len(told["Adapter oranbench"]) == len(told["Bundle"]) == 12
    before = facts(page, "#load")
    assert {"Questions waiting", "Tokens waiting", "Flows", "Questions refused", "Engine restarts",
            "Tokens a second"} <= set(before)  # fmt: skip
    # No router, so the first with questions of their own choices.
    assert page.input_value("#model") == "oranbench"
    asked(address, "gold 1")
    count = int(before["Questions answered"]) + 1
    page.wait_for_selector(f"#load div:has-text('Questions answered') dd:text-is('{count}')")
    page.screenshot(path=artifacts / "serve.png", full_page=True)


def test_an_answer_by_the_keyboard_alone(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "model"
    for text in ("Which one? gold 1", "A1\nE2\n\nO1"):
        page.keyboard.press("Tab")
        page.keyboard.type(text)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#answer li")
    assert page.inner_text("#answer h3") == "B: E2"
    assert page.locator("#answer .words").all_inner_texts() == ["A1", "E2", "O1"]
    shares = [float(text.rstrip(" %")) for text in page.locator("#answer .value").all_inner_texts()]
    assert shares == [15, 70, 15]
    widths = page.evaluate(
        """() => [...document.querySelectorAll("#answer .fill")].map((each) =>
          each.getBoundingClientRect().width / each.parentElement.getBoundingClientRect().width)"""
    )
    assert sum(widths) == pytest.approx(1, abs=0.02)
    assert widths[1] == pytest.approx(0.7, abs=0.02)
    told = facts(page, "#answer dl")
    assert told["Adapter"].startswith("oranbench ")
    assert told["Questions in its decode"] == "1"
    assert told["Engine"].endswith(" ms")
    assert told["Waited"].endswith(" ms")
    assert page.get_attribute("#answer", "aria-live") == "polite"
    # What asked has the focus still.
    assert page.evaluate("document.activeElement.id") == "choices"


def test_a_category_with_answers_of_its_own(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address)
    ask(page, "gold 3", model="3gpp_tsg")
    page.wait_for_selector("#answer li:nth-child(16)")
    assert page.inner_text("#answer .best .words") == "CT6"
    assert not page.locator("#choices").is_visible()
    page.click("#example")
    assert page.input_value("#model") == "oranbench"
    assert page.locator("#choices").is_visible()


def test_hostile_text_is_shown_as_text(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address)
    choices = f"{HOSTILE}\n<b>bold</b>"
    ask(page, f"{HOSTILE} gold 0", choices)
    page.wait_for_selector("#answer li")
    assert page.inner_text("#answer h3") == f"A: {HOSTILE}"
    assert page.locator("#answer .words").all_inner_texts() == choices.split("\n")
    body = f'{{"error": {{"message": "{HOSTILE}", "code": "{HOSTILE}"}}}}'
    page.route("**/v1/answer", lambda route: route.fulfill(status=400, body=body))
    page.click("button.main")
    page.wait_for_selector(".error")
    assert HOSTILE in page.inner_text(".error")
    assert page.locator("main :is(img, script, b)").count() == 0
    assert page.evaluate("window.owned") is None


def test_errors_are_the_services_own_words(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address)
    ask(page, "Which?", "alone")
    page.wait_for_selector(".error")
    assert "1 choices; 2 to 16 can be answered (400 invalid_request)" in page.inner_text(".error")
    assert page.inner_text("button.main") == "Ask"


def test_a_key_is_asked_for_and_sent(tmp_path: Path, visit: Callable[..., Any]) -> None:
    key, file = "0123456789abcdef", tmp_path / "keys"
    file.write_text(f"dashboard:{key}\n")
    file.chmod(0o600)
    process, address = service(tmp_path / "bundle", "--keys", str(file))
    page = visit(address, ready="#state.away")
    assert page.inner_text("#state").startswith("No figures: no known key")
    # The field for it was opened.
    page.fill("#key", key)
    page.keyboard.press("Tab")
    page.wait_for_selector("#state.ready")
    page.wait_for_selector("#model option", state="attached")
    ask(page, "gold 1")
    page.wait_for_selector("#answer li")
    process.terminate()
    process.communicate(timeout=20)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_a_service_that_is_gone_is_said_to_be(tmp_path: Path, visit: Callable[..., Any]) -> None:
    process, address = service(tmp_path / "bundle")
    page = visit(address)
    [engine] = children(process.pid)
    # One that starts again is no service that is gone.
    os.kill(engine, 9)
    page.wait_for_selector("#load div:has-text('Engine restarts') dd:text-is('1')")
    process.terminate()
    process.communicate(timeout=20)
    page.wait_for_selector("#state.away")
    assert page.inner_text("#state").startswith("Not reachable: asked again every 2 s; these")
    ask(page, "gold 1")
    page.wait_for_selector(".error")
    assert "The service cannot be reached." in page.inner_text(".error")
    again, there = started(tmp_path / "bundle", "--port", address.rsplit(":", 1)[1])
    assert there == address
    page.wait_for_selector("#state.ready")
    again.terminate()
    again.communicate(timeout=20)


def test_a_tab_that_nobody_sees_asks_nothing(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address, clock=True)
    hide = """(to) => {
      Object.defineProperty(document, "visibilityState", { value: to, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    held: list[Any] = []

    def hold(route: Any) -> None:
        held.append(route)

    page.route("**/v1/status", hold)
    with page.expect_request("**/v1/status"):
        page.clock.run_for(2_000)
    page.evaluate(hide, "hidden")
    # What had begun ends, and begins nothing.
    with page.expect_response("**/v1/status"):
        held[0].continue_()
    for _ in range(4):
        page.clock.run_for(2_500)
        page.wait_for_timeout(50)
    assert len(held) == 1
    page.unroute("**/v1/status")
    with page.expect_request("**/v1/status"):
        page.evaluate(hide, "visible")
    # And again later.
    page.wait_for_timeout(100)
    with page.expect_request("**/v1/status"):
        page.clock.run_for(2_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_shows_all_of_it_and_it_can_be_read(
    scheme: str, address: str, visit: Callable[..., Any], artifacts: Path
) -> None:
    page = visit(address, viewport=PHONE, color_scheme=scheme, has_touch=True)
    long = "The interface between the near-real-time RIC and an E2 node " * 3
    ask(page, "gold 1 " + "w" * 200, f"{long}\n{'x' * 200}\nO1")
    page.wait_for_selector("#answer li")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    found = page.evaluate(for_browser.CONTRAST)
    assert len(found) > 50
    assert found[0][0] >= 4.5, found[:5]
    page.screenshot(path=artifacts / f"serve-{scheme}.png", full_page=True)


def test_controls_have_names(address: str, visit: Callable[..., Any]) -> None:
    names = visit(address).evaluate(
        """() => [...document.querySelectorAll("select, input, textarea, button")].map((each) =>
          (each.labels?.length ? each.labels[0] : each).textContent.trim())"""
    )
    assert {"Category or model", "Question", "Choices", "Ask"} <= set(names)
    assert all(names)
