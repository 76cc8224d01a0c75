"""What systemd is told, by a socket that stands for it, and when the watchdog is fed."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_systemd import Manager

from tel_edge.runtime.serving import notify
from tel_edge.runtime.serving.notify import Health
from tel_edge.runtime.serving.problems import STARTING, Failed


@pytest.fixture(params=["file", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    place = str(tmp_path / "notify") if request.param == "file" else f"@tel-edge-{os.getpid()}"
    made = Manager(place)
    monkeypatch.setenv("NOTIFY_SOCKET", place)
    yield made
    made.close()


def test_lines_come_in_one_datagram(manager: Manager) -> None:
    assert notify.notify("READY=1", "STATUS=all is well")
    assert manager.heard() == ["READY=1", "STATUS=all is well"]
    assert notify.reloading()
    first, second = manager.heard()
    assert first == "RELOADING=1"
    assert re.fullmatch(r"MONOTONIC_USEC=\d{6,}", second)


def test_without_a_manager_nothing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify.notify("READY=1")
    monkeypatch.setattr(notify.socket, "AF_UNIX", None, raising=False)
    monkeypatch.delattr(notify.socket, "AF_UNIX")
    assert not notify.notify("READY=1")


def test_a_manager_that_does_not_read_holds_nothing_up(manager: Manager) -> None:
    told = [notify.notify("WATCHDOG=1") for _ in range(10_000)]
    assert told[0]
    assert not told[-1]


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("120000000", None, 120.0),
        ("5000000", "own", 5.0),
        ("5000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_the_watchdogs_time_is_what_systemd_says(
    usec: str | None, pid: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = str(os.getpid()) if pid == "own" else pid
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", own)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert notify.watchdog() == seconds


class Engine:
    """A link to an engine's process that says `stats`, fails, or says nothing."""

    def __init__(self, says: Any) -> None:
        self.says, self.reloading = says, False
        self.info: dict[str, Any] | None = {}

    async def ask(self, message: Any) -> Any:
        assert message == {"op": "stats"}
        if isinstance(self.says, Exception):
            raise self.says
        if self.says is None:
            await asyncio.sleep(60)
        return self.says


def well(engine: Any, limit: float = 0.4, clock: Callable[[], float] = lambda: 0.0) -> bool:
    return asyncio.run(Health(engine, limit, clock).well())


@pytest.mark.parametrize(
    ("says", "is_well"),
    [
        ({"still_seconds": 0.0}, True),
        ({"still_seconds": 0.3}, True),
        # The engine's thread computes the same decode for longer than anything takes.
        ({"still_seconds": 0.5}, False),
        ({}, True),
        (Failed(STARTING, "between two"), True),
        (None, False),
    ],
)
def test_the_engines_thread_decides(says: Any, is_well: bool) -> None:
    assert well(Engine(says)) is is_well


def test_a_reader_that_checks_a_new_bundle_is_well() -> None:
    engine = Engine(None)
    engine.reloading = True
    assert well(engine)


def test_opening_may_take_its_time_and_no_more() -> None:
    engine, now = Engine({}), [0.0]
    engine.info = None
    health = Health(engine, 0.4, lambda: now[0])  # type: ignore[arg-type]
    assert asyncio.run(health.well())
    now[0] = notify.OPENING - 1
    assert asyncio.run(health.well())
    now[0] = notify.OPENING
    assert not asyncio.run(health.well())
    # Opened: from now on its thread decides, and a new start has its own time.
    engine.info = {}
    assert asyncio.run(health.well())
    engine.info = None
    assert asyncio.run(health.well())
