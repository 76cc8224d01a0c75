"""Scoring one variant on one category, in a process of its own: a record for each question."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval.scoring.records import UNPARSED, Record, asked_digest, line
from tel_edge.runtime import progress
from tel_edge.runtime.answerer import Answer, Answerer, Answering, answers
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.bundles.manifest import BundleFile, Manifest
from tel_edge.runtime.device import child, memory
from tel_edge.runtime.engines.engine import EngineSettings
from tel_edge.runtime.errors import InputError, WorkError, named
from tel_edge.runtime.questions import stream
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import Scores, TooLong

# Questions that are packed together, and whose records are held back to be in order.
WINDOW = 256


@dataclass(frozen=True)
class Settings:
    """What shapes a score beside the files: the part that is scored, and how it is answered.

    `limit` is the most tokens of a generated text, `orders` how many orders of the options the
    probabilities are means of; `k`, `temperature` and `seed` are those of
    Maj@k.
    """

    part: str
    k: int
    temperature: float
    seed: int
    protocol: str = "letters"
    limit: int = 64
    orders: int = 1

    @property
    def suffix(self) -> str:
        """Return what a variant's name says of it: nothing where letters are asked for once."""
        if self.protocol != "letters":
            return f"-{self.protocol}"
        return f"-orders{self.orders}" if self.orders > 1 else ""

    def known(self) -> dict[str, Any]:
        """Return the settings by name; those at a default younger than some results left out."""
        return {k: v for k, v in asdict(self).items() if (k, v) != ("orders", 1)}

    @property
    def answering(self) -> Answering:
        """Return how the questions are answered."""
        generate = self.protocol == "generate"
        return Answering(generate, self.k, self.temperature, self.seed, self.limit, self.orders)


@dataclass(frozen=True)
class ScoringTask:
    """One variant to score on one category: everything that a process of its own needs.

    `rotated` says that `questions` are other orders of the part's (`rotations.rotations`), `wait`
    for how many seconds another command may have `out` first, `left_out` how many questions of the
    part are not among `questions`, because no more were wanted.
    """

    folder: Path
    manifest: Manifest
    backbone: BundleFile
    adapter: BundleFile | None
    questions: tuple[Question, ...]
    out: Path
    run: str
    settings: Settings
    engine: EngineSettings
    title: str
    quiet: bool
    rotated: bool = False
    wait: float = math.inf
    left_out: int = 0


@dataclass(frozen=True)
class Used:
    """What scoring took: `too_long` questions did not fit, `memory` is that of the process.

    `first_answer_ms` is from before the engine was opened to its first answer, None where it gave
    none. `kv_bytes_per_token` are the bytes that the engine keeps of each token of its `context`,
    None where it does not tell.
    """

    too_long: int
    memory: memory.Memory
    first_answer_ms: float | None = None
    kv_bytes_per_token: int | None = None
    context: int | None = None


def score(task: ScoringTask, opener: bundle.Opener = bundle.native) -> Used:
    """Append a record for each question of `task` and return what that took.

    Runs in a process of its own, so that memory is the engine's and not the evaluation's.
    """
    began = time.perf_counter()
    adapters = [task.adapter] if task.adapter else []
    with Answerer.of_files(
        task.folder, task.manifest, task.backbone, adapters, engine=task.engine, opener=opener
    ) as answerer:
        too_long, first = append(task, answerer.scorer)
        waited = None if first is None else (first - began) * 1000
        engine = answerer.engine
        return Used(too_long, memory.now(), waited, engine.kv_bytes_per_token, engine.context)


def append(task: ScoringTask, scorer: Scores) -> tuple[int, float | None]:
    """Append a record for each question of `task`.

    Returns the number of questions that are too long, and when (`time.perf_counter`) the first
    answer was there, None where there is none.
    """
    too_long, first = 0, None

    def timed(
        answers: Iterator[tuple[int, Record | None]],
    ) -> Iterator[tuple[int, Record | None]]:
        # Not when it is written: records wait for those before them.
        nonlocal first
        for index, record in answers:
            if first is None and record is not None:
                first = time.perf_counter()
            yield index, record

    bar = progress.bar(task.title, "question", len(task.questions), task.quiet)
    with named(task.out), task.out.open("a", encoding="utf-8") as file, bar:
        for window in stream.windows(task.questions, WINDOW):
            for record in stream.in_order(timed(_records(task, window, scorer))):
                if record is None:
                    too_long += 1
                else:
                    file.write(line(record))
                    file.flush()
                bar.update()
    return too_long, first


def _records(
    task: ScoringTask, questions: Sequence[Question], scorer: Scores
) -> Iterator[tuple[int, Record | None]]:
    """Yield (index of the question, its record or None where it is too long)."""
    adapter = task.adapter.category if task.adapter else None
    asked = [(question, adapter) for question in questions]
    for index, made in answers(scorer, asked, task.settings.answering):
        if isinstance(made, TooLong):
            yield index, None
        elif isinstance(made, InputError):
            raise made
        else:
            yield index, _record(task, made)


def _record(task: ScoringTask, made: Answer) -> Record:
    gold = -1 if made.question.answer is None else made.question.answer
    picked, *drawn = (UNPARSED if at is None else at for at in (made.index, *made.votes))
    return Record(
        task.run, made.question.id, gold, made.logprobs, picked, tuple(drawn), made.tokens,
        made.milliseconds, made.text, asked_digest(made.question),
    )  # fmt: skip


def in_child(task: ScoringTask, opener: bundle.Opener) -> Used:
    """Run `score` in a new process. A crash of the engine there raises `WorkError` here."""
    try:
        return child.in_child(None, score, task, opener, shown=True)
    except child.Crashed:
        raise WorkError(
            f"{task.title}: the engine died; what was scored is kept in {task.out}\n"
            "run the same command to go on, or with --threads 1"
        ) from None
