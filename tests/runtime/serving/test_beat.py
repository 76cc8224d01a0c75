"""For how long the thread that has the engine has been still, which the watchdog goes by."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

from tel_edge.runtime.answerer import Answerer
from tel_edge.runtime.engines.engine import Item, Score
from tel_edge.runtime.serving import worker as workers
from tel_edge.runtime.serving.worker import Worker


class Clock:
    """Stands for the module `time` of the worker: a test makes it go on."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Engine(fake.FakeEngine):
    """Says that a score is next, and gives it when it may."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.next, self.may = threading.Semaphore(0), threading.Semaphore(0)

    def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
        for found in super().score(items, adapter):
            self.next.release()
            assert self.may.acquire(timeout=20)
            yield found


def still(worker: Worker) -> float:
    return float(worker.stats()["still_seconds"])


def test_what_ends_a_part_of_a_turn_is_a_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(workers, "time", clock)
    fake.bundle(tmp_path)
    opener = fake.FakeOpener(engine=Engine, context=2000)
    with Answerer.of_bundle(tmp_path, opener=opener) as answerer:
        sent: list[Any] = []
        made = Worker(answerer, "tel-nano", sent.append)
        engine: Any = answerer.engine
        for id in ("a", "b"):
            row = {"id": id, "question": "gold 1", "choices": ["w", "x"]}
            made.take({"op": "ask", "id": id, "row": row, "model": "oranbench"})
        clock.now += 50
        assert still(made) == 0.0, "nothing has begun"
        thread = threading.Thread(target=made.run, daemon=True)
        thread.start()
        assert engine.next.acquire(timeout=20)
        clock.now += 7
        assert still(made) == 7.0
        engine.may.release()
        assert engine.next.acquire(timeout=20)
        clock.now += 3
        assert still(made) == 3.0, "the first of the two was answered"
        engine.may.release()
        made.stop()
        thread.join(20)
        assert not thread.is_alive()
        assert len(sent) == 2
        clock.now += 9
        assert still(made) == 0.0, "nothing to do is no sign of anything"
