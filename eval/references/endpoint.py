"""A model behind an OpenAI-compatible endpoint, asked with the prompts that engines are asked with.

Source of the requests and replies: OpenAI's API reference (`/models`, `/completions`,
`/chat/completions`), and what vLLM and llama-server give for the same requests.
"""

from __future__ import annotations

import hashlib
import math
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tel_edge.eval.references.client import NO_PATH, Client, Refused
from tel_edge.runtime.engines.engine import Generation, Score
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions import protocol
from tel_edge.runtime.questions.prompt import labels, render
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import Asked, TooLong

T = TypeVar("T")

COMPLETIONS, CHAT = "/completions", "/chat/completions"
# How many likely tokens are asked for; OpenAI's own limits are 5 for texts and 20 for messages.
LISTED = (20, 5)
# What a server answers for a request with a field, or a value of one, that it does not take.
NOT_TAKEN = (400, 422)
# A space, as tokenizers spell it that are not decoded.
SPACES = " ▁Ġ"


@dataclass(frozen=True)
class EndpointWay:
    """How a server wants to be asked: its path, what goes into each request, tokens it lists."""

    path: str
    extra: Mapping[str, Any]
    listed: int = 0


class Endpoint:
    """One model of a server, as a `Scorer` for bare backbones; `parallel` requests at a time."""

    def __init__(self, client: Client, model: str, parallel: int = 4) -> None:
        self.client, self.model, self.parallel = client, model, parallel
        self.way: EndpointWay | None = None

    def many(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Score | InputError]]:
        """Yield (index, score or why there is none) as they come; adapters mean nothing here.

        Labels have the probabilities of the first token, those with and without a space before it
        together. One that the server does not list has at most that of the last one it lists, and
        is given a little less. Raises `InputError` where the server gives no log-probabilities.
        """
        yield from self._all(asked, self._score, _letters())

    def texts(
        self, asked: Sequence[Asked], k: int, temperature: float, limit: int, seed: int
    ) -> Iterator[tuple[int, Generation | InputError]]:
        """Yield (index, greedy text first and then `k` sampled ones, or why there are none).

        The seeds that the server is sent are a function of (seed, id of the question, turn).
        """

        def work(question: Question) -> Generation:
            prompt, began = protocol.render(question), time.perf_counter()
            replies = []
            for turn in range(k + 1):
                body = {"max_tokens": limit, "temperature": temperature if turn else 0}
                body["seed"] = _seed(f"{seed} {question.id} {turn}")
                replies.append(self._post(prompt, body))
            spent = (time.perf_counter() - began) * 1000
            tokens = used(replies[0], "prompt_tokens")
            generated = sum(used(reply, "completion_tokens") for reply in replies)
            texts = tuple(map(text_of, replies))
            return Generation(texts, tokens, tokens, generated, spent)

        yield from self._all(asked, work, _writers())

    def _all(
        self, asked: Sequence[Asked], work: Callable[[Question], T], ways: Sequence[EndpointWay]
    ) -> Iterator[tuple[int, T | InputError]]:
        def one(at: int) -> T | InputError:
            try:
                return work(asked[at][0])
            except TooLong as error:
                return error

        start = 0
        # Alone: the others are asked in the way that the server is found to answer to.
        while self.way is None and start < len(asked):
            made = self._first(lambda at=start: one(at), ways)  # type: ignore[misc]
            if isinstance(made, TooLong):
                self.way = None
            yield start, made
            start += 1
        yield from in_threads(one, range(start, len(asked)), self.parallel)

    def _first(self, work: Callable[[], T], ways: Sequence[EndpointWay]) -> T:
        """Return what `work` gives in the first of `ways` that the server takes.

        A path that is missing is not asked again. From texts to messages, where the prompt gets a
        template around it, it goes only if there are no texts.
        """
        refused: list[Refused] = []
        for way in ways:
            if refused and self.way is not None:
                missing = refused[-1].status in NO_PATH
                if missing if way.path == self.way.path else (way.path == CHAT and not missing):
                    continue
            self.way = way
            try:
                return work()
            except Refused as error:
                if error.status not in (*NO_PATH, *NOT_TAKEN):
                    raise
                refused.append(error)
        self.way = None
        # What is said of the request says more than that a path is missing.
        raise next((error for error in refused if error.status in NOT_TAKEN), refused[0])

    def _post(self, prompt: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the first choice of the reply, with its `usage`. Raises `TooLong`."""
        assert self.way is not None
        shown: dict[str, Any] = (
            {"messages": [{"role": "user", "content": prompt}]}
            if self.way.path == CHAT
            else {"prompt": prompt}
        )
        whole = {"model": self.model, **shown, **body, **self.way.extra}
        try:
            reply = self.client.request(self.way.path, whole)
        except Refused as error:
            if error.status in (400, 413, 422) and re.search(
                r"context|too long", str(error).partition(": ")[2], re.IGNORECASE
            ):
                raise TooLong(str(error)) from None
            raise
        choices = reply.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise InputError(f"{self.client.base}{self.way.path}: no choices in the reply")
        return {**choices[0], "usage": reply.get("usage")}

    def _score(self, question: Question) -> Score:
        if question.spelled:
            raise InputError("labels of a request can be scored by an engine only")
        began = time.perf_counter()
        reply = self._post(render(question), {"max_tokens": 1, "temperature": 0})
        spent = (time.perf_counter() - began) * 1000
        likely = first_token(reply)
        if not likely:
            raise InputError(
                f"{self.client.base}: the server gives no log-probabilities; "
                "pass --protocol generate"
            )
        tokens = used(reply, "prompt_tokens")
        return Score(label_logprobs(likely, labels(question)), tokens, tokens, spent)


def _letters() -> list[EndpointWay]:
    texts = [EndpointWay(COMPLETIONS, {"logprobs": listed}, listed) for listed in LISTED]
    return texts + [
        EndpointWay(CHAT, {"logprobs": True, "top_logprobs": listed, **extra}, listed)
        for listed in LISTED
        for extra in _EXTRAS
    ]


def _writers() -> list[EndpointWay]:
    return [*(EndpointWay(CHAT, extra) for extra in _EXTRAS), EndpointWay(COMPLETIONS, {})]


# Templates of models that think first take the field, as vLLM, SGLang and llama-server do; an
# answer of one line is asked for. Where the server does not take it, it is left out.
_EXTRAS: tuple[Mapping[str, Any], ...] = (
    {"chat_template_kwargs": {"enable_thinking": False}},
    {},
)


def first_token(choice: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return (text, log-probability) of the tokens that a choice lists for its first place.

    Two shapes are read: `logprobs.top_logprobs[0]`, a mapping, of texts, and
    `logprobs.content[0].top_logprobs`, a list, of messages and of llama-server's texts.
    """
    given = choice.get("logprobs")
    if not isinstance(given, dict):
        return []
    try:
        if isinstance(content := given.get("content"), list):
            listed = content[0]["top_logprobs"] or [content[0]]
            pairs = [(str(row["token"]), float(row["logprob"])) for row in listed]
        else:
            pairs = [(text, float(value)) for text, value in given["top_logprobs"][0].items()]
    except (LookupError, TypeError, ValueError, AttributeError):
        return []
    # Minus infinity, which JSON has no name for, is a large number of some servers.
    return [(text, value) for text, value in pairs if math.isfinite(value)]


def label_logprobs(likely: Sequence[tuple[str, float]], of: Sequence[str]) -> tuple[float, ...]:
    """Return the log-probability of each label of `of`, given those of the likeliest tokens.

    A label that is not among them gets a little less than the smallest, so that it is never
    picked before one that is; if none is, all are equal (`unlisted`).
    """
    shares: dict[str, float] = {}
    for text, value in likely:
        name = text.lstrip(SPACES)
        shares[name] = shares.get(name, 0.0) + math.exp(value)
    bound = min(value for _, value in likely) - 1e-6
    found = (shares.get(label.lstrip(SPACES)) for label in of)
    return tuple(math.log(share) if share else bound for share in found)


def unlisted(logprobs: Sequence[float]) -> bool:
    """Return whether the server listed none of the labels, so that the pick means nothing."""
    return len(logprobs) > 1 and len(set(logprobs)) == 1


def text_of(choice: Mapping[str, Any]) -> str:
    """Return the text of a choice of either path, empty where there is none."""
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    return text if isinstance(text, str) else ""


def used(choice: Mapping[str, Any], name: str) -> int:
    """Return one of the counts of `usage`, 0 where the server does not say it."""
    usage = choice.get("usage")
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else 0


def _seed(text: str) -> int:
    # Positive and 31 bits long: some servers take no more.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def in_threads(
    work: Callable[[int], T], indices: Sequence[int], parallel: int
) -> Iterator[tuple[int, T]]:
    """Yield (index, what `work` gives) as they are ready, from `parallel` threads.

    After an error no more is begun; what is under way comes out first, then the error is raised.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    stopped = threading.Event()
    for index in indices:
        todo.put(index)

    def run() -> None:
        while not stopped.is_set():
            try:
                index = todo.get_nowait()
            except queue.Empty:
                break
            try:
                done.put((index, work(index), None))
            except BaseException as error:
                stopped.set()
                done.put((index, None, error))
        done.put((-1, None, None))

    # Daemons: whoever interrupts does not wait for replies.
    threads = [threading.Thread(target=run, daemon=True) for _ in range(parallel)]
    for thread in threads:
        thread.start()
    failure: BaseException | None = None
    running = parallel
    try:
        while running:
            index, made, error = done.get()
            failure = failure or error
            if index < 0:
                running -= 1
            elif error is None:
                yield index, made
    finally:
        stopped.set()
    if failure:
        raise failure
