"""Numbers in a GGUF header that end the process which loads them are refused before."""

from __future__ import annotations

import struct
from pathlib import Path

import export_models as models
import pytest
from gguf_files import File, opened

from tel_edge.export.commands import export
from tel_edge.runtime import cli
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files.gguf_header import check

KINDS = ("llama", "qwen2", "qwen3", "exaone4")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        base = models.backbone(root / kind, kind)
        models.bind(models.adapter(root / "lora" / kind, base), base)
        argv = ["--backbone", str(base), "--quant", "Q8_0", "--adapter", str(root / "lora" / kind)]
        argv += ["--out", str(root / "bundles" / kind), "--quiet", "--no-verify"]
        assert cli.run(export.parser(), export.work, argv) == 0
    return root / "bundles"


def backbone(bundles: Path, kind: str) -> Path:
    return bundles / kind / f"{kind}-Q8_0.gguf"


def adapter(bundles: Path, kind: str) -> Path:
    [found] = (bundles / kind).glob("*LoRA.gguf")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_what_tel_export_makes_passes(kind: str, bundles: Path) -> None:
    assert check(backbone(bundles, kind)).metadata[f"{kind}.block_count"] == 2
    assert check(adapter(bundles, kind)).metadata["general.type"] == "adapter"


# (key without the architecture, value, value type, what is said).
NUMBERS: tuple[tuple[str, float | str, int, str], ...] = (
    ("block_count", 0, 4, "block_count is 0; wanted 1 to 512"),
    ("block_count", 600, 4, "block_count is 600; wanted 1 to 512"),
    ("block_count", 1 << 31, 4, "block_count is 2147483648; wanted 1 to 512"),
    ("block_count", 3, 4, "block_count is 3; the file has tensors of 2 blocks"),
    ("block_count", 2, 10, "block_count is 2; of value type 10; type 4 (uint32) is read"),
    ("context_length", 0, 4, "context_length is 0; wanted 1 to"),
    ("context_length", 1 << 31, 4, "context_length is 2147483648"),
    ("attention.head_count", 0, 4, "head_count is 0; wanted 1 to"),
    ("attention.head_count_kv", 3, 4, "head_count_kv is 3; it does not divide 4 heads"),
    ("attention.head_count_kv", 5, 4, "head_count_kv is 5; wanted 1 to 4"),
    ("rope.dimension_count", 6, 4, "rope.dimension_count is 6; wanted"),
    ("attention.value_length", 4, 4, "attention.value_length is 4; wanted"),
    ("feed_forward_length", 64, 4, "ffn_"),
    ("embedding_length", 128, 4, "token_embd.weight: shape [256, "),
    ("expert_count", 2000, 4, "expert_count is 2000; wanted 0 to 1,024"),
    ("expert_count", 4, 4, "expert_used_count is missing"),
    ("expert_used_count", 2, 4, "expert_used_count is 2; wanted 0"),
    ("expert_group_count", 2, 4, "expert_group_count is 2; wanted 0"),
    ("nextn_predict_layers", 2, 4, "nextn_predict_layers is 2; wanted 0 to 1"),
    ("pooling_type", 9, 4, "pooling_type is 9; wanted 0 to 4"),
    ("attention.layer_norm_rms_epsilon", -1.0, 6, "wanted a number from 0 on"),
    ("attention.layer_norm_rms_epsilon", float("nan"), 6, "wanted a number from 0 on"),
    ("rope.scaling.type", "spiral", 8, "wanted one of none linear yarn longrope"),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "value", "type", "said"), NUMBERS)
def test_a_number_that_does_not_fit(
    kind: str, name: str, value: float | str, type: int, said: str, bundles: Path, tmp_path: Path
) -> None:
    file = File.of(backbone(bundles, kind).read_bytes()).put(f"{kind}.{name}", value, type)
    (tmp_path / "x.gguf").write_bytes(file.bytes())
    with pytest.raises(InputError, match=r"x\.gguf: .*; export it again") as caught:
        check(tmp_path / "x.gguf")
    assert said in str(caught.value)


def test_what_else_ends_the_process(bundles: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"

    def refused(file: File, said: str) -> None:
        path.write_bytes(file.bytes())
        with pytest.raises(InputError) as caught:
            check(path)
        assert said in str(caught.value)

    def fresh(adapted: bool = False) -> File:
        return File.of((adapter if adapted else backbone)(bundles, "llama").read_bytes())

    refused(fresh().put("general.alignment", 16), "general.alignment 16 is no multiple of 32")
    refused(fresh().put("tokenizer.ggml.model", "none"), "no vocabulary, so no text can be read")
    refused(fresh().put("tokenizer.ggml.model", "llama"), "of the 256 bytes have no token")
    refused(fresh().put("tokenizer.ggml.bos_token_id", 99_999), "bos_token_id is 99,999, there")
    changed = fresh()
    changed.tensors["blk.0.attn_norm.weight"].kind = 1
    refused(changed, "tensor blk.0.attn_norm.weight: type number 1 instead of 0")
    refused(fresh().rename("blk.1.attn_q.weight", "blk.7.attn_q.weight"), "tensors of 3 blocks")
    # In an adapter.
    for name in ("general.architecture", "adapter.type"):
        refused(fresh(True).put(name, 1), f"{name} is of value type 4, 8 is read")
    refused(fresh(True).put("adapter.lora.alpha", 16), "adapter.lora.alpha is of value type 4, 6")
    refused(fresh(True).put("adapter.lora.alpha", float("inf"), 6), "is no finite number")
    changed = fresh(True)
    name, tensor = next(iter(changed.tensors.items()))
    tensor.shape = [tensor.shape[0], tensor.shape[1] // 2, 2]
    refused(changed, f"tensor {name}: shape ")
    # Names that the engine gives to empty tokens.
    tokens = [b"[EMPTY_1]", b""]
    array = struct.pack("<IQ", 8, 2) + b"".join(struct.pack("<Q", len(t)) + t for t in tokens)
    refused(File({"tokenizer.ggml.tokens": (9, array)}), "has a token twice")


def test_none_of_it_reaches_the_engine(bundles: Path, tmp_path: Path) -> None:
    """In a process of its own, which would die."""

    def files() -> list[tuple[Path, ...]]:
        made = []
        for at, (name, value, type, _) in enumerate(NUMBERS):
            file = File.of(backbone(bundles, "qwen3").read_bytes())
            path = tmp_path / f"{at}.gguf"
            path.write_bytes(file.put(f"qwen3.{name}", value, type).bytes())
            made.append((path,))
        return made

    whole = (backbone(bundles, "qwen3"), adapter(bundles, "qwen3"))
    *said, last = opened([*files(), whole])
    assert [one.partition(" ")[0] for one in said] == ["refused"] * len(NUMBERS)
    assert last == "answered"
