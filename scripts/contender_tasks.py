"""What contenders are asked and what comes of it, the same for all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tel_edge.runtime.bundles.formats import FORMATS
from tel_edge.runtime.device import memory
from tel_edge.runtime.engines.engine import EngineSettings
from tel_edge.runtime.processors import cores
from tel_edge.runtime.questions.prompt import LETTERS, render
from tel_edge.runtime.questions.question import Question

# Everybody has the same threads, batch and context.
CORES = cores()
CONTEXT, BATCH = EngineSettings().context, FORMATS["gguf"].batch
K, TEMPERATURE, SEED = 4, 0.7, 42
# Questions that are asked before the clock runs: they touch all weights.
WARM = 2

INSTRUCTION = (
    "You are an expert who answers multiple-choice questions about telecommunication networks and "
    "their standards. Respond with only the letter of the right option, and nothing else.\n\n"
)


@dataclass(frozen=True)
class Task:
    """One measurement.

    `contender` is a key of `CONTENDERS`. `adapters` maps names to (file, SHA-256); the first one
    answers. `questions` is a JSONL file of `Question`s. The rest are the contenders' options:
    `exact` is that of `EngineSettings`, `customary` asks with `INSTRUCTION` instead of tel-edge's
    prompt, `flash` is flash attention of the high-level API, `buffers` are the engine's extra
    buffers in the low-level one.
    """

    contender: str
    model: str
    adapters: Mapping[str, Sequence[str]]
    questions: str
    exact: bool = False
    customary: bool = False
    flash: bool = False
    buffers: bool = False

    def asked(self) -> tuple[Question, ...]:
        """Read the questions."""
        rows = [json.loads(text) for text in Path(self.questions).read_text().splitlines()]
        return tuple(Question(**{**row, "choices": tuple(row["choices"])}) for row in rows)

    @property
    def adapter(self) -> str:
        """Return the name of the adapter that answers."""
        return next(iter(self.adapters))


@dataclass(frozen=True)
class Answered:
    """Some questions answered once: seconds, tokens of the prompts, tokens decoded, the picks.

    A pick is -1 where the answer was no letter. `logprobs` are the labels', where they are known.
    """

    seconds: float
    tokens: int
    decoded: int
    picks: tuple[int, ...]
    logprobs: tuple[tuple[float, ...], ...] = ()


# Questions and how many votes each gets, 1 being Pass@1, to what came of them.
Way = Callable[[Sequence[Question], int], Answered]


def both(task: Task, way: Way, between: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Return Pass@1 and Maj@k of the questions, and the memory after that.

    `between` is called right before and right after Pass@1.
    """
    questions = task.asked()
    first, asked = questions[:WARM], questions[WARM:]
    for votes in (1, K):
        way(first, votes)
    between()
    single = way(asked, 1)
    between()
    made = {"pass": asdict(single), "maj": asdict(way(asked, K))}
    return {**made, "memory": asdict(memory.now())}


def one_by_one(ask: Callable[[Question, int], tuple[int, int, int]]) -> Way:
    """Return the way that asks each question; `ask` gives (pick, tokens, tokens decoded)."""

    def way(questions: Sequence[Question], votes: int) -> Answered:
        began = time.perf_counter()
        made = [ask(question, votes) for question in questions]
        seconds = time.perf_counter() - began
        picks, tokens, decoded = zip(*made, strict=True)
        return Answered(seconds, sum(tokens), sum(decoded), picks)

    return way


def prompted(task: Task, question: Question) -> str:
    """Return the prompt of a question."""
    if not task.customary:
        return render(question)
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, question.choices, strict=False)]
    return "\n".join([f"{INSTRUCTION}Question: {question.text}", *lines, "Answer:"])


def clock(work: Callable[..., Any], *given: Any) -> float:
    """Return the milliseconds of a call."""
    began = time.perf_counter()
    work(*given)
    return (time.perf_counter() - began) * 1000
