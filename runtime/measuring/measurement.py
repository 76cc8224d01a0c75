"""What answering costs: rates, the first answer, an adapter's swap, memory by part."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from statistics import mean, median
from typing import Any

from tel_edge.runtime import progress
from tel_edge.runtime.answerer import Answerer
from tel_edge.runtime.device import memory
from tel_edge.runtime.engines.engine import Score
from tel_edge.runtime.measuring.probe import WARM, Measurable, Pass, ask, measurable, picked
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import Scorer
from tel_edge.runtime.questions.votes import draws, majority

# Maj@k as `tel-eval` has it by default.
K, TEMPERATURE, SEED = 4, 0.7, 42
# A plain prompt of this length is what the engine's own rate is measured with.
PLAIN = 512


@dataclass(frozen=True)
class FirstAnswer:
    """Milliseconds from nothing to the first answer, and what they went into.

    `checks_ms` are digests and headers of the files and the engine's library, `load_ms` the
    weights, `context_ms` the KV cache and the buffers, `adapter_ms` the adapter, `prefill_ms` the
    question itself.
    """

    total_ms: float
    checks_ms: float
    load_ms: float
    context_ms: float
    adapter_ms: float
    prefill_ms: float


@dataclass(frozen=True)
class Swap:
    """Milliseconds that going from the bare backbone to the adapter takes.

    `load_ms` is paid once, `set_ms` each time; `prefill_ms` is one question right after a swap and
    `stay_ms` one without a swap, both without other questions in their decode.
    """

    load_ms: float
    set_ms: float
    prefill_ms: float
    stay_ms: float


@dataclass(frozen=True)
class MemorySplit:
    """Bytes, with the engine open; None where this system or the engine does not tell.

    `weights` are mapped from the file and `repacked` copied out of it. `rest` is what is anonymous
    beside the engine's buffers: the interpreter and its libraries; None where the engine does not
    tell all of them. Buffers that were reserved and never written to count in full among the
    buffers and not at all in `anonymous`.
    """

    weights: int | None
    repacked: int | None
    kv: int | None
    compute: int | None
    output: int | None
    adapters: int | None
    rest: int | None
    anonymous: int | None
    file: int | None
    peak: int


@dataclass(frozen=True)
class Measurement:
    """What answering costs; rates are medians over the repeats.

    `tokens_per_second` counts the tokens that were computed, `plain_rate` those of one plain
    prompt through the same adapter, and `share` is the one over the other, run by run.
    `tokens_per_question` is the mean length of a prompt, `computed_per_question` what of it did
    not come from a kept prefix.
    """

    questions: int
    questions_per_second: float
    maj_per_second: float
    tokens_per_second: float
    plain_rate: float
    share: float
    tokens_per_question: float
    computed_per_question: float
    first_answer: FirstAnswer
    swap: Swap | None
    memory: MemorySplit


def measure(
    opened: Callable[[], Answerer],
    asked: Sequence[Question],
    adapter: str | None,
    repeat: int,
    device_memory: bool = False,
    title: str | None = None,
) -> Measurement:
    """Open an answerer, measure it with `asked` and close it again.

    `device_memory` says that buffers are not in this process's memory. With a `title` there is a
    bar, which moves between two passes over the questions and never within one.
    """
    began = time.perf_counter()
    with opened() as answerer:
        opening = _since(began)
        engine, scorer = measurable(answerer.engine), answerer.scorer
        adapter_ms = _timed(lambda: engine.load_adapter(adapter)) if adapter else 0.0
        prefill = _timed(lambda: ask(scorer, asked[:1], adapter, picked))
        total = _since(began)
        load, context = (engine.timing.get(part, 0.0) for part in ("load", "context"))
        first = FirstAnswer(
            total, max(opening - load - context, 0.0), load, context, adapter_ms, prefill
        )
        tokens = min(PLAIN, engine.context)
        ask(scorer, asked[:WARM], adapter, picked)
        once: list[Pass] = []
        voted: list[Pass] = []
        plain: list[float] = []
        with progress.bar(title or "", "pass", 2 * repeat, title is None) as bar:
            # In turns, so that a machine that slows down slows all three.
            for _ in range(repeat):
                once.append(ask(scorer, asked, adapter, picked))
                bar.update()
                voted.append(ask(scorer, asked, adapter, _voted))
                plain.append(engine.plain_rate(adapter, tokens))
                bar.update()
        swap = _swap(engine, scorer, asked, adapter, repeat, adapter_ms) if adapter else None
        used = _memory(engine.memory_split(), memory.now(), device_memory)
    return Measurement(
        questions=len(asked),
        questions_per_second=median(one.questions_per_second for one in once),
        maj_per_second=median(one.questions_per_second for one in voted),
        tokens_per_second=median(one.tokens_per_second for one in once),
        plain_rate=median(plain),
        share=median(one.tokens_per_second / rate for one, rate in zip(once, plain, strict=True)),
        tokens_per_question=mean(score.tokens for score in once[-1].scores),
        computed_per_question=mean(score.decoded for score in once[-1].scores),
        first_answer=first,
        swap=swap,
        memory=used,
    )


def averaged(runs: Sequence[Measurement]) -> Measurement:
    """Return the mean of every figure of the same measured several times."""
    made: Measurement = _averaged(runs)
    return made


def _averaged(values: Sequence[Any]) -> Any:
    first = values[0]
    if None in values:
        return None
    if is_dataclass(first) and not isinstance(first, type):
        parts = {
            part.name: _averaged([getattr(value, part.name) for value in values])
            for part in fields(first)
        }
        return type(first)(**parts)
    return round(mean(values)) if isinstance(first, int) else mean(values)


def _swap(
    engine: Measurable,
    scorer: Scorer,
    asked: Sequence[Question],
    adapter: str,
    repeat: int,
    load: float,
) -> Swap:
    """Go back and forth; no question is asked twice running, since its prompt would be kept."""
    sets: list[float] = []
    swapped: list[float] = []
    stayed: list[float] = []
    for turn in range(repeat):
        away, after, then = ([asked[(3 * turn + at) % len(asked)]] for at in range(3))
        ask(scorer, away, None, picked)
        sets.append(_timed(lambda: engine.use(adapter)))
        swapped.append(ask(scorer, after, adapter, picked).seconds * 1000)
        stayed.append(ask(scorer, then, adapter, picked).seconds * 1000)
    return Swap(load, median(sets), median(swapped), median(stayed))


def _memory(parts: dict[str, int], now: memory.Memory, device: bool) -> MemorySplit:
    names = ("weights", "repacked", "kv", "compute", "output", "adapters")
    split: dict[str, Any] = {name: parts.get(name) for name in names}
    # Mapped weights are no anonymous memory; everything else that the engine holds is.
    held = sum(size for name, size in parts.items() if name != "weights")
    # Of an engine that does not tell these, the rest would be mostly weights and buffers.
    told = "compute" in parts and ("weights" in parts or "repacked" in parts)
    rest = None if now.anonymous is None or device or not told else max(now.anonymous - held, 0)
    return MemorySplit(**split, rest=rest, anonymous=now.anonymous, file=now.file, peak=now.peak)


def _voted(question: Question, score: Score) -> int:
    return majority(draws(score.logprobs, K, TEMPERATURE, SEED, question.id))


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return _since(began)


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1000
