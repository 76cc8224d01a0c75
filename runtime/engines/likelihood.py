"""How likely a text is, token by token, which is what public harnesses ask for.

Nothing is kept of it and nothing shared: the prompt is computed as it is given, token ids verbatim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tel_edge.runtime.engines.logits import log_sum
from tel_edge.runtime.engines.packed import PackedEngine
from tel_edge.runtime.engines.packing import PackedEntry
from tel_edge.runtime.engines.prefixes import KEEPER
from tel_edge.runtime.errors import InputError, WorkError

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """A token after those before it, its log-probability, and the likeliest one's."""

    token: int
    logprob: float
    best: int
    highest: float


def check_ids(engine: PackedEngine, ids: Sequence[int]) -> None:
    """Raise `InputError` for an id of no token."""
    if wrong := [token for token in ids if not 0 <= token < engine.vocabulary]:
        raise InputError(f"token {wrong[0]}: the vocabulary has {engine.vocabulary}")


def read_along(
    engine: PackedEngine,
    ids: Sequence[int],
    adapter: str | None,
    read: Callable[[int, Any], T],
    start: int = 0,
) -> list[T]:
    """Return what `read` makes of (position, logits [vocabulary]) at each position from `start` on.

    The logits, of what follows that position's token, hold until `read` returns. Raises
    `InputError` for no tokens, more than the context holds, or ids of no token.
    """
    if not ids:
        raise InputError("no tokens")
    if len(ids) > engine.context:
        raise InputError(f"{len(ids)} tokens, the context holds {engine.context}")
    check_ids(engine, ids)
    with engine.lock:
        if engine.shut:
            raise WorkError("the engine is closed")
        engine.use(adapter)
        engine.forget()
        entries = [
            PackedEntry(token, at, (KEEPER,), (0, at) if at >= start else None)
            for at, token in enumerate(ids)
        ]
        found = [read(at, logits) for (_, at), logits in engine.decode(entries)]
        engine.forget()
    return found


def likelihoods(engine: PackedEngine, ids: Sequence[int], adapter: str | None) -> list[Step]:
    """Return a step for each token but the first, and one for the likeliest token after the last.

    Raises `InputError` as `read_along` does.
    """

    def step(at: int, logits: Any) -> Step:
        total, best = log_sum(logits), int(logits.argmax())
        token = ids[at + 1] if at + 1 < len(ids) else best
        return Step(token, float(logits[token]) - total, best, float(logits[best]) - total)

    return read_along(engine, ids, adapter, step)
