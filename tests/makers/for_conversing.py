"""What both engines have to do with a conversation that goes on; `new` opens an engine."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tel_edge.runtime.engines.engine import Generation, Sampling

New = Callable[..., Any]
WORDS = "the RIC hosts xApps and a gNB splits into CU DU interface E2 node of 5G".split()


def ids_of(engine: Any, words: int, seed: int = 1) -> list[int]:
    return list(engine.tokenize(" ".join(random.Random(seed).choices(WORDS, k=words))))


class Heard:
    """An engine whose logits are noted, to the last bit, as they are read."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.rows = engine, []  # type: ignore[var-annotated]
        self.decode = engine.decode
        engine.decode = self._decode

    def _decode(self, entries: Sequence[Any]) -> Iterator[Any]:
        for read, logits in self.decode(entries):
            self.rows.append(logits.tobytes())
            yield read, logits

    def say(
        self, ids: Sequence[int], adapter: str | None = "oranbench", limit: int = 6, **how: Any
    ) -> tuple[Generation, list[bytes], list[int]]:
        """Return what was generated, the bits behind each of its tokens, and these."""
        self.rows, tokens = [], []
        told = how.pop("goes_on", lambda turn, made: True)

        def goes_on(turn: int, made: Sequence[int]) -> bool:
            tokens[:] = made
            return bool(told(turn, made))

        asked = Sampling(how.pop("k", 0), 0.8, limit, "7", kept=True, goes_on=goes_on, **how)
        [(_, made)] = self.engine.generate([(ids, asked)], adapter)
        return made, self.rows, tokens


def turns(heard: Heard, count: int = 4, adapter: str | None = "oranbench") -> Iterator[list[int]]:
    """Yield what each turn of a growing conversation begins with; each is asked by the caller."""
    ids = ids_of(heard.engine, 60)
    for turn in range(count):
        yield ids
        made = heard.say(ids, adapter)[2]
        ids = [*ids, *made, *ids_of(heard.engine, 20 + 9 * turn, seed=turn)]


def check_exact(new: New, **settings: Any) -> None:
    """Warm and cold answers are the same bits, and a warm one computes less."""
    warm, cold = Heard(new(exact=True, **settings)), Heard(new(exact=True, **settings))
    for turn, ids in enumerate(turns(warm)):
        cold.engine.forget()
        made, bits, tokens = warm.say(ids)
        other, wanted, same = cold.say(ids)
        assert (bits, tokens, made.texts) == (wanted, same, other.texts)
        assert len(bits) == len(tokens) + (len(tokens) < 6)
        assert other.decoded == len(ids)
        if turn:
            # Less than a part of the prompt before, the answer, what is new.
            assert made.decoded < 64 + 6 + 20 + 9 * turn


def check_close(new: New, most: float) -> None:
    """Without `exact` a turn computes what is new only, and its logits are about the same."""
    import numpy as np

    warm, cold = Heard(new()), Heard(new())
    before: list[int] = []
    for ids in turns(warm):
        cold.engine.forget()
        # Whoever asks in between changes nothing.
        made, bits, tokens = warm.say(ids)
        _, wanted, same = cold.say(ids)
        assert tokens == same
        rows = [np.frombuffer(row, np.float32) for row in (bits[0], wanted[0])]
        assert abs(rows[0] - rows[1]).max() < most
        assert made.decoded <= max(1, len(ids) - len(before))
        before = [*ids, *tokens[:-1]]


def check_adapters(new: New, exact: bool) -> None:
    """What was computed through one adapter is not another one's."""
    heard, fresh = Heard(new(exact=exact)), Heard(new(exact=exact))
    ids = ids_of(heard.engine, 90)
    wanted = {}
    for adapter in ("oranbench", None, "teleqna"):
        fresh.engine.forget()
        wanted[adapter] = fresh.say(ids, adapter)[1][0]
    assert len({*wanted.values()}) == 3
    for adapter in ("oranbench", None, "teleqna"):
        made, bits, _ = heard.say(ids, adapter)
        assert (made.decoded, bits[0]) == (len(ids), wanted[adapter])
    # All three are still there.
    for adapter in ("teleqna", "oranbench", None):
        assert heard.say([*ids, *ids[:3]], adapter)[0].decoded < 64 + 3


def check_company(new: New, ask: Callable[[Any], Any]) -> None:
    """Two conversations and questions take turns; each goes on where it was, to the last bit."""
    heard, alone = Heard(new(exact=True)), Heard(new(exact=True))
    talks = [ids_of(heard.engine, 80, seed=seed) for seed in (5, 6)]
    answers = ask(heard.engine)
    for turn in range(3):
        for at, ids in enumerate(talks):
            made, bits, tokens = heard.say(ids)
            alone.engine.forget()
            assert bits == alone.say(ids)[1]
            assert made.decoded < 140 or not turn
            talks[at] = [*ids, *tokens, *ids_of(heard.engine, 15, seed=turn)]
            assert ask(heard.engine) == answers
    heard.engine.forget()
    assert heard.say(talks[0])[0].decoded == len(talks[0])


def check_parts(new: New, exact: bool, k: int) -> None:
    """A text that is generated in parts is the whole one, with others in between."""
    heard = Heard(new(exact=exact))
    ids = ids_of(heard.engine, 70)
    _, bits, whole = heard.say(ids, limit=9, k=k)
    heard.engine.forget()
    done: list[int] = []
    rows = []
    while len(done) < len(whole):
        how = {"spent": len(done), "k": k, "goes_on": lambda _, made: len(made) < 2}
        made, some, more = heard.say([*ids, *done], limit=len(whole) - len(done), **how)
        assert made.decoded == (1 if done else len(ids))
        done += more
        rows += some
    assert done == whole
    assert not exact or rows == bits[: len(rows)]


def check_reading(new: New, exact: bool) -> None:
    """A prompt that is read in parts, with others in between, leads to the same text."""
    whole, parts = Heard(new(exact=exact, batch=80)), Heard(new(exact=exact, batch=80))
    ids, most = ids_of(whole.engine, 150), whole.engine.most
    _, bits, tokens = whole.say(ids, limit=4)
    seen: list[tuple[int, int]] = []

    def reads_on(there: int, read: int) -> bool:
        seen.append((there, read))
        return read - there < most

    for _ in range(len(ids) // most + 1):
        made, rows, text = parts.say(ids, limit=4, reads_on=reads_on)
        if text:
            break
        assert (made.texts, made.generated) == (("",), 0)
        parts.say(ids_of(parts.engine, 40, seed=3), adapter=None)
    assert text == tokens
    assert not exact or rows == bits
    # Nothing was read twice, and of each part somebody was asked.
    starts = list(dict.fromkeys(there for there, _ in seen))
    assert starts == [0, *(read for there, read in seen if read - there >= most)][: len(starts)]
    assert len(starts) > 1
