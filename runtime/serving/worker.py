"""What the engine's process does: takes questions in, computes a decode a turn, sends answers out.

One thread reads messages and tokenizes, so that what cannot be answered is said at once; another
one has the engine. A message is a JSON object, whose `op` says what is wanted.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from tel_edge.runtime.answerer import Answerer, answered
from tel_edge.runtime.engines import packing
from tel_edge.runtime.engines.engine import Item, Score, Unanswered
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.questions import guarding
from tel_edge.runtime.questions.categories import CATEGORIES, SPOKEN, category
from tel_edge.runtime.questions.requests import PLAIN, Defaults, request
from tel_edge.runtime.questions.scoring import TooLong
from tel_edge.runtime.questions.writing import Prompt, Text
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
from tel_edge.runtime.serving.waiting import Waiting, check_size

Message = Mapping[str, Any]
Send = Callable[[dict[str, Any]], None]

AUTO = "auto"
# The first guess of tokens a second, and how much a new measurement counts.
RATE, NEW = 500.0, 0.2
# How long a request may take if it does not say, and at most.
PATIENCE, MOST = 60.0, 600.0
# Tokens of a text that are generated before others have a turn; the first guesses of how many
# tokens of a prompt one of them costs as much as, and of how many a text has.
SLICE, COST, LENGTH = 16, 10.0, 32.0


class Worker:
    """Questions to an answerer, fairly and within bounds. `send` is called by several threads.

    `bundle` is the digest of what answers; `adapters` are the engine's names of the adapters by
    category, which change together with it (`change`). With `guard` conversations are guarded.
    """

    def __init__(
        self, answerer: Answerer, name: str, send: Send, seconds: float = 60.0, bundle: str = "",
        guard: bool = False,
    ) -> None:  # fmt: skip
        self.answerer, self.name, self.send, self.bundle = answerer, name, send, bundle
        self.guard = guarding.outgoing if guard else None
        names = (*(answerer.adapters or ()), *answerer.spoken)
        self.adapters = {category: category for category in names}
        self._retired: set[str] = set()
        # Of what is computed: all, and those whose clients have left.
        self._names: set[str] = set()
        self._left: set[str] = set()
        self._cost, self._length = COST, LENGTH
        engine: Any = answerer.engine
        self.decode = int(getattr(engine, "most", engine.context))
        # What the service was started with holds for every request.
        self.exact = bool(engine.settings.exact)
        self.queue: Queue[Waiting] = Queue(Bounds(self.decode, seconds), RATE)
        self.running = 0
        # When the thread that has the engine did something last, None while it has nothing to do.
        self._beat: float | None = None
        self.draining = self.stopped = False
        self._ready = threading.Condition()

    # The thread that reads

    def take(self, message: Message) -> None:
        """Take one message; what is wrong with it is sent back under its id."""
        kind, id, engine = message.get("op"), message.get("id"), cast(Any, self.answerer.engine)
        try:
            check_size(message, engine.context)
            if kind == "ask":
                self._ask(message)
            elif kind == "complete":
                self._complete(message)
            elif kind == "chat":
                self._chat(message)
            elif kind in ("tokenize", "detokenize", "tokenizer"):
                self.send({"id": id, "reply": texts.tokens(message, engine)})
            elif kind == "cancel":
                with self._ready:
                    if not self.queue.cancel(str(id)) and str(id) in self._names:
                        self._left.add(str(id))
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
        self.send({"id": id, "error": error.told()})

    def _ask(self, message: Message) -> None:
        asked = request(1, message["row"], self._defaults(message.get("model")))
        if asked.question is None:
            raise Failed(INVALID, asked.error)
        adapter = self.answerer.adapter_of(asked) if message.get("model") != self.name else None
        item = self.answerer.scorer.item(asked.question)
        nodes = packing.trie(item.labels).nodes
        how = replace(self.answerer.how, **message.get("how", {}))
        waiting = self._waiting(adapter, request=asked, item=item, how=how)
        exact = bool(message.get("exact"))
        # What all begin with is computed once, unless nothing is to be shared.
        known = 0 if exact or self.exact else item.known
        self._queue(message, waiting, len(item.prompt) - known + len(nodes), exact)

    def _complete(self, message: Message) -> None:
        model = message.get("model")
        prompt = texts.read(message, cast(Any, self.answerer.engine))
        self._prompt(message, self._named(self.name if model is None else model), prompt)

    def _named(self, model: str) -> str | None:
        """Return the category of a model that is named, None for the bare backbone."""
        if model == AUTO:
            raise Failed(MODEL, "no router chooses here; name a category, or the backbone")
        if model in self.answerer.spoken:
            return model
        of = self._defaults(model).category if model != self.name else None
        return of.name if of else None

    def _chat(self, message: Message) -> None:
        model = self.name if message.get("model") is None else message["model"]
        if model == AUTO and (router := self.answerer.router):
            # By what was said last.
            route = router.route(message["messages"][-1]["content"]).category
        else:
            route = self._named(model)
        if self.guard:
            message, reply = texts.guarded(message)
            if reply:
                self.send({"id": message["id"], "reply": reply})
                return
        adapted = route is not None and route not in SPOKEN
        prompt, item = texts.chat(message, cast(Any, self.answerer.engine), adapted)
        self._prompt(message, route, prompt, item)

    def _prompt(
        self, message: Message, category: str | None, prompt: Prompt, item: Item | None = None
    ) -> None:
        nodes = packing.trie(item.labels) if item else None
        if nodes and nodes.branches > packing.BRANCHES:
            raise Failed(INVALID, f"the choices have {nodes.branches} branches, at most "
                         f"{packing.BRANCHES} work")  # fmt: skip
        more = len(nodes.nodes) if nodes else prompt.most
        context = cast(Any, self.answerer.engine).context
        if len(prompt.ids) + more > context:
            raise TooLong(f"{len(prompt.ids) + more} tokens, the context holds {context}")
        tokens = len(prompt.ids) + (more if item else self._generating(more))
        waiting = self._waiting(category, prompt=prompt, item=item)
        self._queue(message, waiting, tokens, False)

    def _generating(self, most: int) -> int:
        """Return what generating at most so many tokens likely takes, in tokens of a prompt."""
        return math.ceil(self._cost * min(most, self._length))

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
            self.answerer.exchange(tuple(adapters))
            self._ready.notify()

    def _queue(self, message: Message, waiting: Waiting, tokens: int, exact: bool) -> None:
        if self.draining:
            raise Failed(DRAINING, "the service is about to stop", 5.0)
        now, limit = waiting.since, min(message.get("timeout", PATIENCE), MOST)
        group = waiting.adapter, exact or self.exact, waiting.item is None
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
        if model in self.answerer.spoken:
            category(model)
        if model not in names or model not in CATEGORIES:
            there = " ".join((AUTO, self.name, *names, *self.answerer.spoken))
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
                "still_seconds": time.monotonic() - self._beat if self._beat else 0.0,
                "draining": self.draining,
            }

    # The thread that has the engine

    def run(self) -> None:
        """Compute until `stop`, or until all is answered once draining."""
        while True:
            with self._ready:
                self.running, self._beat = 0, None
                while not (len(self.queue) or self.draining or self.stopped):
                    self._drop_retired()
                    self._ready.wait()
                if self.stopped or not len(self.queue):
                    return
                late = [*self.queue.late(time.monotonic())]
                turn = self._alone(self.queue.turn())
                self.running, self._beat = sum(job.tokens for job in turn), time.monotonic()
                self._names, self._left = {job.name for job in turn}, set()
                self._drop_retired({turn[0].payload.adapter} if turn else set())
            for job in late:
                self.fail(job.name, Failed(LATE, "it waited longer than it may take"))
            if turn:
                self._compute(turn)

    def _alone(self, turn: list[Job[Waiting]]) -> list[Job[Waiting]]:
        """Of several texts leave the first, since they share no decode, and put the others back."""
        if turn and turn[0].payload.item is None:
            for job in reversed(turn[1:]):
                self.queue.again(job, job.tokens)
            return turn[:1]
        return turn

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
            _there(engine, adapter)
            if turn[0].payload.item is None:
                self._text(turn[0], began)
            else:
                for at, score in engine.score([job.payload.item for job in turn], adapter):
                    decoded += score.decoded
                    self._reply(left.pop(at), score, began)
        except Unanswered as error:
            failed = error.reasons
        except Exception as error:
            # Also of what nobody thought of the process survives: others wait.
            failed = dict.fromkeys(left, error)
        for at, reason in failed.items():
            kind = INVALID if isinstance(reason, InputError) else BROKEN
            known = isinstance(reason, InputError | WorkError)
            text = str(reason) if known else f"{type(reason).__name__}: {reason}"
            self.fail(left[at].name, Failed(kind, text))
        spent = time.monotonic() - began
        if decoded and spent > 0:
            measured = math.fsum(job.tokens for job in turn) / spent
            self.queue.rate += NEW * (measured - self.queue.rate)

    def _text(self, job: Job[Waiting], began: float) -> None:
        """Compute a text to its end, or as much of it as others that wait leave time for."""
        asked, engine = job.payload, cast(Any, self.answerer.engine)
        prompt = asked.prompt
        assert prompt
        if prompt.likely:
            self._told(job, texts.likely(engine, prompt, asked.adapter), began)
            return
        times: list[float] = []

        def goes_on(new: str) -> bool:
            times.append(time.monotonic())
            return self._goes_on(job, text, new)

        def reads_on(there: int, read: int) -> bool:
            return read - there < self.decode or self._has_time(job)

        text = Text(engine, prompt, goes_on, self.guard if prompt.spoken else None, reads_on)
        later = text.write(asked.adapter)
        spent = time.monotonic() - began
        if len(times) > 2:
            # Without the first, which waits for the prompt and the adapter.
            cost = (times[-1] - times[0]) / (len(times) - 1) * self.queue.rate
            self._cost += NEW * (max(1.0, cost) - self._cost)
        if text.ended:
            self._length += NEW * (len(later.done) - self._length)
            echoed = engine.text(prompt.ids) if prompt.echo else ""
            reply = {"text": echoed + text.text, "prompt_tokens": len(prompt.ids)}
            self._told(job, reply | {"generated": len(later.done), "ended": text.ended}, began)
        elif job.name not in self._left:
            if time.monotonic() >= job.until:
                self.fail(job.name, Failed(LATE, "it takes longer than it may"))
                return
            rest = len(later.ids) - later.read + self._generating(later.most - len(later.done))
            with self._ready:
                more = replace(job, tokens=rest, payload=replace(asked, prompt=later))
                self.queue.again(more, job.tokens - math.ceil(spent * self.queue.rate))

    def _goes_on(self, job: Job[Waiting], text: Text, new: str) -> bool:
        """Send what is new of a text, and return whether there is time for more of it."""
        self._beat = time.monotonic()
        if new and text.prompt.streamed:
            self.send({"id": job.name, "part": new})
        return self._has_time(job, len(text.tokens) - len(text.prompt.done) < SLICE)

    def _has_time(self, job: Job[Waiting], first: bool = False) -> bool:
        """Return whether a text is still wanted, and nothing else waits that it is not before."""
        with self._ready:
            others = bool(len(self.queue)) or self.stopped
        wanted = job.name not in self._left and time.monotonic() < job.until
        return wanted and (first or not others)

    def _told(
        self, job: Job[Waiting], reply: dict[str, Any], began: float, spent: float | None = None
    ) -> None:
        """Send a reply; `spent` are the engine's milliseconds, those since it began if None."""
        asked, self._beat = job.payload, time.monotonic()
        spent = (self._beat - began) * 1000 if spent is None else spent
        times = {
            "queue_ms": round((began - asked.since) * 1000, 2),
            "engine_ms": round(spent, 2),
        }
        self.send({"id": job.name, "reply": reply | asked.origin(self.answerer.engine) | times})

    def _reply(self, job: Job[Waiting], score: Score, began: float) -> None:
        asked = job.payload
        if asked.prompt:
            self._told(job, texts.chosen(asked.prompt, asked.item, score), began)
            return
        assert asked.request
        assert asked.request.question
        assert asked.how
        made = answered(asked.request.question, score, asked.how, asked.category)
        taken = {"tokens": score.tokens, "decoded": score.decoded, "packed": score.packed}
        self._told(job, record(asked.request, made) | taken, began, score.milliseconds)


def _there(engine: Any, adapter: str | None) -> None:
    """Raise `WorkError`, which is no fault of who asks, for an adapter that cannot be loaded."""
    try:
        engine.use(adapter)
    except InputError as error:
        raise WorkError(f"the adapter cannot be loaded: {error}") from None
