"""The card in an adapter's folder."""

from __future__ import annotations

from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

from tel_edge.runtime.bundles import backbones  # noqa: E402
from tel_edge.train import card  # noqa: E402


def record(**more: Any) -> dict[str, Any]:
    config = {"rank": 16, "alpha": 32, "targets": ["q_proj", "v_proj"], "learning_rate": 5e-4,
              "batch": 16, "epochs": 10}  # fmt: skip
    return {
        "category": "oranbench",
        "dataset": "ot-full",
        "split": "a" * 64,
        "rows": {"train": 1200, "train_uncapped": 1500},
        "config": config,
        "curve": [{"epoch": 1.0}, {"epoch": 2.0}],
        "best": {"epoch": 1.0, "validation_loss": 0.25},
        "seed": 42,
        "versions": {"torch": "2.13.0"},
        **more,
    }


def test_it_says_what_the_hub_and_a_reader_look_for() -> None:
    text = card.render(record(), backbones.find("qwen3-0.6b"))
    _, front, body = text.split("---\n", 2)
    known = yaml.safe_load(front)
    assert known["base_model"] == "Qwen/Qwen3-0.6B"
    assert (known["library_name"], known["base_model_relation"]) == ("peft", "adapter")
    assert "| trained on | ot-full, 1,200 of 1,500 questions of its train part" in body
    assert "2 of at most 10; this is the best one, 1 |" in body
    assert "q_proj, v_proj" in body
    # PEFT's own has this in every field.
    assert "More Information Needed" not in text


def test_what_speaks_and_what_is_on_no_hub() -> None:
    spoken = record(category="care", kept="last", best={"epoch": 2.0, "validation_loss": 0.2})
    text = card.render(spoken, backbones.find("tel-nano"))
    assert "base_model" not in yaml.safe_load(text.split("---\n", 2)[1])
    assert "dialogues of its train part" in text
    assert "this is the last one, 2 |" in text
    assert "answers in sentences" in text
