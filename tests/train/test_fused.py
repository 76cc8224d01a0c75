"""The fused LoRA layer computes what PEFT's computes, and saves the same adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import export_models as models
import pytest

torch = pytest.importorskip("torch")

from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from tel_edge.train.fused import fuse  # noqa: E402

IDS = torch.arange(1, 41).reshape(2, 20) % 90


def adapted(folder: Path, **of: Any) -> Any:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    given = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    made = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **given, **of))
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return made


def passed(model: Any, dtype: Any) -> tuple[Any, dict[str, Any]]:
    """Return logits and the adapter's gradients of one pass, under autocast if in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(input_ids=IDS).logits.float()
    torch.logsumexp(logits[:, -1], -1).sum().backward()
    return logits, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float32, 1e-5)], ids=["bf16", "f32"]
)
def test_results_and_gradients_are_those_of_peft(
    tmp_path: Path, kind: str, dtype: Any, tolerance: float
) -> None:
    base = models.backbone(tmp_path, kind, dtype=torch.float32, num_hidden_layers=2)
    plain, fused = adapted(base), adapted(base)
    assert fuse(fused, dtype) == 6
    layer = fused.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.base_layer.weight.dtype == dtype
    wanted, at_once = passed(plain, dtype)
    found, own = passed(fused, dtype)
    assert torch.allclose(found, wanted, rtol=tolerance, atol=tolerance)
    for name, gradient in at_once.items():
        assert own[name].dtype == torch.float32
        off = (own[name] - gradient).norm() / gradient.norm()
        assert off < tolerance, (name, float(off))
    saved = {n: p.detach() for n, p in fused.named_parameters() if p.requires_grad}
    for name, weight in plain.named_parameters():
        assert name not in saved or torch.equal(saved[name], weight)


def test_without_autocast_the_precision_around_it_is_kept(tmp_path: Path) -> None:
    base = models.backbone(tmp_path, "llama", dtype=torch.float32, num_hidden_layers=1)
    model = adapted(base).eval()
    wanted = model(input_ids=IDS).logits
    fuse(model, torch.bfloat16)
    found = model(input_ids=IDS).logits
    assert found.dtype == torch.float32
    assert torch.allclose(found, wanted, rtol=0.03, atol=0.03)


def test_layers_with_dropout_stay_pefts(tmp_path: Path) -> None:
    base = models.backbone(tmp_path, "llama", dtype=torch.float32, num_hidden_layers=1)
    assert fuse(adapted(base, lora_dropout=0.1), torch.float32) == 0
