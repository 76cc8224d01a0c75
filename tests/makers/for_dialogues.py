"""What the tests of training on dialogues share: templates, tiny backbones, data sets."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import export_models as models

# How the supported families show a dialogue, without tools and reasoning.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen3 shows an empty thought before the last answer alone.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# EXAONE begins an answer with an empty thought, which it does not show in earlier answers.
EXAONE = (
    "{% for m in messages %}[|{{ m.role }}|]\n{{ m.content }}[|endofturn|]\n{% endfor %}"
    "{% if add_generation_prompt %}[|assistant|]\n<think>\n\n</think>\n\n{% endif %}"
)
# Of each family: its template, the special tokens in it, the one that ends an answer.
FAMILIES: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "chatml": (CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "qwen3": (QWEN3, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "llama3": (LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
    "exaone": (
        EXAONE,
        ("[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]"),
        "[|endofturn|]",
    ),
}
WORDS = "the SIM roaming router xApp restart, check APN first; 5G signal? is lost. O-RAN E2".split()


def tokens(folder: Path, family: str) -> Path:
    """Put a tokenizer with that family's template and end token into a folder."""
    template, special, end = FAMILIES[family]
    made = models.tokenizer("llama" if family == "llama3" else "qwen3")
    made.add_special_tokens({"additional_special_tokens": list(special)})
    made.eos_token = end
    made.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template)
    config = folder / "config.json"
    known = json.loads(config.read_text()) if config.exists() else {}
    known["eos_token_id"] = made.convert_tokens_to_ids(end)
    config.write_text(json.dumps(known))
    return folder


def backbone(folder: Path, family: str = "chatml", kind: str = "llama", **more: Any) -> Path:
    """Write a tiny backbone that converses by a family's template."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 400}
    import torch

    models.backbone(folder, kind, **{"dtype": torch.float32, **small, **more})
    return tokens(folder, family)


def said(chance: random.Random, most: int = 12) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(1, most)))


def dialogue(chance: random.Random, turns: int = 1, system: bool = False) -> list[dict[str, str]]:
    made = [{"role": "system", "content": said(chance)}] if system else []
    for _ in range(turns):
        made.append({"role": "user", "content": said(chance)})
        made.append({"role": "assistant", "content": said(chance)})
    return made


def write(folder: Path, **parts: Sequence[Any]) -> Path:
    """Write a data set: rows, or lists of messages, by part."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        made = (row if isinstance(row, dict) else {"messages": row} for row in rows)
        text = "".join(json.dumps(row) + "\n" for row in made)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def dataset(folder: Path, train: int = 12, others: int = 4, seed: int = 0) -> Path:
    chance = random.Random(seed)
    sizes = {"train": train, "validation": others, "test": others, "unseen": others}
    return write(
        folder,
        **{name: [dialogue(chance) for _ in range(size)] for name, size in sizes.items()},
    )
