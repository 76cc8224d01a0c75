"""Scoring one variant on one category, in a process of its own: a record for each question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tel_edge.eval.records import UNPARSED, Record, line
from tel_edge.runtime import bundle, memory, protocol, stream
from tel_edge.runtime.engine import EngineSettings, Generation, Score
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.manifest import BundleFile, Manifest
from tel_edge.runtime.question import Question
from tel_edge.runtime.scoring import Scorer, TooLong
from tel_edge.runtime.votes import draws, pick

# Questions that are packed together, and whose records are held back to be in order.
WINDOW = 256


@dataclass(frozen=True)
class Settings:
    """What shapes a score beside the files: the part that is scored, and how it is answered.

    `limit` is the most tokens of a generated text; `k`, `temperature` and `seed` are those of
    Maj@k.
    """

    part: str
    k: int
    temperature: float
    seed: int
    protocol: str = "letters"
    limit: int = 64


@dataclass(frozen=True)
class Task:
    """One variant to score on one category: everything that a process of its own needs."""

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


def score(task: Task, opener: bundle.Opener = bundle.native) -> tuple[int, memory.Memory]:
    """Append a record for each question of `task`; return (questions too long, memory used).

    Runs in a process of its own, so that memory is the engine's and not the evaluation's.
    """
    from tqdm import tqdm

    adapters = [task.adapter] if task.adapter else []
    engine = bundle.open_engine(
        task.folder,
        task.manifest,
        task.backbone,
        adapters,
        settings=task.engine,
        opener=opener,
    )
    scorer, too_long = Scorer(engine), 0
    bar = tqdm(
        total=len(task.questions), desc=task.title, disable=task.quiet, leave=False, unit="question"
    )
    with task.out.open("a", encoding="utf-8") as file, bar:
        for window in stream.windows(task.questions, WINDOW):
            for record in stream.in_order(_records(task, window, scorer)):
                if record is None:
                    too_long += 1
                else:
                    file.write(line(record))
                    file.flush()
                bar.update()
    return too_long, memory.now()


def _records(
    task: Task, questions: Sequence[Question], scorer: Scorer
) -> Iterator[tuple[int, Record | None]]:
    """Yield (index of the question, its record or None where it is too long)."""
    how = task.settings
    adapter = task.adapter.category if task.adapter else None
    asked = [(question, adapter) for question in questions]
    results: Iterator[tuple[int, Score | Generation | InputError]] = (
        scorer.texts(asked, how.k, how.temperature, how.limit, how.seed)
        if how.protocol == "generate"
        else scorer.many(asked)
    )
    for index, made in results:
        if isinstance(made, TooLong):
            yield index, None
        elif isinstance(made, InputError):
            raise made
        else:
            yield index, _record(task, questions[index], made)


def _record(task: Task, question: Question, made: Score | Generation) -> Record:
    how = task.settings
    logprobs: tuple[float, ...] = ()
    text = None
    if isinstance(made, Score):
        logprobs, picked = made.logprobs, pick(made.logprobs)
        drawn = draws(logprobs, how.k, how.temperature, how.seed, question.id)
    else:
        parsed = [protocol.parse(text, question) for text in made.texts]
        picked, *rest = [UNPARSED if index is None else index for index in parsed]
        text, drawn = made.texts[0], tuple(rest)
    gold = -1 if question.answer is None else question.answer
    return Record(
        task.run, question.id, gold, logprobs, picked, drawn, made.tokens, made.milliseconds, text
    )


def in_child(task: Task, opener: bundle.Opener) -> tuple[int, memory.Memory]:
    """Run `score` in a new process. A crash of the engine there raises `WorkError` here."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(score, task, opener).result()
        except BrokenProcessPool:
            raise WorkError(
                f"{task.title}: the engine died; what was scored is kept in {task.out}\n"
                "run the same command to go on, or with --threads 1"
            ) from None
