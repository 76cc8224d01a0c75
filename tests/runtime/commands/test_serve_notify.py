"""`tel-serve` under a manager that stands for systemd."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import fake_engine as fake
import pytest

for name in ("starlette", "uvicorn", "msgspec", "prometheus_client"):
    pytest.importorskip(name)
httpx = pytest.importorskip("httpx")

from fake_systemd import Manager  # noqa: E402
from test_serve import bundle, started  # noqa: E402

from tel_edge.runtime.serving import notify  # noqa: E402

__all__ = ["bundle"]


def test_a_service_says_that_it_is_ready_lives_reloads_and_stops(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = Manager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    admin = tmp_path / "admin"
    process, address = started(bundle, "--admin", str(admin))
    try:
        first = manager.heard()
        while first == [notify.ALIVE]:
            # While it is being opened too.
            first = manager.heard()
        assert first[0] == "READY=1"
        assert first[1] == f"STATUS=nano-Q4_K_M.gguf at {address}"
        assert manager.heard() == [notify.ALIVE]
        fake.bundle(tmp_path / "later", adapters=("oranbench", "teleqna"))
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(admin))) as owner:
            made = owner.post("http://x/reload", json={"bundle": str(tmp_path / "later")})
            assert made.status_code == 200
        told = [line for line in said(manager, "READY=1") if line != notify.ALIVE]
        assert told[0] == "RELOADING=1"
        assert told[-1] == "READY=1"
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert said(manager, "STOPPING=1")[-1] == "STOPPING=1"
    manager.close()


def said(manager: Manager, last: str) -> list[str]:
    """All lines up to one."""
    found: list[str] = []
    while last not in found:
        found += manager.heard()
    return found


def test_an_engine_that_hangs_is_fed_no_more(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = Manager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    process, address = started(bundle)
    try:
        said(manager, "READY=1")
        assert manager.heard() == [notify.ALIVE]
        client = httpx.Client(base_url=address, timeout=0.2)
        row = {"question": "sleep 60000", "choices": ["w", "x"], "category": "oranbench"}
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/answer", json=row)
        heard = 0
        with suppress(TimeoutError):
            while heard < 100:
                manager.heard(1.0)
                heard += 1
        # What is left of the second in which a decode may still end.
        assert heard <= 2 * notify.OFTEN
    finally:
        process.kill()
        process.communicate(timeout=20)
        manager.close()
