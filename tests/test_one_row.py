"""A format, an architecture and types that nobody has heard of: one row each, up to the score."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import export_models as models
import fake_engine as fake
import pytest

from tel_edge.eval.benchmarks import benchmark
from tel_edge.eval.benchmarks.split import split
from tel_edge.eval.commands import evaluate
from tel_edge.eval.folders import architectures
from tel_edge.eval.folders.architectures import QV, Architecture
from tel_edge.export import exporters
from tel_edge.export.commands import export
from tel_edge.export.exporters import Exporter
from tel_edge.export.gguf import quantize
from tel_edge.export.gguf.quantize import Quant
from tel_edge.export.onnx import quantize as onnx_quantize
from tel_edge.export.onnx.quantize import OnnxQuant
from tel_edge.runtime.bundles import formats, manifest
from tel_edge.runtime.questions.categories import CATEGORIES

for name in ("torch", "transformers", "peft", "llama_cpp", "gguf"):
    pytest.importorskip(name)

Command = Callable[..., tuple[int, str, str]]
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def path(tmp_path: Path, run_command: Command) -> Run:
    """Export a backbone's folder with an adapter, score the bundle, and return the summaries."""
    fake.dataset(tmp_path / "data", "oranbench", fake.rows(30))
    questions = benchmark.read(str(tmp_path / "data"), CATEGORIES["oranbench"]).questions
    known = {"split": split(questions).digest}

    def run(base: Path, *options: str) -> dict[str, Any]:
        adapter = tmp_path / "peft"
        if not adapter.is_dir():
            models.bind(models.adapter(adapter, base, r=4), base, **known)
        common = ["--workspace", str(tmp_path), "--backbone", str(base), "--quiet"]
        code, said, err = run_command(
            export.parser(), export.work, *common, "--adapter", str(adapter), *options
        )
        assert code == 0, said + err
        work = partial(evaluate.work, isolated=False)
        code, said, err = run_command(
            evaluate.parser(), work, *common, "--dataset", str(tmp_path / "data"), "--json"
        )
        assert code == 0, said + err
        document = json.loads(said.splitlines()[-1])
        return {one["variant"]["name"]: one for one in document["summaries"]}

    return run


def test_an_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Run) -> None:
    """Mistral is no row of ours; the engine has it as llama."""
    row = Architecture(
        model_type="mistral", gguf="llama", permuted=True, rope_factors=True, kv_heads=8, targets=QV
    )
    monkeypatch.setitem(architectures.ARCHITECTURES, row.model_type, row)
    base = mistral(tmp_path / "base")
    made = path(base, "--quant", "F16,Q8_0")
    assert set(made) == {"base-F16", "lora-F16", "lora-Q8_0"}
    bundle = manifest.read(tmp_path / "bundles/base")
    assert bundle.backbone.architecture == "llama"
    figures = [file.parity for file in bundle.files]
    assert all(one is not None and one.get("conversion", 0) < 2e-4 for one in figures)


def mistral(folder: Path) -> Path:
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    tokenizer = models.tokenizer("llama")
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, head_dim=64,
        tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, initializer_range=0.05,
        sliding_window=None,
    )  # fmt: skip
    MistralForCausalLM(config).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Run) -> None:
    # LLAMA_FTYPE_MOSTLY_Q5_0 of llama.h.
    monkeypatch.setitem(quantize.QUANTS, "Q5_0", Quant("Q5_0", 8, 5.5, 0.5, "a test"))
    made = path(models.backbone(tmp_path / "base", "llama"), "--quant", "Q5_0")
    assert set(made) == {"base-Q5_0", "lora-Q5_0"}
    [file] = [f for f in manifest.read(tmp_path / "bundles/base").files if f.kind == "backbone"]
    assert file.parity
    assert 0 < file.parity["quantization"] < 0.5


def test_a_type_of_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Run) -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    row = OnnxQuant("dynamic-int8-tight", 8, 8, True, 0.5, None, "a test")
    monkeypatch.setitem(onnx_quantize.ONNX_QUANTS, row.name, row)
    base = models.backbone(tmp_path / "base", "llama")
    assert set(path(base, "--format", "onnx", "--quant", row.name)) == {
        f"base-{row.name}", f"lora-{row.name}",
    }  # fmt: skip


def test_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Run) -> None:
    """Files of the GGUF half under another name: its own ending, module and engine."""
    import mirror_format

    row = replace(
        formats.FORMATS["gguf"], name="mirror", suffix=".mirror", engine=mirror_format.MirrorEngine,
        quant="Q8_0",
    )  # fmt: skip
    monkeypatch.setitem(formats.FORMATS, row.name, row)
    half = Exporter("mirror", quantize.QUANTS, "mirror_format")
    monkeypatch.setitem(exporters.EXPORTERS, half.format, half)
    made = path(models.backbone(tmp_path / "base", "llama"), "--format", "mirror")
    assert set(made) == {"base-Q8_0", "lora-Q8_0"}
    assert {one["variant"]["format"] for one in made.values()} == {"mirror"}
    files: Mapping[str, str] = {
        file.kind: file.path for file in manifest.read(tmp_path / "bundles/base").files
    }
    assert files == {"backbone": "base-Q8_0.mirror", "adapter": "base-oranbench.mirror"}
