"""Models that judge: at an endpoint, in words, or from a GGUF file, by the letters it would say."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from tel_edge.eval.care.judges import asking
from tel_edge.eval.care.judges.asking import Material, Said, Wanted
from tel_edge.eval.care.judges.panels import Row
from tel_edge.eval.care.judges.standins import StandIn
from tel_edge.eval.care.judges.verdicts import CRITERIA, Judge
from tel_edge.eval.references import client
from tel_edge.eval.references.endpoint import CHAT, NOT_TAKEN, in_threads, text_of, used
from tel_edge.runtime import extras
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.files import checked, digest, gguf_header

# How often a request is sent that fails for the moment, and after how many judgements in a row
# that failed all the same a server is left alone.
ATTEMPTS, PATIENCE = 3, 3
# Judgements that a file is asked for together: their prompts begin alike.
TOGETHER = 8
# What a model that thinks before it answers may write besides.
THINKING = 4000


class Judging(Protocol):
    """What judges; `close` it. `marks` says whether it gives marks, `note` what is odd about it."""

    @property
    def row(self) -> Row:
        """Return what the panel says of it."""
        ...

    @property
    def judge(self) -> Judge:
        """Return who it is."""
        ...

    @property
    def marks(self) -> bool:
        """Return whether it gives marks."""
        ...

    @property
    def parallel(self) -> int:
        """Return how many judgements are asked for at a time."""
        ...

    @property
    def note(self) -> str:
        """Return what was found odd about it, empty for nothing."""
        ...

    def key(self, wanted: Wanted) -> str:
        """Return the digest of everything that is sent for a judgement."""
        ...

    def ask(self, todo: Sequence[Wanted]) -> Iterator[tuple[int, Said]]:
        """Yield (index, what was said) as they come."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def judging(row: Row, of: Material, parallel: int, threads: int | None) -> Judging:
    """Return the judge of a row. Raises `InputError` for a URL or file that is none."""
    if row.kind == "endpoint":
        return Endpoint(row, of, parallel)
    if row.kind == "gguf":
        return Model(row, of, threads)
    if row.name == "lexical":
        extras.check("sacrebleu", "care")
    return StandIn(row, of)


def ways(most: int) -> tuple[Mapping[str, Any], ...]:
    """Return what goes beside the messages, from what is wanted to what every server takes.

    Templates of models that think take `chat_template_kwargs`; OpenAI's that do take neither a
    temperature nor `max_tokens`.
    """
    return (
        {
            "temperature": 0, "max_tokens": most,
            "chat_template_kwargs": {"enable_thinking": False},
        },
        {"temperature": 0, "max_tokens": most},
        {"max_tokens": most},
        {"max_completion_tokens": most + THINKING},
    )  # fmt: skip


class Endpoint:
    """A server with OpenAI's interface, asked by several threads."""

    marks = True
    note = ""

    def __init__(self, row: Row, of: Material, parallel: int) -> None:
        self.row, self.of, self.parallel = row, of, row.parallel or parallel
        made = digest.of_value(["endpoint", row.model, row.max_tokens, asking.VERSION])[:16]
        self.judge = Judge(row.name, "endpoint", row.family, row.model, made)
        # Only of the variable that the panel names: other programs' keys go nowhere.
        self.client = client.Client(
            row.url.rstrip("/"), os.environ.get(row.key, "").strip() if row.key else "",
            timeout=row.timeout, attempts=ATTEMPTS, option=f"judge {row.name}: url",
            variable=row.key or "the variable that the panel's field key names",
        )  # fmt: skip
        self.way: Mapping[str, Any] | None = None
        self._failed = 0

    def check(self) -> None:
        """Raise `InputError` if the key's variable is not set."""
        if self.row.key and not self.client.key:
            raise InputError(
                f"judge {self.row.name}: the environment variable {self.row.key} is not set"
            )

    def key(self, wanted: Wanted) -> str:
        """Return the digest of model, limit and messages."""
        return _key(self.judge, asking.told(wanted, self.of, _whole(wanted)))

    def size(self, wanted: Wanted) -> int:
        """Return how many characters are sent for a judgement."""
        return len(asking.told(wanted, self.of, _whole(wanted)))

    def ask(self, todo: Sequence[Wanted]) -> Iterator[tuple[int, Said]]:
        """Yield what the server says; one that fails time after time is asked no more."""
        start = 0
        # Alone: the others are asked in the way that the server is found to take.
        while self.way is None and start < len(todo):
            yield start, self._one(todo[start])
            start += 1
        yield from in_threads(
            lambda at: self._one(todo[at]), range(start, len(todo)), self.parallel
        )

    def close(self) -> None:
        """Do nothing."""

    def _one(self, wanted: Wanted) -> Said:
        if self._failed >= PATIENCE:
            return Said(fault=f"not asked, since {PATIENCE} in a row had failed")
        read = asking.choice if wanted.second else asking.scores
        tokens = (0, 0)
        texts: list[str] = []
        try:
            for more in ("", f"\n{asking.ONCE_MORE}"):
                reply = self._post(asking.told(wanted, self.of, _whole(wanted) + more))
                choices = reply.get("choices")
                first = choices[0] if isinstance(choices, list) and choices else None
                if not isinstance(first, dict):
                    raise InputError(f"{self.client.base}: no choices in the reply")
                texts.append(text_of(first))
                tokens = (
                    tokens[0] + used(reply, "prompt_tokens"),
                    tokens[1] + used(reply, "completion_tokens"),
                )
                if (value := read(texts[-1])) is not None:
                    break
        except (InputError, WorkError) as error:
            # One dialogue that a server in order does not take says nothing of the others.
            own = isinstance(error, client.Refused) and error.status in NOT_TAKEN
            self._failed += not (own and self.way is not None)
            return Said(tokens=tokens, text="\n".join(texts), fault=_shortly(error))
        self._failed = 0
        return Said(value, tokens, "\n".join(texts))

    def _post(self, told: str) -> dict[str, Any]:
        """Return the reply in the first way that the server takes, which is kept."""
        body = {"model": self.row.model, "messages": [{"role": "user", "content": told}]}
        if self.way is not None:
            return self.client.request(CHAT, {**body, **self.way})
        refused: client.Refused | None = None
        for way in ways(self.row.max_tokens):
            try:
                reply = self.client.request(CHAT, {**body, **way})
            except client.Refused as error:
                if error.status not in NOT_TAKEN:
                    raise
                refused = refused or error
                continue
            self.way = way
            if "temperature" not in way:
                self.note = "takes no temperature, so it may not say the same twice"
            return reply
        assert refused is not None
        raise refused


