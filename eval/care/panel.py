"""What a set of dialogues is like, in figures that a reader can doubt it by."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tel_edge.eval.care.dialogues import Dialogue
from tel_edge.runtime.extras import need

# Dialogues that the shares of distinct n-grams are of, and that self-BLEU compares.
SAMPLE, COMPARED = 2000, 100
OPENING = 4


def panel(dialogues: Sequence[Dialogue], seed: int) -> dict[str, Any]:
    """Return figures of dialogues: sizes, variety, openings, and how evenly they are dealt.

    `distinct` is the share of n-grams that are there once counted in all, over at most `SAMPLE`
    dialogues; `self_bleu` the mean BLEU-4 of answers against others (0 to 100, the lower the more
    varied); `opening` the share of the commonest first four words.
    """
    chance = random.Random(f"{seed} panel")
    sample = chance.sample(list(dialogues), min(SAMPLE, len(dialogues)))
    texts = {
        role: [
            [message.content for message in one.messages if message.role == role] for one in sample
        ]
        for role in ("user", "assistant")
    }
    words = {role: [" ".join(said).split() for said in of] for role, of in texts.items()}
    cells = Counter((one.wanted.scenario.cause, one.wanted.scenario.context) for one in dialogues)
    openings = {}
    for role in texts:
        first = Counter(
            " ".join(next(m.content for m in one.messages if m.role == role).split()[:OPENING])
            for one in dialogues
        )
        [(text, count)] = first.most_common(1)
        openings[role] = {"text": text, "share": round(count / len(dialogues), 4)}
    return {
        "dialogues": len(dialogues),
        "scenarios": len({one.wanted.scenario.id for one in dialogues}),
        "words": {role: _spread([len(said) for said in of]) for role, of in words.items()},
        "distinct": {
            str(size): round(_distinct([*words["user"], *words["assistant"]], size), 4)
            for size in (1, 2, 3)
        },
        "self_bleu": _self_bleu([" ".join(said) for said in texts["assistant"][:COMPARED]]),
        "opening": openings,
        "styles": dict(sorted(Counter(one.wanted.style for one in dialogues).items())),
        "cells": {"fewest": min(cells.values()), "most": max(cells.values()), "of": len(cells)},
    }


def _spread(counts: Sequence[int]) -> dict[str, float]:
    ordered = sorted(counts)
    return {"p50": statistics.median(ordered), "p95": ordered[int(0.95 * (len(ordered) - 1))]}


def _distinct(texts: Sequence[Sequence[str]], size: int) -> float:
    grams = [gram for text in texts for gram in zip(*(text[at:] for at in range(size)))]  # noqa: B905
    return len(set(grams)) / len(grams) if grams else 0.0


def _self_bleu(texts: Sequence[str]) -> float | None:
    if len(texts) < 2:
        return None
    library = need("sacrebleu", "care")
    scores: list[float] = [
        library.sentence_bleu(text, [*texts[:at], *texts[at + 1 :]]).score
        for at, text in enumerate(texts)
    ]
    return round(statistics.mean(scores), 1)


def lines(made: dict[str, Any]) -> list[str]:
    """Return the figures as lines for a reader."""
    distinct = ", ".join(f"{size}: {value:.3f}" for size, value in made["distinct"].items())
    return [
        f"{made['dialogues']:,} dialogues of {made['scenarios']:,} scenarios",
        *(
            f"{role}: {of['p50']:.0f} words (p95 {of['p95']:.0f}), commonest opening "
            f"{made['opening'][role]['share']:.1%} ({made['opening'][role]['text']!r})"
            for role, of in made["words"].items()
        ),
        f"distinct n-grams {distinct}; self-BLEU of answers {made['self_bleu']}",
        f"cells {made['cells']['of']}: {made['cells']['fewest']:,} to {made['cells']['most']:,}",
    ]
