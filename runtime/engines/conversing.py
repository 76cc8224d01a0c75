"""One text after a conversation, whose keys and values are kept for its next turn.

A turn begins with what its conversation has said before, so only what is new is decoded. What is
in the cells is known by the parts that it was computed in (`prefixes.Key`): where answers have to
be exact, those are the same parts whether a conversation is new or goes on, so that the engine's
sums are, too; otherwise every token is a part of its own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

from tel_edge.runtime.engines.engine import EngineSettings, Generation, Sampling
from tel_edge.runtime.engines.logits import drawn
from tel_edge.runtime.engines.packing import PackedEntry
from tel_edge.runtime.engines.prefixes import KEEPER, Key, Prefixes
from tel_edge.runtime.errors import InputError

# Tokens of a part of an exact prompt: more are computed faster at first, and again more often.
PART = 64


class Decoding(Protocol):
    """What a text needs of an engine; see `PackedEngine`."""

    context: int
    most: int
    cache: Prefixes
    settings: EngineSettings

    def decode(self, entries: Sequence[PackedEntry]) -> Iterator[tuple[tuple[int, int], Any]]:
        """Compute tokens into the cells and yield (what is read, its logits)."""
        ...

    def ends(self, token: int) -> bool:
        """Return whether a generated text ends with that token."""
        ...

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of generated tokens."""
        ...


def parts(ids: Sequence[int], spent: int, size: int) -> tuple[tuple[int, ...], ...]:
    """Return the parts of `size` that ids are computed in; the last `spent` are one each.

    The last part of the prompt is never empty, and of a size of its own.
    """
    end = len(ids) - spent
    made = [tuple(ids[at : min(at + size, end)]) for at in range(0, end, size)]
    return *made, *((token,) for token in ids[end:])


def written(engine: Decoding, ids: Sequence[int], how: Sampling, key: Key) -> Generation:
    """Generate one text after `ids`, greedily where `how.k` is 0 and sampled where it is 1.

    `key` has the adapter, which is in use. The last `how.spent` of `ids` were generated before.
    Where `how.reads_on` ends it, the text is empty and what was read of the prompt is kept.
    Raises `InputError` where prompt and text do not fit the context.
    """
    began = time.perf_counter()
    if how.k > 1 or len(ids) + how.limit > engine.context:
        raise InputError(
            f"{len(ids)} tokens and {how.limit} more, the context holds {engine.context}"
        )
    exact = engine.settings.exact
    size = min(PART, engine.most) if exact else 1
    units = parts(ids, how.spent, size)
    whole = Key(key.adapter, key.scale, units)
    # The last part is computed in any case, for what comes after it.
    there = engine.cache.resume(whole.first(len(units) - 1))
    start = whole.first(there).tokens
    entries = [PackedEntry(token, at, (KEEPER,)) for at, token in enumerate(ids)][start:]
    entries[-1] = PackedEntry(ids[-1], len(ids) - 1, (KEEPER,), (0, 0))
    ends = [*range(0, len(entries), engine.most), len(entries)]
    if exact:
        ends = [whole.first(count).tokens - start for count in range(there, len(units) + 1)]
    steps = [entries[a:b] for a, b in pairwise(ends)]
    for number, step in enumerate(steps[:-1], 1):
        for _ in engine.decode(step):
            pass
        read = start + ends[number]
        if how.reads_on and not how.reads_on(start, read):
            engine.cache.hold(whole.first(there + number if exact else read))
            spent = (time.perf_counter() - began) * 1000
            return Generation(("",), len(ids), read - start, 0, spent)
    step = steps[-1]
    chance = random.Random(f"{how.seed} {how.k}")
    for _ in range(how.spent):
        chance.random()
    tokens: list[int] = []
    while step:
        [*_, logits] = (row for _, row in engine.decode(step))
        step = []
        token = drawn(logits, how.temperature if how.k else 0, chance)
        if engine.ends(token):
            break
        tokens.append(token)
        more = how.goes_on is None or how.goes_on(how.k, tokens)
        if more and len(tokens) < how.limit:
            at = len(ids) + len(tokens) - 1
            step = [PackedEntry(token, at, (KEEPER,), (0, 0))]
            units = (*units, (token,))
    engine.cache.hold(Key(key.adapter, key.scale, units))
    spent = (time.perf_counter() - began) * 1000
    text = engine.text(tokens)
    return Generation((text,), len(ids), len(ids) - start, len(tokens), spent)
