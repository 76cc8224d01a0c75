"""A turn of a conversation: what of it fits the model's context, and the answer as it comes."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from tel_edge.runtime.engines.packed import PackedEngine
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions import guarding, writing
from tel_edge.runtime.questions.conversation import ROLES, Message
from tel_edge.runtime.questions.question import check_text
from tel_edge.runtime.questions.scoring import TooLong
from tel_edge.runtime.questions.writing import Prompt, Text

# Of a context, the part that is kept free for an answer of any length.
ROOM = 4


@dataclass(frozen=True)
class Talking:
    """How turns are answered: at most `most` tokens, greedily at `temperature` 0.

    An answer ends where the model's turn does, or before one of the texts `stop`. With `guard`
    `guarding` stands between both sides.
    """

    most: int = 512
    temperature: float = 0.0
    seed: int = 42
    stop: tuple[str, ...] = ()
    guard: bool = False


@dataclass(frozen=True)
class Reply:
    """An answer, and what became of the conversation.

    `heard` is what the model was given: `dropped` exchanges were too many, and `masked` names what
    was hidden. `refused` says why nobody was asked. `ended` is stop, length, content_filter, or
    interrupted. `tokens` were generated after `prompt_tokens`, of which `decoded` were computed;
    the first of them came after `first_ms`.
    """

    text: str
    ended: str
    tokens: int
    prompt_tokens: int
    decoded: int
    first_ms: float
    ms: float
    heard: tuple[Message, ...]
    dropped: int = 0
    masked: tuple[str, ...] = ()
    refused: str | None = None

    def record(self) -> dict[str, Any]:
        """Return it as a record; what did not happen is left out."""
        left = {key: value for key, value in asdict(self).items() if key not in ("heard", "masked")}
        for name in ("first_ms", "ms"):
            left[name] = round(left[name], 1)
        masked = {"masked": list(self.masked)} if self.masked else {}
        return {k: v for k, v in left.items() if v or k not in ("dropped", "refused")} | masked


def messages(row: Mapping[str, Any]) -> list[Message]:
    """Return the messages of a row, of which the user's is the last. Raises `InputError`."""
    if other := sorted(set(row) - {"id", "messages"}):
        hint = "; lines of questions go without --chat" if "question" in row else ""
        raise InputError(f"unknown field {other[0]!r}; there are: id messages{hint}")
    given = row.get("messages")
    if not isinstance(given, list) or not given:
        raise InputError(
            'no messages; a line is as {"messages": [{"role": "user", "content": ...}]}'
        )
    made = []
    for at, one in enumerate(given, 1):
        if not isinstance(one, dict) or set(one) != {"role", "content"}:
            raise InputError(f"message {at}: role and content are needed, and nothing else")
        if one["role"] not in ROLES or not isinstance(one["content"], str):
            raise InputError(f"message {at}: role is one of {' '.join(ROLES)}, content a text")
        try:
            check_text(one["content"])
        except InputError as error:
            raise InputError(f"message {at}: {error}") from None
        made.append(Message(one["role"], one["content"]))
    if made[-1].role != "user":
        raise InputError("the last message is not the user's: there is nothing to answer")
    return made


def fitted(
    engine: PackedEngine, said: Sequence[Message], most: int
) -> tuple[list[int], int, list[Message], int]:
    """Return ids, how many tokens may follow, the messages they are of, and exchanges dropped.

    The oldest exchanges go until `most` tokens have room, or a quarter of the context if that is
    less; never a system message nor what was said last, behind which there may be less room. Raises
    `TooLong` where there is none.
    """
    users = [at for at, one in enumerate(said) if one.role == "user"]
    # An answer of any length may come, but not at the price of all that was said.
    room = min(most, engine.context // ROOM)

    @cache
    def without(count: int) -> tuple[list[int], list[Message]]:
        left = list(said)
        if count:
            # What an assistant may have said before anybody asked goes along.
            system = [one for one in said[: users[count]] if one.role == "system"]
            left = [*system, *said[users[count] :]]
        return writing.conversation(engine, left)[1], left

    def fits(count: int) -> bool:
        return len(without(count)[0]) + room <= engine.context

    # Each look shows and reads the whole conversation, so few are taken, and mostly all of it fits.
    last = max(0, len(users) - 1)
    dropped = 0 if fits(0) else bisect_left(range(last), True, min(1, last), key=fits)
    ids, left = without(dropped)
    if len(ids) >= engine.context:
        raise TooLong(f"the message has {len(ids)} tokens, the context holds {engine.context}")
    return ids, min(most, engine.context - len(ids)), left, dropped


def reply(
    engine: PackedEngine,
    adapter: str | None,
    said: Sequence[Message],
    how: Talking,
    tell: Callable[[str], bool] = lambda _: True,
) -> Reply:
    """Return the answer to what was said; `tell` is given its pieces, and says whether it goes on.

    Raises `InputError` for what cannot be answered.
    """
    began = time.perf_counter()
    masked: tuple[str, ...] = ()
    if how.guard:
        said, masked, refused = guarding.incoming(said)
        if refused:
            tell(guarding.REFUSAL)
            heard = tuple(said)
            return Reply(
                guarding.REFUSAL, "content_filter", 0, 0, 0, 0, 0, heard, 0, masked, refused
            )
    ids, most, left, dropped = fitted(engine, said, how.most)
    first: list[float] = []

    def goes_on(new: str) -> bool:
        first.append(time.perf_counter())
        return tell(new)

    prompt = Prompt(tuple(ids), most, how.temperature, how.seed, stop=how.stop, spoken=True)
    text = Text(engine, prompt, goes_on, guarding.outgoing if how.guard else None)
    text.write(adapter)
    ended = time.perf_counter()
    return Reply(
        text.text,
        text.ended or "interrupted",
        len(text.tokens),
        len(ids),
        text.decoded,
        ((first or [ended])[0] - began) * 1000,
        (ended - began) * 1000,
        tuple(left),
        dropped,
        masked,
    )
