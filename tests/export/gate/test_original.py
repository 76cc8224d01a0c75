"""The model that an export is judged by, read without widening all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import export_models as models
import pytest

from tel_edge.export import original

pytest.importorskip("torch")


def answers(model: Any, adapter: Path) -> Any:
    import torch
    from peft import PeftModel

    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        bare = model(ids).logits
        made = PeftModel.from_pretrained(model, adapter)(ids).logits
    assert not torch.equal(bare, made)
    return torch.stack([bare, made])


def mixed(tensors: Any) -> Any:
    # Norms in float32 with bits that bfloat16 would drop.
    return {
        name: tensor.float() * 1.001 if "norm" in name else tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize(
    ("kind", "dtype", "change", "widened"),
    [
        ("llama", "bfloat16", None, True),
        ("qwen3", "float16", None, True),
        ("exaone4", "bfloat16", None, True),
        ("llama", "float32", None, False),
        ("llama", "bfloat16", mixed, False),
    ],
)
def test_what_is_widened_on_the_way_answers_as_the_whole(
    tmp_path: Path, kind: str, dtype: str, change: Any, widened: bool
) -> None:
    import torch

    base = models.backbone(
        tmp_path / "base",
        kind,
        dtype=getattr(torch, dtype),
        attention_bias=kind != "exaone4",
        tie_word_embeddings=kind == "llama",
    )
    if change:
        models.retensor(base / "model.safetensors", change)
    adapter = models.adapter(tmp_path / "peft", base)
    light = original.mapped(base)
    stored = {weight.dtype for weight in light.parameters() if weight.ndim > 1}
    assert stored == {getattr(torch, dtype) if widened else torch.float32}
    torch.testing.assert_close(
        answers(light, adapter), answers(original.load(base), adapter), rtol=0, atol=0
    )
