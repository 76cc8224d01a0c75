"""Tiny models, tokenizers and adapters for the tests of the export package."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tel_edge.runtime.files import digest
from tel_edge.runtime.questions import prompt
from tel_edge.runtime.questions.prompt import LETTERS

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
SPLITS = {
    "llama": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
SPLITS["qwen2"] = SPLITS["qwen3"]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Llama 3.1's frequency scaling at a context that tiny models reach.
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CORPUS = [
    "The near-RT RIC hosts xApps that steer the E2 nodes' behaviour within 10 ms to 1 s.",
    "A gNB splits into CU and DU; the F1 interface joins them. It's defined in TS 38.470.",
    "Answer with one letter.\nWhich interface joins the SMO and the non-RT RIC?\nAnswer: A",
    *(f"\n{letter}) Answer: {letter}" for letter in LETTERS),
]
TRICKY = (
    "",
    " ",
    "A",
    "  leading and   inner    spaces ",
    "lines\n\nand\r\n tabs\t\tend\n",
    "1 12 123 1234 12345678 3.14 TS 38.470",
    "it's IT'S we'll they'd O'Reilly 'tis",
    "Überraschung naïve 東京 5G🙂🙂 \u00a0\u2003x",
    "a<|end_of_text|>b <|begin_of_text|>",
    "f(x)=[x**2 for x in y]; // #!?...",
    "Answer with one letter.\nWhat is O-RAN?\nA) a\nB) b\nAnswer: A",
)


def shared() -> Path:
    """Return the folder with the tokenizers of real backbones; it may be absent."""
    return Path(os.environ.get("TEL_SHARED", Path(__file__).parents[3] / "shared"))


def tokenizer(kind: str, size: int = 512, ignore_merges: bool | None = None) -> Any:
    """Train a byte-level BPE with the pre-tokenizer of Llama 3, Qwen 2 or GPT-2."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    whole = kind == "llama" if ignore_merges is None else ignore_merges
    made = Tokenizer(models.BPE(ignore_merges=whole))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind in SPLITS:
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLITS[kind]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS * 5, trainer)
    first = f"{BOS} $A" if kind == "llama" else "$A"
    made.post_processor = processors.TemplateProcessing(
        single=first, special_tokens=[(BOS, made.token_to_id(BOS))] if kind == "llama" else []
    )
    named = {"bos_token": BOS} if kind == "llama" else {}
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=EOS, pad_token=EOS, **named)


def backbone(folder: Path, kind: str, *, seed: int = 0, shards: bool = False, **more: Any) -> Path:
    """Write a random model of two layers with its tokenizer, in Hugging Face layout."""
    import torch
    from transformers import (
        Exaone4Config,
        Exaone4ForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    torch.manual_seed(seed)
    made = tokenizer(kind)
    size = len(made) + 5
    dtype = more.pop("dtype", torch.float16)
    numbers = {
        "vocab_size": size,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "eos_token_id": made.eos_token_id,
        "initializer_range": 0.05,
        **more,
    }
    if kind == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(bos_token_id=made.bos_token_id, **numbers))
    elif kind == "exaone4":
        full = ["full_attention"] * numbers["num_hidden_layers"]
        settings = {"sliding_window": None, "layer_types": full, **numbers}
        model = Exaone4ForCausalLM(Exaone4Config(bos_token_id=None, pad_token_id=None, **settings))
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**numbers))
    else:
        # Its heads are not hidden size over heads wide, as in the published models.
        model = Qwen3ForCausalLM(Qwen3Config(head_dim=128, **numbers))
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.5)
    model.to(dtype).save_pretrained(folder, max_shard_size="600KB" if shards else "5GB")
    made.save_pretrained(folder)
    return folder


def adapter(folder: Path, base: Path, *, seed: int = 1, **options: Any) -> Path:
    """Write a PEFT LoRA adapter whose B matrices are random, not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": list(PROJECTIONS),
        **options,
    }
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    made = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    made.save_pretrained(folder)
    return folder


def bind(folder: Path, base: Path, **changed: Any) -> Path:
    """Put a training.json into the adapter's folder, as the trainer does."""
    document: dict[str, Any] = {
        "backbone": {"name": base.name, "weights": digest.of_weights(base)},
        "prompt": prompt.digest(),
        "category": "oranbench",
        "split": "5" * 64,
        "config": {},
        "dataset": "ot-mini",
        **changed,
    }
    (folder / "training.json").write_text(json.dumps(document))
    return folder


def edit(path: Path, **changed: Any) -> None:
    """Set keys of a JSON file; a value of None stays as null."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def retensor(path: Path, change: Any) -> None:
    """Rewrite a safetensors file with `change(tensors)` applied to its dictionary."""
    from safetensors.torch import load_file, save_file

    tensors: Mapping[str, Any] = change(dict(load_file(path)))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
