"""Asks an engine in dialogues, by the backbone's own chat template, and keeps what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tel_edge.eval.care.answers.cases import Case
from tel_edge.eval.care.answers.measured import Table, measured
from tel_edge.eval.care.answers.records import Record, line
from tel_edge.runtime import progress
from tel_edge.runtime.answerer import Answerer
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.bundles.manifest import BundleFile, Manifest
from tel_edge.runtime.device import child, memory
from tel_edge.runtime.engines.engine import (
    Engine,
    EngineSettings,
    Generation,
    Sampling,
    Template,
    Unanswered,
)
from tel_edge.runtime.engines.packed import PackedEngine
from tel_edge.runtime.errors import InputError, WorkError, named
from tel_edge.runtime.questions.conversation import Message, templated

# Dialogues that are asked together; of several exchanges none is done before all are.
WINDOW = 64


@dataclass(frozen=True)
class Model:
    """What answers: a file of the bundle, with an adapter, and how its engine is opened."""

    folder: Path
    manifest: Manifest
    backbone: BundleFile
    adapter: BundleFile | None
    engine: EngineSettings

    @property
    def name(self) -> str | None:
        """Return what the engine calls the adapter."""
        return self.adapter.category if self.adapter else None


@dataclass(frozen=True)
class Task:
    """Dialogues for one model to answer, with at most `limit` tokens for an answer."""

    model: Model
    cases: tuple[Case, ...]
    others: tuple[str, ...]
    out: Path
    run: str
    limit: int
    title: str
    quiet: bool


class Speaker:
    """An open engine and its chat template; `close` it, or use it in a `with` statement.

    Raises `InputError` for a file without a template.
    """

    engine: PackedEngine
    template: Template

    def __init__(self, model: Model, opener: bundle.Opener) -> None:
        adapters = [model.adapter] if model.adapter else []
        self._answerer = Answerer.of_files(
            model.folder, model.manifest, model.backbone, adapters, engine=model.engine,
            opener=opener,
        )  # fmt: skip
        self.engine, self.adapter = packed(self._answerer.engine), model.name
        if self.engine.template is None:
            self.close()
            raise InputError(
                f"{model.folder / model.backbone.path}: no chat template, so it cannot be talked "
                "to; export it again if the backbone has one"
            )
        self.template = self.engine.template

    def __enter__(self) -> Speaker:
        """Return the speaker, which is closed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Free the engine."""
        self._answerer.close()

    def prompt(self, case: Case, texts: Sequence[str]) -> list[int]:
        """Return the tokens of a dialogue up to the next answer, `texts` being those before it."""
        return self.engine.marked(templated(self.template, before(case, texts)))


def packed(engine: Engine) -> PackedEngine:
    """Return the engine as one that gives its logits, which all of `FORMATS` are."""
    # No check of the class, since tests have an engine of their own.
    return engine  # type: ignore[return-value]


def before(case: Case, texts: Sequence[str]) -> list[Message]:
    """Return the messages of a dialogue before its next answer, with `texts` as those before."""
    found: list[Message] = []
    given = iter(texts)
    for message in case.messages:
        if message.role != "assistant":
            found.append(message)
        elif (text := next(given, None)) is None:
            break
        else:
            found.append(Message("assistant", text))
    return found


@dataclass
class _State:
    case: Case
    texts: list[str] = field(default_factory=list)
    tokens: list[tuple[int, ...]] = field(default_factory=list)
    prompt: int = 0
    milliseconds: float = 0.0
    fault: str = ""


def answers(speaker: Speaker, task: Task) -> Iterator[Record]:
    """Yield a record for each dialogue of the task, as they end."""
    table = Table(task.others)
    for start in range(0, len(task.cases), WINDOW):
        left = [_State(case) for case in task.cases[start : start + WINDOW]]
        while left:
            going = []
            for state in _turn(speaker, left, task.limit):
                if state.fault or len(state.texts) == len(state.case.references):
                    yield _record(task, state, table)
                else:
                    going.append(state)
            left = going


def _turn(speaker: Speaker, states: Sequence[_State], limit: int) -> Iterator[_State]:
    """Add an answer to each dialogue and yield it, as they end."""
    prompts: list[tuple[list[int], Sampling]] = []
    written: list[list[int]] = []
    for state in states:
        ids = speaker.prompt(state.case, state.texts)
        state.prompt = max(state.prompt, len(ids))
        tokens: list[int] = []
        written.append(tokens)
        prompts.append((ids, Sampling(0, 1.0, limit, "", goes_on=keeping(tokens))))
    open_ = dict(enumerate(states))
    try:
        for at, made in speaker.engine.generate(prompts, speaker.adapter):
            yield _answered(open_.pop(at), made, written[at])
    except Unanswered as refused:
        for at, reason in refused.reasons.items():
            state = open_.pop(at)
            state.fault = str(reason)
            yield state


def keeping(tokens: list[int]) -> Callable[[int, Sequence[int]], bool]:
    """Return a `goes_on` that copies a text's tokens to `tokens`."""

    def keep(_: int, text: Sequence[int]) -> bool:
        tokens[:] = text
        return True

    return keep


def _answered(state: _State, made: Generation, tokens: Sequence[int]) -> _State:
    state.texts.append(made.texts[0])
    state.tokens.append(tuple(tokens))
    state.milliseconds += made.milliseconds
    return state


def _record(task: Task, state: _State, table: Table) -> Record:
    case = state.case
    texts = () if state.fault else tuple(state.texts)
    asked = [one.content for one in case.messages if one.role != "assistant"]
    return Record(
        run=task.run,
        id=case.id,
        scenario=case.scenario,
        asked=case.asked,
        texts=texts,
        tokens=() if state.fault else tuple(state.tokens),
        # One that has as many tokens as it may was cut off.
        ended=tuple(len(tokens) < task.limit for tokens in state.tokens[: len(texts)]),
        prompt=state.prompt,
        milliseconds=round(state.milliseconds, 3),
        measured=measured(texts, asked, case.term, case.facts, case.wanted, table),
        fault=state.fault,
    )


def again(record: Record, case: Case, table: Table) -> Record:
    """Return a record with its texts measured anew: measures are younger than some answers."""
    asked = [one.content for one in case.messages if one.role != "assistant"]
    made = measured(record.texts, asked, case.term, case.facts, case.wanted, table)
    return replace(record, measured=made)


def append(task: Task, opener: bundle.Opener = bundle.native) -> int:
    """Append a record for each dialogue of `task`; return the process's largest memory in bytes.

    Runs in a process of its own, so that memory is the engine's.
    """
    bar = progress.bar(task.title, "dialogue", len(task.cases), task.quiet)
    with (
        Speaker(task.model, opener) as speaker,
        named(task.out),
        task.out.open("a", encoding="utf-8") as file,
        bar,
    ):
        for record in answers(speaker, task):
            file.write(line(record))
            file.flush()
            bar.update()
    return memory.now().peak


def in_child(task: Task, opener: bundle.Opener) -> int:
    """Run `append` in a new process. A crash of the engine there raises `WorkError` here."""
    try:
        return child.in_child(None, append, task, opener, shown=True)
    except child.Crashed:
        raise WorkError(
            f"{task.title}: the engine died; what was answered is kept in {task.out}\n"
            "run the same command to go on, or with --threads 1"
        ) from None
