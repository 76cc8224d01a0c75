"""The engine's process: every question gets one reply, of its own adapter, or why there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fake_engine as fake
import pytest

from tel_edge.runtime.answerer import Answerer
from tel_edge.runtime.engines.engine import EngineSettings, Item, Score, Unanswered
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.serving.worker import Worker

CHOICES = ["w", "x", "y", "z"]


class Engine(fake.FakeEngine):
    """Waits for `go` before each decode; notes whether it was exact."""

    most = 1000

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.go = threading.Event()
        self.go.set()
        self.exact: list[bool] = []

    def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
        self.go.wait(5)
        self.exact.append(self.settings.exact)
        if any(b"breaks" in bytes(t for t in i.prompt if t < 256) for i in items):
            raise WorkError("the library gave up")
        if any(b"surprises" in bytes(t for t in i.prompt if t < 256) for i in items):
            raise ZeroDivisionError("of nobody's making")
        bad = [at for at, i in enumerate(items) if b"odd" in bytes(t for t in i.prompt if t < 256)]
        yield from ((at, made) for at, made in super().score(items, adapter) if at not in bad)
        if bad:
            raise Unanswered({at: InputError("odd") for at in bad})


class Started:
    """A worker with its thread, and what it sent."""

    def __init__(self, answerer: Answerer, **of: Any) -> None:
        self.sent: list[dict[str, Any]] = []
        self.worker = Worker(answerer, "tel-nano", self.sent.append, **of)
        self.engine: Any = answerer.engine
        self.thread = threading.Thread(target=self.worker.run, daemon=True)
        self.thread.start()

    def ask(self, id: str, text: str = "gold 2", **of: Any) -> None:
        model = of.pop("model", "oranbench")
        row = {"id": id, "question": text, "choices": CHOICES}
        self.worker.take({"op": "ask", "id": id, "row": row, "model": model, **of})

    def replies(self, count: int) -> dict[str, dict[str, Any]]:
        until = time.monotonic() + 5
        while len(self.sent) < count and time.monotonic() < until:
            time.sleep(0.005)
        assert len({one["id"] for one in self.sent}) == len(self.sent) == count
        return {one["id"]: one for one in self.sent}


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    fake.bundle(folder := tmp_path / "bundle", adapters=("oranbench", "teleqna"))
    opener = fake.FakeOpener(engine=Engine, context=2000)
    with Answerer.of_bundle(folder, opener=opener) as answerer:
        made = Started(answerer)
        yield made
        made.engine.go.set()
        made.worker.stop()
        made.thread.join(5)


def test_each_question_gets_one_reply_of_its_adapter(started: Started) -> None:
    for at in range(3):
        started.ask(f"a{at}")
        started.ask(f"b{at}", model="teleqna")
    started.ask("bare", model="tel-nano")
    found = started.replies(7)
    assert {id: one["reply"]["adapter"] for id, one in found.items()} == {
        **{f"a{at}": "oranbench" for at in range(3)},
        **{f"b{at}": "teleqna" for at in range(3)},
        "bare": None,
    }
    first = found["a0"]["reply"]
    assert (first["id"], first["answer"], first["index"]) == ("a0", "y", 2)
    assert set(first) >= {"probabilities", "votes", "packed", "queue_ms", "engine_ms", "tokens"}
    assert found["bare"]["reply"]["probabilities"] == [0.25] * 4


@pytest.mark.parametrize(
    ("of", "status", "code"),
    [
        ({"model": "gpt"}, 404, "model_not_found"),
        ({"model": "srsranbench"}, 404, "model_not_found"),
        ({"model": None}, 400, "invalid_request"),
        ({"text": ""}, 400, "invalid_request"),
        ({"text": "x" * 3000}, 400, "context_length_exceeded"),
        ({"timeout": 0.0001}, 429, "overloaded"),
        ({"text": "breaks"}, 500, "engine_error"),
        ({"text": "odd"}, 400, "invalid_request"),
    ],
)
def test_what_cannot_be_answered(
    started: Started, of: dict[str, Any], status: int, code: str
) -> None:
    started.ask("x", **of)
    error = started.replies(1)["x"]["error"]
    assert (error["status"], error["code"]) == (status, code)
    # And the next one is answered.
    started.ask("y")
    assert started.replies(2)["y"]["reply"]["answer"] == "y"


def test_what_nobody_thought_of_is_that_questions_own_trouble(started: Started) -> None:
    started.ask("a", "this surprises")
    assert started.replies(1)["a"]["error"] == {
        "status": 500, "code": "engine_error", "message": "ZeroDivisionError: of nobody's making",
    }  # fmt: skip
    started.ask("b")
    assert started.replies(2)["b"]["reply"]["index"] == 2


def test_a_damaged_adapter_is_no_fault_of_who_asks(started: Started, tmp_path: Path) -> None:
    (tmp_path / "bundle" / "nano-oranbench-LoRA.gguf").write_bytes(b"GGUF")
    started.ask("a")
    started.ask("b", model="teleqna")
    found = started.replies(2)
    assert (found["a"]["error"]["status"], found["a"]["error"]["code"]) == (500, "engine_error")
    assert "nano-oranbench-LoRA.gguf: 4 bytes" in found["a"]["error"]["message"]
    assert found["b"]["reply"]["adapter"] == "teleqna"


def test_the_bare_model_waits_for_one_loading_and_not_for_those_behind_it(started: Started) -> None:
    # What `go` holds up is a turn whose adapter is being loaded.
    started.engine.go.clear()
    started.ask("loads")
    time.sleep(0.05)
    for at in range(30):
        started.ask(f"a{at}", "gold 1 " + "x" * 300)
    started.ask("bare", model="tel-nano")
    started.engine.go.set()
    started.replies(32)
    # The loading, a decode of those behind it (two have room), and its own.
    assert [one["id"] for one in started.sent][:4] == ["loads", "a0", "a1", "bare"]


def test_a_question_that_waits_too_long_or_is_left_is_never_computed(started: Started) -> None:
    started.engine.go.clear()
    started.ask("runs")
    time.sleep(0.05)
    started.ask("late", timeout=2.0)
    started.ask("left")
    started.ask("stays")
    started.worker.take({"op": "cancel", "id": "left"})
    time.sleep(2.1)
    started.engine.go.set()
    found = started.replies(3)
    assert found["late"]["error"]["code"] == "deadline_exceeded"
    assert set(found) == {"runs", "late", "stays"}
    assert len(started.engine.asked) == 2


def test_exact_questions_stand_apart(started: Started) -> None:
    started.engine.go.clear()
    started.ask("first")
    time.sleep(0.05)
    for at in range(3):
        started.ask(f"e{at}", exact=True)
        started.ask(f"p{at}")
    started.engine.go.set()
    started.replies(7)
    assert sorted(started.engine.exact) == [False, False, True]
    assert sorted(count for count, _ in started.engine.calls) == [1, 3, 3]


def test_a_service_that_is_exact_is_so_for_every_question(tmp_path: Path) -> None:
    fake.bundle(folder := tmp_path / "bundle")
    opener = fake.FakeOpener(engine=Engine, context=2000)
    settings = EngineSettings(exact=True)
    with Answerer.of_bundle(folder, opener=opener, engine=settings) as answerer:
        started = Started(answerer)
        started.ask("a")
        started.replies(1)
        started.worker.stop()
        started.thread.join(5)
    assert started.engine.exact == [True]


def test_draining_answers_what_waits_and_takes_nothing_more(started: Started) -> None:
    started.engine.go.clear()
    started.ask("one")
    started.ask("two")
    started.worker.take({"op": "drain"})
    started.ask("three")
    assert started.sent[0]["error"] == {
        "status": 503, "code": "draining", "message": "the service is about to stop", "after": 5.0
    }  # fmt: skip
    started.engine.go.set()
    started.thread.join(5)
    assert not started.thread.is_alive()
    assert set(started.replies(3)) == {"one", "two", "three"}


def test_the_bound_counts_what_waits(tmp_path: Path) -> None:
    fake.bundle(folder := tmp_path / "bundle", adapters=("oranbench",))
    with Answerer.of_bundle(folder, opener=fake.FakeOpener(engine=Engine)) as answerer:
        made = Started(answerer, seconds=0.001)
        made.engine.go.clear()
        for at in range(300):
            made.ask(str(at))
        full = [one for one in made.sent if one.get("error", {}).get("status") == 429]
        assert 0 < len(full) <= 300 - 256
        assert all(one["error"]["after"] >= 1 for one in full)
        made.worker.take({"op": "stats", "id": "s"})
        assert made.sent[-1]["reply"]["waiting"] >= 256
        made.engine.go.set()
        made.replies(301)
        made.worker.stop()
        made.thread.join(5)


def test_few_places_for_many_adapters_cost_a_loading_a_turn_at_most(tmp_path: Path) -> None:
    names = tuple(CATEGORIES)
    choices = [name for name in names if not CATEGORIES[name].labels]
    fake.bundle(folder := tmp_path / "bundle", adapters=names)
    opener = fake.FakeOpener(engine=Engine, context=2000)
    settings = EngineSettings(max_adapters=2)
    with Answerer.of_bundle(folder, opener=opener, engine=settings) as answerer:
        started = Started(answerer)
        started.engine.go.clear()
        # In turn, which is the worst order for two places.
        for at in range(8):
            for name in choices:
                started.ask(f"{name} {at}", model=name)
            started.ask(f"bare {at}", model="tel-nano")
        time.sleep(0.05)
        started.engine.go.set()
        found = started.replies(8 * len(choices) + 8)
        assert all("reply" in one for one in found.values())
        turns = len(started.engine.exact)
        assert turns <= 2 * (len(choices) + 1), "those of an adapter share their decodes"
        started.worker.stop()
        started.thread.join(5)
