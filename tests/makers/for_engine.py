"""What the tests of engine share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import export_models as models
import pytest

from tel_edge.export.commands import export
from tel_edge.runtime import cli
from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.engines.engine import (
    EngineSettings,
    Item,
    LoraFile,
    Score,
)
from tel_edge.runtime.engines.with_llama import LlamaEngine
from tel_edge.runtime.questions.prompt import LETTERS
from tel_edge.runtime.questions.question import Question
from tel_edge.runtime.questions.scoring import label_ids

CONTEXT = 1024
PROMPTS = tuple(
    f"Answer with one letter.\nWhich interface joins {ends}?\nA) a\nB) b\nAnswer:"
    for ends in ("the SMO and the non-RT RIC", "the SMO and the O-Cloud", "CU and DU")
)
CATEGORIES = ("oranbench", "teleqna", "teletables")
ADAPTERS = (None, *CATEGORIES)
# What is computed in one go with other tokens is summed in another order; adapters and prompts
# differ by much more than this.
MOST = 2e-5
New = Callable[..., LlamaEngine]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle in F32 of a random backbone and three random adapters."""
    root = tmp_path_factory.mktemp("engine")
    base = models.backbone(root / "base", "llama", max_position_embeddings=CONTEXT)
    for seed, category in enumerate(CATEGORIES, start=1):
        at = root / "adapters" / "base" / category
        models.bind(models.adapter(at, base, seed=seed), base, category=category)
    argv = ["--workspace", str(root), "--backbone", str(base), "--adapter", "all", "--quiet"]
    argv += ["--quant", "F32", "--adapter-quant", "F32"]
    assert cli.run(export.parser(), export.work, argv) == 0
    return root / "bundles" / "base"


@pytest.fixture(scope="module")
def new(folder: Path) -> Iterator[New]:
    """Open engines, all with all adapters, and close them at the end.

    Nothing is rounded to F16 on the way, which would hide small mistakes.
    """
    made = bundle.read(folder)
    backbone = folder / bundle.backbone_file(folder, made, None).path
    files = {c: folder / bundle.adapter_file(folder, made, c).path for c in CATEGORIES}
    adapters = bundle.loose_adapters(backbone, files)
    opened: list[LlamaEngine] = []

    def open_one(more: dict[str, LoraFile] | None = None, **settings: Any) -> LlamaEngine:
        wanted = EngineSettings(**{"threads": 1, "kv": "F32", "flash": False, **settings})
        opened.append(LlamaEngine(backbone, adapters | (more or {}), wanted))
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.close()


@pytest.fixture(scope="module")
def engine(new: New) -> LlamaEngine:
    return new()


@pytest.fixture(scope="module")
def careful(new: New) -> LlamaEngine:
    return new(exact=True)


def letters(engine: LlamaEngine) -> tuple[tuple[int, ...], ...]:
    return label_ids(engine.tokenize, "Answer:", [f" {letter}" for letter in LETTERS])


def item(engine: LlamaEngine, prompt: str) -> Item:
    return Item(engine.tokenize(prompt), letters(engine))


def one(engine: LlamaEngine, asked: Item, adapter: str | None) -> Score:
    [(_, score)] = engine.score([asked], adapter)
    return score


def cold(engine: LlamaEngine, asked: Item, adapter: str | None) -> Score:
    """Score with nothing kept of anything before."""
    engine.forget()
    return one(engine, asked, adapter)


def distance(got: Sequence[float], wanted: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(got, wanted, strict=True))


def questions(count: int, seed: int = 1) -> list[Question]:
    """Return questions of several lengths, numbers of choices and forms."""
    rng = random.Random(seed)
    words = "xApp RIC O-Cloud E2 the interface joins slices gNB 5G core of a".split()
    made = []
    for at in range(count):
        text = " ".join(rng.choices(words, k=rng.randint(2, 40))) + "?"
        choices = tuple(f"{word} {n}" for n, word in enumerate(rng.choices(words, k=2 + at % 5)))
        if at % 7 == 6:
            made.append(Question(str(at), "", text, (*choices, "RIC", "RIC 5G"), spelled=True))
        else:
            made.append(Question(str(at), ("", "oranbench")[at % 2], text, choices))
    return made


LABELS = (
    (" yes", " no", " not sure"),
    (" a", " ab", " abc abc", " abd", " b"),
    (" interface E2", " interface O1", " interface", " the interface of all"),
)
