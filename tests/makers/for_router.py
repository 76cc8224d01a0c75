"""What the tests of router share."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tel_edge.eval.benchmarks.split import Split, split
from tel_edge.eval.scoring import router as training
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.router import Router

LABELS = CATEGORIES["3gpp_tsg"].labels
WORDS = {
    "oranbench": "xapp rapp near-rt non-rt fronthaul ric smo o-cloud open e2".split(),
    "srsranbench": "class function scheduler gnb_du library header unit_test pdcp lib cpp".split(),
    "3gpp_tsg": "meeting tdoc agreed proposal clause contribution revised noted cr wid".split(),
}


def made(threshold: float = 0.75, temperature: float = 0.5) -> Router:
    """Return a router of two categories and four buckets."""
    return Router(
        categories=("oranbench", "srsranbench"),
        weights=np.array([[0.5, 0, -1, 2], [1, 0, 0, -2]], "<f2"),
        bias=np.array([0.25, -0.25], "<f4"),
        temperature=temperature,
        threshold=threshold,
        source="ab" * 32,
    )


GOLDEN = (
    b"`\x01\0\0\0\0\0\0"
    rb'{"__metadata__":{"feature_version":"1","settings":"{\"categories\": [\"oranbench\", '
    rb"\"srsranbench\"], \"source\": \"" + b"ab" * 32 + rb"\", \"temperature\": 0.5, "
    rb'\"threshold\": 0.75}"},"bias":{"data_offsets":[16,24],"dtype":"F32","shape":[2]},'
    rb'"weights":{"data_offsets":[0,16],"dtype":"F16","shape":[2,4]}}   '
    b"\x008\0\0\0\xbc\0@\0<\0\0\0\0\0\xc0"
    b"\0\0\x80>\0\0\x80\xbe"
)


def questions(name: str, count: int, seed: int = 1) -> list[Question]:
    rng = random.Random(f"{name} {seed}")

    def words(number: int) -> str:
        return " ".join(rng.choice(WORDS[name]) for _ in range(number))

    return [
        Question(
            f"{name}/{at}",
            name,
            f"{words(6)} {at}",
            CATEGORIES[name].labels or tuple(f"{place}. {words(2)} {place}" for place in range(4)),
            at % 4,
        )
        for at in range(count)
    ]


def splits(count: int = 40) -> dict[str, Split]:
    return {name: split(questions(name, count)) for name in WORDS}


@pytest.fixture(scope="module")
def trained() -> Router:
    return training.train(splits(), 42)
