"""How likely a text is, token by token, which is what public harnesses ask for.

Nothing is kept of it and nothing shared: the prompt is computed as it is given, token ids verbatim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tel_edge.runtime.engines.logits import log_sum
from tel_edge.runtime.engines.packed import PackedEngine
from tel_edge.runtime.engines.packing import PackedEntry
from tel_edge.runtime.engines.prefixes import KEEPER
from tel_edge.runtime.errors import InputError, WorkError


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


def likelihoods(engine: PackedEngine, ids: Sequence[int], adapter: str | None) -> list[Step]:
    """Return a step for each token but the first, and one for the likeliest token after the last.

    Raises `InputError` for no tokens, more than the context holds, or ids of no token.
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
        entries = [PackedEntry(token, at, (KEEPER,), (0, at)) for at, token in enumerate(ids)]
        steps = []
        for (_, at), logits in engine.decode(entries):
            total, best = log_sum(logits), int(logits.argmax())
            token = ids[at + 1] if at + 1 < len(ids) else best
            steps.append(
                Step(token, float(logits[token]) - total, best, float(logits[best]) - total)
            )
        engine.forget()
    return steps
