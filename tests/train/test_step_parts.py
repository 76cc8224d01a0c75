"""A batch in parts has the gradients of the batch, and computes no more padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import export_models as models
import pytest

torch = pytest.importorskip("torch")

from tel_edge.train.data import collate  # noqa: E402
from tel_edge.train.parts import again, parted  # noqa: E402
from tel_edge.train.trainer import AnswerTrainer  # noqa: E402

LENGTHS = (3, 40, 7, 7, 12, 39, 5)


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    rows = [
        {
            "input_ids": torch.randint(0, 200, (length,), generator=generator).tolist(),
            "target": 20 + at,
            "choices": [20 + at, 30][: 1 + at % 2],
        }
        for at, length in enumerate(LENGTHS)
    ]
    return collate(rows)


@pytest.mark.parametrize("most", [1, 20, 50, 10_000])
def test_every_row_is_there_once_without_padding(most: int) -> None:
    whole = batch()
    made = list(parted(whole, most, by_tokens=False))
    assert sorted(t for part in made for t in part["target"].tolist()) == [*range(20, 27)]
    assert sum(part["weight"] for part in made) == pytest.approx(1)
    for part in made:
        rows, width = part["input_ids"].shape
        assert rows == 1 or rows * width <= most
        assert bool(part["attention_mask"].sum(1).max() == width)
        for at, target in enumerate(part["target"].tolist()):
            own = part["input_ids"][at][part["attention_mask"][at].bool()]
            row = whole["target"].tolist().index(target)
            assert torch.equal(own, whole["input_ids"][row][whole["attention_mask"][row].bool()])
            assert torch.equal(part["choices"][at], whole["choices"][row])


@pytest.mark.parametrize("all_tokens", [False, True])
def test_gradients_are_those_of_the_batch(tmp_path: Path, all_tokens: bool) -> None:
    from transformers import AutoModelForCausalLM

    base = models.backbone(tmp_path, "llama", dtype=torch.float32, num_hidden_layers=1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    class Loss:
        """`compute_loss` without all that a `Trainer` wants to be made."""

    trainer = Loss()
    trainer.all_tokens = all_tokens  # type: ignore[attr-defined]

    def gradients(given: list[dict[str, Any]]) -> tuple[float, Any]:
        model.zero_grad()
        total = 0.0
        for part in given:
            loss = AnswerTrainer.compute_loss(trainer, model, part)  # type: ignore[arg-type]
            loss.backward()
            total += float(loss)
        return total, model.model.layers[0].self_attn.q_proj.weight.grad.clone()

    wanted, at_once = gradients([batch()])
    found, added = gradients(list(parted(batch(), 50, all_tokens)))
    assert found == pytest.approx(wanted, rel=1e-5)
    assert torch.allclose(added, at_once, rtol=1e-3, atol=1e-7)


def test_what_is_long_is_computed_again(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = models.backbone(tmp_path, "llama", dtype=torch.float32, num_hidden_layers=1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    norms: list[int] = []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: norms.append(1))
    found = []
    for wanted in (False, True):
        again(model, wanted)
        model.zero_grad()
        norms.clear()
        model(input_ids=torch.arange(1, 9)[None]).logits.sum().backward()
        found.append((len(norms), model.model.layers[0].mlp.up_proj.weight.grad.clone()))
    (kept, plain), (twice, same) = found
    assert (kept, twice) == (1, 2)
    assert torch.allclose(plain, same)