class Model:
    """A GGUF file on this machine; it writes nothing: its letters and digits are scored.

    The file is opened when it is first asked.
    """

    marks = True
    note = ""
    parallel = TOGETHER

    def __init__(self, row: Row, of: Material, threads: int | None) -> None:
        gguf_header.check(row.file)
        self.row, self.of, self.threads = row, of, row.threads or threads
        made = digest.of_value(["gguf", checked.sha256(row.file), asking.VERSION])[:16]
        self.judge = Judge(row.name, "gguf", row.family, row.file.name, made)
        self._engine: Any = None
        self._fault = ""

    @property
    def engine(self) -> Any:
        """Return the engine, opened. Raises `InputError` for a file that cannot judge."""
        from tel_edge.runtime.bundles import bundle
        from tel_edge.runtime.engines.engine import EngineSettings

        if self._engine is None:
            engine: Any = bundle.native(self.row.file, {}, EngineSettings(threads=self.threads))
            self._engine = engine
            if engine.template is None:
                raise InputError(f"{self.row.file} has no chat template")
        return self._engine

    def key(self, wanted: Wanted) -> str:
        """Return the digest of the file and of all messages."""
        asks = [ask for _, ask, _ in _scored(wanted)]
        return _key(self.judge, asking.told(wanted, self.of, "\n".join(asks)))

    def ask(self, todo: Sequence[Wanted]) -> Iterator[tuple[int, Said]]:
        """Yield the likeliest letter, or the likeliest digit for each criterion."""
        try:
            # Once is enough to know.
            _ = self._fault or self.engine
        except InputError as error:
            self._fault = str(error)
        if self._fault:
            yield from ((at, Said(fault=self._fault)) for at in range(len(todo)))
            return
        start = 0
        while start < len(todo):
            # What all of a call begin with is computed once: the five questions about an answer
            # differ in their last line, and pairs of one dialogue behind its facts.
            end = start + 1
            while (
                todo[start].second
                and end < min(len(todo), start + TOGETHER)
                and todo[end].prompt == todo[start].prompt
            ):
                end += 1
            yield from self._together(start, todo[start:end])
            start = end

    def close(self) -> None:
        """Free the model."""
        if self._engine is not None:
            self._engine.close()

    def _together(self, start: int, todo: Sequence[Wanted]) -> Iterator[tuple[int, Said]]:
        from tel_edge.runtime.engines.engine import Unanswered

        engine = self.engine
        items, places, faults = [], [], {}
        for at, one in enumerate(todo):
            try:
                # All of them, or none: marks of a part of the criteria are no marks.
                made = [(name, of, self._item(one, ask, of)) for name, ask, of in _scored(one)]
            except InputError as error:
                faults[at] = _shortly(error)
                continue
            items += [item for *_, item in made]
            places += [(at, name, of) for name, of, _ in made]
        found: dict[int, dict[str, str]] = {}
        tokens: dict[int, int] = {}
        try:
            for index, score in engine.score(items, None):
                at, name, of = places[index]
                best = score.logprobs.index(max(score.logprobs))
                found.setdefault(at, {})[name] = of[best]
                tokens[at] = tokens.get(at, 0) + score.tokens
        except Unanswered as error:
            faults |= {places[index][0]: str(why) for index, why in error.reasons.items()}
        for at, one in enumerate(todo):
            if at in faults:
                yield start + at, Said(fault=faults[at])
            elif one.second:
                yield start + at, Said(asking.LETTERS[found[at][""]], (tokens[at], 0))
            else:
                marks = {name: int(found[at][name]) for name in CRITERIA}
                yield start + at, Said(marks, (tokens[at], 0))

    def _item(self, wanted: Wanted, ask: str, of: Sequence[str]) -> Any:
        from tel_edge.runtime.engines.engine import Item
        from tel_edge.runtime.questions.conversation import Message, templated
        from tel_edge.runtime.questions.scoring import label_ids

        said = [Message("user", asking.told(wanted, self.of, ask))]
        text = templated(self.engine.template, said)
        ids = self.engine.marked(text)
        labels = label_ids(self.engine.marked, text, of)
        if len(ids) + max(map(len, labels)) > self.engine.context:
            raise InputError(f"longer than the {self.engine.context} tokens of the context")
        return Item(ids, labels)


def _scored(wanted: Wanted) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (criterion or nothing, how it is asked for, what may be answered)."""
    if wanted.second:
        return [("", asking.LETTER, tuple(asking.LETTERS))]
    digits = tuple("12345")
    return [(name, asking.MARK.format(name=name), digits) for name in CRITERIA]


def _whole(wanted: Wanted) -> str:
    return asking.BETTER if wanted.second else asking.MARKS


def _key(judge: Judge, told: str) -> str:
    return digest.of_value([judge.digest, told])[:32]


def _shortly(error: Exception) -> str:
    return str(error).partition("; what was done")[0].partition(", the context")[0]
