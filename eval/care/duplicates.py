"""Dialogues that say nearly the same: within a scenario, and across the parts of the split.

Source of the estimate that finds candidates: A. Broder, "On the resemblance and containment of
documents", 1997; every candidate is then compared exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tel_edge.eval.care.dialogues import Dialogue
from tel_edge.runtime.extras import need

# Shares of common word triples from which two dialogues are the same.
WITHIN, ACROSS = 0.8, 0.7
PERMUTATIONS = 64


def shingles(dialogue: Dialogue) -> frozenset[tuple[str, ...]]:
    """Return the word triples of all that is said."""
    words = " ".join(message.content for message in dialogue.messages).lower().split()
    return frozenset(zip(words, words[1:], words[2:], strict=False))


def alike(one: frozenset[Any], other: frozenset[Any]) -> float:
    """Return the share of the triples that both have in all that there are."""
    return len(one & other) / len(one | other) if one or other else 1.0


def within(dialogues: Sequence[Dialogue]) -> list[Dialogue]:
    """Return those that are no near-duplicate of an earlier one of their scenario."""
    seen: dict[str, list[frozenset[Any]]] = {}
    kept = []
    for dialogue in dialogues:
        own, others = shingles(dialogue), seen.setdefault(dialogue.wanted.scenario.id, [])
        if all(alike(own, other) < WITHIN for other in others):
            others.append(own)
            kept.append(dialogue)
    return kept


def across(train: Sequence[Dialogue], held: Iterable[Dialogue]) -> list[Dialogue]:
    """Return those of `train` that are no near-duplicate of one that is held out."""
    library = need("datasketch", "care")
    index = library.MinHashLSH(threshold=ACROSS, num_perm=PERMUTATIONS)
    known = {dialogue.wanted.id: shingles(dialogue) for dialogue in held}

    def hashed(sets: Sequence[frozenset[Any]]) -> Any:
        texts = [[" ".join(triple).encode() for triple in one] for one in sets]
        return library.MinHash.bulk(texts, num_perm=PERMUTATIONS)

    with index.insertion_session() as session:
        for name, made in zip(known, hashed([*known.values()]), strict=True):
            session.insert(name, made)
    own = [shingles(dialogue) for dialogue in train]
    return [
        dialogue
        for dialogue, mine, made in zip(train, own, hashed(own), strict=True)
        if all(alike(mine, known[name]) < ACROSS for name in index.query(made))
    ]
