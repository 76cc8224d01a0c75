"""What the tests of onnx engine share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from for_engine import questions
from onnx_models import CATEGORIES

from tel_edge.runtime.bundles import bundle
from tel_edge.runtime.engines.engine import EngineSettings, Item, LoraFile
from tel_edge.runtime.engines.with_onnx import OnnxEngine
from tel_edge.runtime.questions.scoring import Scorer

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("tokenizers")

ADAPTERS = (None, *CATEGORIES)
# Sums in another order; adapters and prompts differ by much more than this.
MOST = 1e-4
New = Callable[..., OnnxEngine]


@pytest.fixture(scope="module")
def folder(onnx_home: Path) -> Path:
    return onnx_home / "bundles" / "base"


def file_of(folder: Path, category: str | None = None, quant: str = "fp32") -> Path:
    made = bundle.read(folder)
    if category:
        return folder / bundle.adapter_file(folder, made, category, "onnx").path
    return folder / bundle.backbone_file(folder, made, quant, "onnx").path


@pytest.fixture(scope="module")
def new(folder: Path) -> Iterator[New]:
    """Open engines, all with all adapters, and close them at the end."""
    opened: list[OnnxEngine] = []

    def open_one(more: dict[str, LoraFile] | None = None, *, quant: str = "fp32",
                 **settings: Any) -> OnnxEngine:  # fmt: skip
        backbone = file_of(folder, quant=quant)
        adapters = bundle.loose_adapters(backbone, {c: file_of(folder, c) for c in CATEGORIES})
        wanted = EngineSettings(**{"threads": 1, "batch": 512, **settings})
        opened.append(OnnxEngine(backbone, adapters | (more or {}), wanted))
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.close()


@pytest.fixture(scope="module")
def engine(new: New) -> OnnxEngine:
    return new()


@pytest.fixture(scope="module")
def careful(new: New) -> OnnxEngine:
    return new(exact=True)


def asked_of(engine: Any, count: int) -> list[Item]:
    return list(map(Scorer(engine).item, questions(count)))
