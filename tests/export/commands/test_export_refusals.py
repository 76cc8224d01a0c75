"""What cannot be exported faithfully is refused by name, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_models as models
import pytest

from tel_edge.export.commands import export
from tel_edge.runtime import cli


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> Path:
    """Return a folder with a backbone `base`, its sharded twin and its adapter `lora`."""
    root: Path = tmp_path_factory.mktemp("refusals")
    base = models.backbone(root / "base", "llama")
    models.backbone(root / "shards", "llama", shards=True)
    models.bind(models.adapter(root / "lora", base), base)
    return root


def refused(argv: list[str], out: Path, capsys: Any, code: int = 2) -> str:
    """Run the command, check that it leaves no trace, and return what it says."""
    capsys.readouterr()
    assert cli.run(export.parser(), export.work, [*argv, "--quiet", "--out", str(out)]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert not out.exists()
    assert said.err.startswith("tel-export: ")
    assert 1 <= len(said.err.splitlines()) <= 2, said.err
    return str(said.err)


def config(**changed: Any) -> Callable[[Path], None]:
    return lambda folder: models.edit(folder / "config.json", **changed)


def values(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def changed(tensors: dict[str, Any]) -> dict[str, Any]:
        change(tensors)
        return tensors

    return lambda folder: models.retensor(next(folder.glob("*model.safetensors")), changed)


def cut(name: str, keep: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[:keep])

    return change


def pickled(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))


def poison(name: str, value: float) -> Callable[[Path], None]:
    import torch

    def change(tensors: dict[str, Any]) -> None:
        tensors[name] = tensors[name].to(torch.bfloat16)
        tensors[name].view(-1)[7] = value

    return values(change)


Q0 = "model.layers.0.self_attn.q_proj.weight"
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
SHARD = "model-00002-of-00005.safetensors"

BACKBONES: dict[str, tuple[str, Callable[[Path], Any], tuple[str, ...]]] = {
    "architecture": ("base", config(model_type="gpt2"), ("'gpt2'", "llama qwen3 qwen2 exaone4")),
    "no field": ("base", config(hidden_size=None), ("hidden_size is None",)),
    "bias": ("base", config(attention_bias=True), ("attention_bias",)),
    "activation": ("base", config(hidden_act="gelu"), ("hidden_act", "'silu'")),
    "sliding": ("base", config(layer_types=["sliding_attention"] * 2), ("sliding_attention",)),
    "yarn": ("base", config(rope_parameters=YARN), ("rope scaling 'yarn'",)),
    "old yarn": (
        "base",
        config(rope_parameters=None, rope_scaling={"type": "yarn", "factor": 2.0}),
        ("rope scaling 'yarn'",),
    ),
    "partial": (
        "base",
        config(rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        ("partial rotary",),
    ),
    "config": ("base", cut("config.json", 30), ("config.json", "not JSON")),
    "no config": ("base", lambda d: (d / "config.json").unlink(), ("no config.json",)),
    "pickled": ("base", pickled, ("pickled weights are never loaded",)),
    "truncated": ("base", cut("model.safetensors", 90_000), ("model.safetensors", "truncated")),
    "header": ("base", cut("model.safetensors", 200), ("model.safetensors", "truncated")),
    "empty": ("base", cut("model.safetensors", 3), ("model.safetensors", "header")),
    "tensor": ("base", values(lambda t: t.pop(Q0)), (Q0, "is missing")),
    "head": ("base", config(tie_word_embeddings=False), ("lm_head.weight is missing",)),
    "shape": (
        "base",
        config(intermediate_size=768),
        ("mlp.gate_proj.weight is [512, 256]", "[768"),
    ),
    "leftover": (
        "base",
        values(lambda t: t.update(extra=t["model.norm.weight"].clone())),
        ("tensor extra has no place",),
    ),
    "nan": ("base", poison(Q0, float("nan")), (Q0, "NaN")),
    "infinite": ("base", poison("model.norm.weight", float("inf")), ("model.norm.weight", "NaN")),
    "overflow": ("base", poison(Q0, 1e5), (Q0, "65504", "--quant BF16")),
    "type": (
        "base",
        values(lambda t: t.update({Q0: t[Q0].double()})),
        (Q0, "F64; F32, F16 and BF16 are read"),
    ),
    "shard": ("shards", lambda d: (d / SHARD).unlink(), (SHARD, "is missing")),
    "index": (
        "shards",
        lambda d: models.edit(d / "model.safetensors.index.json", weight_map=None),
        ("no weight_map",),
    ),
    "way out": (
        "shards",
        lambda d: models.edit(d / "model.safetensors.index.json", weight_map={"a": "../x"}),
        ("../x is missing",),
    ),
    "in no shard": (
        "shards",
        lambda d: models.edit(d / "model.safetensors.index.json", weight_map={"a": SHARD}),
        (SHARD, "tensor a is missing"),
    ),
    "tokenizer": ("base", lambda d: (d / "tokenizer.json").unlink(), ("tokenizer.json: missing",)),
    "vocabulary": ("base", config(vocab_size=300), ("embed_tokens.weight is [", "[300, 256]")),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones(name: str, made: Path, tmp_path: Path, capsys: Any) -> None:
    kind, damage, fragments = BACKBONES[name]
    folder = shutil.copytree(made / kind, tmp_path / "copy")
    damage(folder)
    said = refused(["--backbone", str(folder)], tmp_path / "out", capsys)
    for fragment in fragments:
        assert fragment in said


def test_beyond_f16_is_exported_as_bf16(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "base", tmp_path / "copy")
    poison(Q0, 1e5)(folder)
    argv = ["--backbone", str(folder), "--quant", "BF16", "--out", str(tmp_path / "out")]
    assert cli.run(export.parser(), export.work, argv) == 0


def lora(**changed: Any) -> Callable[[Path], None]:
    return lambda folder: models.edit(folder / "adapter_config.json", **changed)


def bound(**changed: Any) -> Callable[[Path], None]:
    return lambda folder: models.edit(folder / "training.json", **changed)


A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B0 = A0.replace("_A", "_B")


def renamed(old: str, new: str) -> Callable[[Path], None]:
    def change(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return values(change)


def set_b(value: float) -> Callable[[Path], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors[B0].view(-1)[3] = value

    return values(change)


ADAPTERS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "dora": (lora(use_dora=True), ("use_dora cannot be exported",)),
    "bias": (lora(bias="all"), ("bias='all'",)),
    "lora bias": (lora(lora_bias=True), ("lora_bias cannot be exported",)),
    "saved": (lora(modules_to_save=["lm_head"]), ("modules_to_save",)),
    "tokens": (lora(trainable_token_indices=[3]), ("trainable_token_indices",)),
    "transposed": (lora(fan_in_fan_out=True), ("fan_in_fan_out",)),
    "kind": (lora(peft_type="IA3"), ("peft_type 'IA3'",)),
    "pissa": (lora(init_lora_weights="pissa_niter_4"), ("pissa_niter_4", "changes the backbone")),
    "target": (lora(target_modules=["q_proj", "c_attn"]), ("k_proj", "which PEFT ignores")),
    "no target": (lora(target_modules=[]), ("target_modules is []",)),
    "pattern of targets": (lora(target_modules="("), ("cannot be read",)),
    "no rank": (lora(r=0), ("r is 0",)),
    "no alpha": (lora(lora_alpha=0), ("lora_alpha is 0",)),
    "rank": (lora(r=4), (A0, "[8, 256]", "[4, 256]")),
    "pattern": (lora(rank_pattern={"q_proj": 2}), (A0, "[2, 256]")),
    "expression": (lora(alpha_pattern={"(": 2}), ("'(' is no regular expression",)),
    "pickled": (pickled, ("pickled adapters are never loaded",)),
    "truncated": (cut("adapter_model.safetensors", 9000), ("adapter_model.saf", "truncated")),
    "embedding": (
        renamed("layers.0.self_attn.q_proj.lora_A.weight", "embed_tokens.lora_embedding_A"),
        ("the embedding or the head was trained",),
    ),
    "head": (renamed("model.layers.0.self_attn.q_proj", "lm_head"), ("lm_head", "the head was")),
    "magnitude": (
        renamed("0.self_attn.q_proj.lora_A.weight", "0.self_attn.q_proj.lora_magnitude_vector"),
        ("DoRA",),
    ),
    "half a pair": (values(lambda t: t.pop(B0)), ("q_proj has only one of lora_A and lora_B",)),
    "unknown": (renamed("layers.0.mlp.up_proj", "layers.9.mlp.up_proj"), ("layers.9.mlp.up_proj",)),
    "nothing": (values(lambda t: t.clear()), ("no LoRA tensors",)),
    "shape": (
        values(lambda t: t.update({B0: t[B0][:128]})),
        (B0, "[128, 8]", "[256, 8]"),
    ),
    "nan": (set_b(float("nan")), (B0, "NaN")),
    "overflow": (set_b(7e4), (B0, "--adapter-quant F32")),
    "folded overflow": (
        lambda d: (lora(alpha_pattern={"q_proj": 1600})(d), set_b(7e3)(d)),
        (B0, "folded in", "--adapter-quant F32"),
    ),
    "backbone": (
        bound(backbone={"name": "other", "weights": "0" * 64}),
        ("made for another backbone (other)",),
    ),
    "prompt": (bound(prompt="0" * 64), ("made for another prompt",)),
    "training": (cut("training.json", 9), ("training.json", "not JSON")),
    "no split": (bound(split=None), ("training.json", "field 'split' is missing")),
    "category": (bound(category="poetry"), ("unknown category 'poetry'",)),
    "nameless": (lambda d: (d / "training.json").unlink(), ("add --category NAME",)),
    "config": (cut("adapter_config.json", 9), ("adapter_config.json", "not JSON")),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name: str, made: Path, tmp_path: Path, capsys: Any) -> None:
    damage, fragments = ADAPTERS[name]
    folder = shutil.copytree(made / "lora", tmp_path / "copy")
    damage(folder)
    argv = ["--backbone", str(made / "base"), "--adapter", str(folder)]
    said = refused(argv, tmp_path / "out", capsys)
    for fragment in fragments:
        assert fragment in said


def test_an_adapter_for_another_shape(made: Path, tmp_path: Path, capsys: Any) -> None:
    wide = models.backbone(tmp_path / "wide", "llama", intermediate_size=768)
    folder = shutil.copytree(made / "lora", tmp_path / "copy")
    (folder / "training.json").unlink()
    argv = ["--backbone", str(wide), "--adapter", str(folder), "--category", "oranbench"]
    said = refused(argv, tmp_path / "out", capsys)
    assert "mlp.gate_proj.lora_B.weight is [512, 8]" in said
    assert "[768, 8]" in said


def test_a_twin_of_the_backbone(made: Path, tmp_path: Path, capsys: Any) -> None:
    """The same shapes with other weights: nothing but the digest tells them apart."""
    twin = models.backbone(tmp_path / "twin", "llama", seed=9)
    argv = ["--backbone", str(twin), "--adapter", str(made / "lora")]
    assert "made for another backbone (base) than twin" in refused(argv, tmp_path / "o", capsys)


def test_no_room(made: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    said = refused(["--backbone", str(made / "base")], tmp_path / "out", capsys, code=1)
    assert "1 MB free" in said


def test_damaged_headers_never_escape(made: Path, tmp_path: Path, capsys: Any) -> None:
    folder = shutil.copytree(made / "base", tmp_path / "copy")
    header = json.dumps({"x": {"dtype": "F16", "shape": [4], "data_offsets": [0, -8]}}).encode()
    for content in (b"\0" * 8, b"\xff" * 40, len(header).to_bytes(8, "little") + header):
        (folder / "model.safetensors").write_bytes(content)
        assert "model.safetensors" in refused(["--backbone", str(folder)], tmp_path / "o", capsys)
