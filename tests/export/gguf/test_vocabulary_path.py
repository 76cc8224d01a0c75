"""A vocabulary that lacks bytes, from the training to the answer, in both formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_models as models
import pytest
from for_pre_tokenizers import MISSING
from for_pre_tokenizers import made as vocabulary

from tel_edge.export.commands import export
from tel_edge.runtime.commands import run
from tel_edge.train.commands import train

ROWS = [
    {"question": "How many bits, 12 or 345?", "choices": ["12", "345"]},
    # A control character in a word of its own, and one between signs that would join.
    {"question": "Which one \x04 is it?", "choices": ["this", "that"]},
    {"question": "Which one!\x04!", "choices": ["this", "that"]},
]


@pytest.mark.slow
def test_a_vocabulary_that_lacks_bytes(
    run_command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    base = models.backbone(tmp_path / "base", "llama", vocab_size=905)
    (base / "tokenizer.json").write_text(json.dumps(vocabulary("smollm", MISSING)))
    common = ["--workspace", str(tmp_path), "--backbone", str(base), "--quiet"]
    only = ["--category", "oranbench"]
    settings = ["--epochs", "1", "--max-train", "8"]
    code, _, err = run_command(train.parser(), train.work, *common, *only, *settings)
    assert code == 0, err
    gguf = ["--adapter", "oranbench", "--quant", "F16"]
    code, _, err = run_command(export.parser(), export.work, *common, *gguf)
    assert code == 0, err
    onnx = ["--adapter", "oranbench", "--quant", "fp32", "--format", "onnx"]
    code, _, err = run_command(export.parser(), export.work, *common, *onnx)
    assert code == 0, err
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    found: dict[str, list[dict[str, Any]]] = {}
    for name in ("gguf", "onnx"):
        more = ["--format", name, "--threads", "1"]
        with asked.open() as lines:
            monkeypatch.setattr("sys.stdin", lines)
            code, out, err = run_command(run.parser(), run.work, *common, *only, *more)
        found[name] = [json.loads(line) for line in out.splitlines()]
        assert len(found[name]) == len(ROWS), err
    for one, other in zip(found["gguf"][:2], found["onnx"][:2], strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=0.01)
    assert "'\\x04', for which this vocabulary has no token" in found["gguf"][2]["error"]
    assert "answer" in found["onnx"][2]
