"""What the engine's process does: takes questions in, computes a decode a turn, sends answers out.

One thread reads messages and tokenizes, so that what cannot be answered is said at once; another
one has the engine. A message is a JSON object, whose `op` says what is wanted.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from tel_edge.runtime.answerer import Answerer, Answering, answered
from tel_edge.runtime.engines import packing
from tel_edge.runtime.engines.engine import Item, Score, Unanswered
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.requests import PLAIN, Defaults, Request, request
from tel_edge.runtime.questions.scoring import TooLong
from tel_edge.runtime.records import record
from tel_edge.runtime.serving import texts
from tel_edge.runtime.serving.problems import (
    BROKEN,
    DRAINING,
    FULL,
    INVALID,
    LATE,
    LONG,
    MODEL,
    Failed,
)
from tel_edge.runtime.serving.queueing import Bounds, Job, Queue, Refused
from tel_edge.runtime.serving.texts import Prompt

Message = Mapping[str, Any]
Send = Callable[[dict[str, Any]], None]

AUTO = "auto"
# The first guess of tokens a second, and how much a new measurement counts.
RATE, NEW = 500.0, 0.2
# How long a request may take if it does not say, and at most.
PATIENCE, MOST = 60.0, 600.0


@dataclass(frozen=True)
class Waiting:
    """What is in the queue: of which adapter of which bundle, since when (`time.monotonic`).

    `category` is the adapter's, `adapter` its name in the engine. A question of `request` with its
    `item`, or a plain `prompt`.
    """

    category: str | None
    adapter: str | None
    bundle: str
    since: float
    request: Request | None = None
    item: Item | None = None
    how: Answering | None = None
    prompt: Prompt | None = None


class Worker:
    """Questions to an answerer, fairly and within bounds. `send` is called by several threads.

    `bundle` is the digest of what answers; `adapters` are the engine's names of the adapters by
    category, which change together with it (`change`).
    """

    def __init__(
        self, answerer: Answerer, name: str, send: Send, seconds: float = 60.0, bundle: str = ""
    ) -> None:
        self.answerer, self.name, self.send, self.bundle = answerer, name, send, bundle
        self.adapters = {category: category for category in answerer.adapters or ()}
        self._retired: set[str] = set()
        engine: Any = answerer.engine
        self.decode = int(getattr(engine, "most", engine.context))
        self.queue: Queue[Waiting] = Queue(Bounds(self.decode, seconds), RATE)
        self.running = 0
        self.draining = self.stopped = False
        self._ready = threading.Condition()

    # The thread that reads

    def take(self, message: Message) -> None:
        """Take one message; what is wrong with it is sent back under its id."""
        kind, id = message.get("op"), message.get("id")
        try:
            if kind == "ask":
                self._ask(message)
            elif kind == "complete":
                self._complete(message)
            elif kind in ("tokenize", "detokenize", "tokenizer"):
                self.send({"id": id, "reply": self._tokens(message)})
            elif kind == "cancel":
                with self._ready:
                    self.queue.cancel(str(message.get("id")))
            elif kind == "drain":
                with self._ready:
                    self.draining = True
                    self._ready.notify()
            elif kind == "stats":
                self.send({"id": id, "reply": self.stats()})
            else:
                raise Failed(INVALID, f"op {kind!r}")
        except Failed as error:
            self.fail(id, error)
        except InputError as error:
            self.fail(id, Failed(LONG if isinstance(error, TooLong) else INVALID, str(error)))

    def fail(self, id: Any, error: Failed) -> None:
        """Send why a message gets no reply."""
        status, code = error.kind
        after = {} if error.after is None else {"after": round(error.after, 1)}
        told = {"status": status, "code": code, "message": str(error), **after}
        self.send({"id": id, "error": told})

    def _ask(self, message: Message) -> None:
        asked = request(1, message["row"], self._defaults(message.get("model")))
        if asked.question is None:
            raise Failed(INVALID, asked.error)
        adapter = self.answerer.adapter_of(asked) if message.get("model") != self.name else None
        item = self.answerer.scorer.item(asked.question)
        nodes = packing.trie(item.labels).nodes
        how = replace(self.answerer.how, **message.get("how", {}))
        waiting = self._waiting(adapter, request=asked, item=item, how=how)
        tokens = len(item.prompt) + len(nodes)
        self._queue(message, waiting, tokens, bool(message.get("exact")))

    def _complete(self, message: Message) -> None:
        model = message.get("model")
        # A text has no choices to route by.
        adapter = None if model in (None, self.name) else self._defaults(model).category
        engine: Any = self.answerer.engine
        prompt = texts.read(message, engine)
        tokens = len(prompt.ids) + prompt.most
        if tokens > engine.context:
            raise TooLong(f"{tokens} tokens, the context holds {engine.context}")
        waiting = self._waiting(adapter.name if adapter else None, prompt=prompt)
        self._queue(message, waiting, tokens, False)

    def _waiting(self, category: str | None, **of: Any) -> Waiting:
        adapter = self.adapters[category] if category else None
        return Waiting(category, adapter, self.bundle, time.monotonic(), **of)

    def change(self, bundle: str, adapters: Mapping[str, str]) -> None:
        """Answer what comes from now on with these adapters, names in the engine by category.

        What waits already is answered with those that it was taken for.
        """
        with self._ready:
            self._retired |= {*self.adapters.values()} - {*adapters.values()}
            self._retired -= {*adapters.values()}
            self.bundle, self.adapters = bundle, dict(adapters)
            self.answerer.adapters = tuple(adapters)
            if self.answerer.router:
                self.answerer.router = replace(self.answerer.router, among=tuple(adapters))
            self._ready.notify()

    def _tokens(self, message: Message) -> dict[str, Any]:
        engine: Any = self.answerer.engine
        if message["op"] == "tokenize":
            ids = texts.tokenized(engine, message["text"], bool(message["special"]))
            return {"tokens": ids, "count": len(ids), "max_model_len": engine.context}
        if message["op"] == "detokenize":
            return {"prompt": texts.detokenized(engine, message["tokens"])}
        token, name = engine.end()
        told = {"eos_token": name, "eos_token_id": token, "vocabulary": engine.vocabulary}
        return {**told, "bos_token": texts.first(engine)}

    def _queue(self, message: Message, waiting: Waiting, tokens: int, exact: bool) -> None:
        if self.draining:
            raise Failed(DRAINING, "the service is about to stop", 5.0)
        now, limit = waiting.since, min(message.get("timeout", PATIENCE), MOST)
        group = waiting.adapter, exact, waiting.prompt is not None
        flow = str(message.get("key", "")), group
        job = Job(str(message["id"]), flow, tokens, waiting, now + limit)
        with self._ready:
            try:
                self.queue.admit(job, now, self.running)
            except Refused as error:
                says = {
                    "full": f"{len(self.queue)} questions wait, which is as many as there may be",
                    "late": f"it would take longer than {limit:g} s",
                }
                raise Failed(FULL, says[error.reason], error.after) from None
            self._ready.notify()

    def _defaults(self, model: Any) -> Defaults:
        if model in (None, AUTO):
            return self.answerer.defaults()
        if model == self.name:
            return Defaults(PLAIN, None, True)
        names = self.answerer.adapters or ()
        if model not in names or model not in CATEGORIES:
            there = " ".join((AUTO, self.name, *names))
            raise Failed(MODEL, f"no model {model!r} (there: {there})")
        return self.answerer.defaults(model)

    def stats(self) -> dict[str, Any]:
        """Return what waits and runs."""
        with self._ready:
            return {
                "waiting": len(self.queue),
                "waiting_tokens": self.queue.tokens,
                "flows": self.queue.flows,
                "running_tokens": self.running,
                "tokens_per_second": round(self.queue.rate, 1),
                "draining": self.draining,
            }

    # The thread that has the engine

    def run(self) -> None:
        """Compute until `stop`, or until all is answered once draining."""
        while True:
            with self._ready:
                self.running = 0
                while not (len(self.queue) or self.draining or self.stopped):
                    self._drop_retired()
                    self._ready.wait()
                if self.stopped or not len(self.queue):
                    return
                late = [*self.queue.late(time.monotonic())]
                turn = self.queue.turn()
                self.running = sum(job.tokens for job in turn)
                self._drop_retired({turn[0].payload.adapter} if turn else set())
            for job in late:
                self.fail(job.name, Failed(LATE, "it waited longer than it may take"))
            if turn:
                self._compute(turn)

    def _drop_retired(self, used: set[str | None] | None = None) -> None:
        """Take away the adapters that nothing asks for any longer."""
        waiting = {cast(Any, group)[0] for group in self.queue.groups()} | (used or set())
        for name in sorted(self._retired - waiting):
            engine: Any = self.answerer.engine
            engine.drop(name)
            self._retired.discard(name)

    def stop(self) -> None:
        """Let `run` return after what it computes now."""
        with self._ready:
            self.stopped = True
            self._ready.notify()

    def _compute(self, turn: list[Job[Waiting]]) -> None:
        engine: Any = self.answerer.engine
        adapter, exact, _ = cast(tuple[str | None, bool, bool], turn[0].flow[1])
        if engine.settings.exact != exact:
            engine.settings = replace(engine.settings, exact=exact)
        began, decoded = time.monotonic(), 0
        left = dict(enumerate(turn))
        failed: Mapping[int, Exception] = {}
        try:
            if turn[0].payload.prompt:
                decoded = sum(job.tokens for job in turn)
                self._texts(turn, left, began)
            else:
                for at, score in engine.score([job.payload.item for job in turn], adapter):
                    decoded += score.decoded
                    self._reply(left.pop(at), score, began)
        except Unanswered as error:
            failed = error.reasons
        except (InputError, WorkError) as error:
            failed = dict.fromkeys(left, error)
        for at, reason in failed.items():
            kind = INVALID if isinstance(reason, InputError) else BROKEN
            self.fail(left[at].name, Failed(kind, str(reason)))
        spent = time.monotonic() - began
        if decoded and spent > 0:
            measured = math.fsum(job.tokens for job in turn) / spent
            self.queue.rate += NEW * (measured - self.queue.rate)

    def _texts(self, turn: list[Job[Waiting]], left: dict[int, Job[Waiting]], began: float) -> None:
        """Compute plain prompts, one after the other; what is wrong with one is its own trouble."""
        for at, job in enumerate(turn):
            asked, started = job.payload, time.monotonic()
            assert asked.prompt
            engine: Any = self.answerer.engine
            try:
                reply = texts.completed(engine, asked.prompt, asked.adapter)
            except InputError as error:
                self.fail(left.pop(at).name, Failed(INVALID, str(error)))
                continue
            reply |= {
                **self._origin(asked),
                "queue_ms": round((began - asked.since) * 1000, 2),
                "engine_ms": round((time.monotonic() - started) * 1000, 2),
            }
            self.send({"id": left.pop(at).name, "reply": reply})

    def _reply(self, job: Job[Waiting], score: Score, began: float) -> None:
        asked = job.payload
        assert asked.request
        assert asked.request.question
        assert asked.how
        made = answered(asked.request.question, score, asked.how, asked.category)
        reply = record(asked.request, made) | self._origin(asked)
        reply |= {
            "tokens": score.tokens,
            "decoded": score.decoded,
            "packed": score.packed,
            "queue_ms": round((began - asked.since) * 1000, 2),
            "engine_ms": round(score.milliseconds, 2),
        }
        self.send({"id": job.name, "reply": reply})

    def _origin(self, asked: Waiting) -> dict[str, Any]:
        """Return what an answer says of where it is from."""
        engine: Any = self.answerer.engine
        digest = engine.adapter(asked.adapter).digest if asked.adapter else None
        return {"adapter": asked.category, "adapter_digest": digest, "bundle": asked.bundle}
