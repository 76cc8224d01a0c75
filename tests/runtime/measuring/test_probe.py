"""The questions of tel-bench, one pass over them, and what is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import for_bench
import pytest
from for_bench import ONE, SAFE, Engine, GetsSlower, LikesSmallBatches, engine

from tel_edge.runtime import progress
from tel_edge.runtime.answerer import Answerer
from tel_edge.runtime.device import memory
from tel_edge.runtime.engines.engine import (
    Item,
    Score,
)
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.measuring import comparison, measurement, probe
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.prompt import render
from tel_edge.runtime.questions.scoring import Scorer

_clock = for_bench._clock


def test_questions_are_the_same_everywhere_and_all_different() -> None:
    made = probe.questions(ONE, 300)
    assert probe.questions(ONE, 10) == made[:10]
    assert len({render(question) for question in made}) == 300
    assert {len(question.choices) for question in made} == {4}
    # Rates of two machines can be compared only if both answered the same.
    texts = "".join(map(render, made[:64]))
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "4161e373d5bf61ef"


def test_questions_are_as_long_as_real_ones() -> None:
    lengths = [len(render(question).split()) for question in probe.questions(ONE, 100)]
    assert 40 < min(lengths) < max(lengths) < 100


@pytest.mark.parametrize("name", CATEGORIES)
def test_every_category_has_questions_of_its_own_form(name: str) -> None:
    (question,) = probe.questions(CATEGORIES[name], 1)
    assert question.category == name
    assert question.choices == CATEGORIES[name].labels or len(question.choices) == 4


def test_a_pass_consumes_everything_and_keeps_the_order() -> None:
    asked, made, concluded = probe.questions(ONE, 9), engine(), []
    done = probe.ask(Scorer(made), asked, None, lambda q, score: concluded.append(q.id))
    assert made.scored == len(done.scores) == 9
    assert sorted(concluded) == sorted(question.id for question in asked)
    assert [score.tokens for score in done.scores] == [len(render(q).encode()) for q in asked]
    computed = sum(score.tokens - 10 for score in done.scores)
    assert done.tokens_per_second == pytest.approx(computed / done.seconds)
    assert done.questions_per_second == pytest.approx(9 / done.seconds)


def test_a_question_without_a_score_is_no_fast_question() -> None:
    class Forgets(Engine):
        def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
            yield from list(super().score(items, adapter))[1:]

    with pytest.raises(WorkError, match="1 of 9 questions got no score"):
        probe.ask(Scorer(engine(kind=Forgets)), probe.questions(ONE, 9), None, probe.picked)


def test_a_question_that_does_not_fit_ends_the_measuring() -> None:
    small = engine(replace(SAFE, context=20))
    with pytest.raises(InputError, match=r"question probe-0: the prompt has \d+ tokens"):
        probe.ask(Scorer(small), probe.questions(ONE, 9), None, probe.picked)


def test_measure_asks_everything_of_one_engine_and_closes_it() -> None:
    opened: list[Engine] = []

    def opener() -> Answerer:
        opened.append(engine(kind=LikesSmallBatches))
        return Answerer(opened[-1])

    found = measurement.measure(opener, probe.questions(ONE, 16), "oranbench", repeat=2)
    (made,) = opened
    assert made.calls[:2] == [("load", "oranbench"), ("score", 1, "oranbench")]
    assert made.calls[-1] == ("close",)
    assert made.calls.count(("score", 4, "oranbench")) == 1
    assert made.calls.count(("score", 16, "oranbench")) == 4
    assert made.calls.count(("plain", "oranbench", 512)) == 2
    assert found.questions_per_second == pytest.approx(16 / 0.008)
    assert found.maj_per_second == pytest.approx(16 / 0.008)
    assert found.share == pytest.approx(found.tokens_per_second / 1e6)
    assert found.tokens_per_question == found.computed_per_question + 10
    assert asdict(found.first_answer) == pytest.approx(
        {"total_ms": 111, "checks_ms": 10, "load_ms": 60, "context_ms": 30, "adapter_ms": 3,
         "prefill_ms": 8}
    )  # fmt: skip
    assert found.swap is not None
    assert asdict(found.swap) == pytest.approx(
        {"load_ms": 3, "set_ms": 0.5, "prefill_ms": 8, "stay_ms": 8}
    )


def test_a_swap_comes_from_the_bare_backbone_to_another_question() -> None:
    made = engine()
    asks: list[tuple[str, str | None]] = []

    class Watched(Scorer):
        def many(self, asked: Any) -> Any:
            asks.extend((question.id, adapter) for question, adapter in asked)
            return super().many(asked)

    measurement._swap(made, Watched(made), probe.questions(ONE, 8), "oranbench", 2, 0.0)
    assert asks == [
        ("probe-0", None), ("probe-1", "oranbench"), ("probe-2", "oranbench"),
        ("probe-3", None), ("probe-4", "oranbench"), ("probe-5", "oranbench"),
    ]  # fmt: skip
    assert [call for call in made.calls if call[0] == "use"] == [("use", "oranbench")] * 2


def test_without_an_adapter_there_is_no_swap() -> None:
    made = engine(replace(SAFE, context=500))
    found = measurement.measure(lambda: Answerer(made), probe.questions(ONE, 1), None, repeat=1)
    assert found.swap is None
    assert {call[0] for call in made.calls} == {"score", "plain", "close"}
    # A plain prompt is no longer than what the cache holds.
    assert ("plain", None, 500) in made.calls
    what: Any = SimpleNamespace(backbone=SimpleNamespace(parity=None))
    shown = comparison.table([(what, found)])
    assert "swap" not in shown
    assert shown.splitlines()[-1].split() == ["picks", "as", "it", "-"]


def test_a_bar_moves_between_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    given = (lambda: Answerer(engine()), probe.questions(ONE, 2), None, 2)
    measurement.measure(*given, title="Q8_0 (gguf)")
    assert "Q8_0 (gguf): pass 4 of 4 " in capsys.readouterr().err
    measurement.measure(*given)
    assert capsys.readouterr().err == ""


def test_a_failure_closes_the_engine() -> None:
    made = engine(replace(SAFE, context=20))
    with pytest.raises(InputError):
        measurement.measure(lambda: Answerer(made), probe.questions(ONE, 8), None, repeat=1)
    assert made.calls[-1] == ("close",)


def test_the_rest_of_memory_is_what_no_buffer_explains() -> None:
    parts = {"weights": 700, "repacked": 40, "kv": 50, "compute": 20, "output": 3, "adapters": 7}
    now = memory.Memory(1000, 900, 2000)
    found = measurement._memory(parts, now, False)
    assert found.rest == 1000 - 40 - 50 - 20 - 3 - 7
    assert (found.weights, found.kv, found.anonymous, found.peak) == (700, 50, 1000, 2000)
    assert measurement._memory(parts | {"kv": 5000}, now, False).rest == 0
    copied = {"repacked": 700, "compute": 20}
    assert measurement._memory(copied, now, False).rest == 1000 - 720
    assert measurement._memory(parts, now, True).rest is None
    assert measurement._memory(parts, memory.Memory(None, None, 5), False).rest is None


@pytest.mark.parametrize("untold", ["weights", "compute"])
def test_without_the_engine_s_parts_there_is_no_rest(untold: str) -> None:
    parts = {name: 10 for name in ("weights", "kv", "compute", "adapters") if name != untold}
    found = measurement._memory(parts, memory.Memory(1000, 900, 2000), False)
    assert found.rest is None
    assert getattr(found, untold) is None
    assert (found.kv, found.anonymous) == (10, 1000)


def test_rounds_are_averaged_part_by_part() -> None:
    asked = probe.questions(ONE, 8)
    one, other = (
        measurement.measure(lambda: Answerer(engine(kind=GetsSlower)), asked, adapter, repeat=1)
        for adapter in ("oranbench", "oranbench")
    )
    made = measurement.averaged([one, other])
    assert measurement.averaged([one]) == one
    assert made.questions_per_second == pytest.approx(
        (one.questions_per_second + other.questions_per_second) / 2
    )
    assert made.first_answer.prefill_ms == pytest.approx(
        (one.first_answer.prefill_ms + other.first_answer.prefill_ms) / 2
    )
    assert (made.questions, made.memory.kv, made.memory.repacked) == (8, 50, None)
    assert made.swap is not None
    assert measurement.averaged([replace(one, swap=None)] * 2).swap is None
