"""`tel-run` on a device: a change of power is said once, the first start measures, or not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_engine as fake
import for_run
import pytest
from for_run import ASK, jsonl

from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.commands import run
from tel_edge.runtime.measuring import first

home, tel_run = for_run.home, for_run.tel_run
SAID = "warning: the device's power is now 15W"


class Changing:
    """A `Watch` whose power changes once."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def change(self) -> str | None:
        if self.asked.is_set():
            return None
        self.asked.set()
        return SAID


def test_a_change_of_power_is_said_and_answers_go_on(
    tel_run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Changing()
    monkeypatch.setattr(run, "Watch", lambda: watch)

    class Slow(fake.FakeOpener):
        def __call__(self, *given: Any) -> Any:
            assert watch.asked.wait(20)
            return super().__call__(*given)

    lines = jsonl(*[{**ASK, "category": "oranbench"}] * 3)
    code, out, err = tel_run("--quiet", lines=lines, opener=Slow())
    assert (code, len(out.splitlines())) == (0, 3)
    assert err == f"{SAID}\n"


@pytest.mark.parametrize(
    ("argv", "arm", "measured"),
    [([], True, True), (["--no-tune"], True, False), ([], False, False)],
)
def test_the_first_start_measures_unless_it_must_not(
    argv: list[str], arm: bool, measured: bool, home: Path, run_command: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[Path] = []
    monkeypatch.setattr(run.System, "arm", property(lambda _: arm))
    monkeypatch.setattr(first, "start", lambda folder, *_: asked.append(folder))
    monkeypatch.setattr(bundle, "native", fake.FakeOpener())
    question = ["--category", "oranbench", "--choice", "a", "--choice", "b", "gold 1"]
    code, _, _ = run_command(run.parser(), run.work, "--workspace", str(home), *argv, *question)
    assert code == 0
    assert asked == ([home / "bundles" / "tel-nano"] if measured else [])
