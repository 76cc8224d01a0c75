"""Models of real size with random weights, for what does not depend on the values.

Size, speed and memory are those of the published models: their configuration, their tokenizer where
it is at hand, and random numbers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reference_converter import Usage, measured

from tel_edge.eval.folders import architectures
from tel_edge.runtime.errors import InputError, WorkError
from tel_edge.runtime.questions import prompt

EOS = "<|end_of_text|>"
CORPUS = [
    "The near-RT RIC hosts xApps that steer the E2 nodes' behaviour within 10 ms to 1 s.",
    "A gNB splits into CU and DU; the F1 interface joins them. It's defined in TS 38.470.",
    "Which interface joins the SMO and the non-RT RIC? They'd say A1, we'll see in 2026.",
]

# The columns of `Row.numbers`.
FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
    *("vocab_size", "max_position_embeddings"),
)


@dataclass(frozen=True)
class Row:
    """A backbone as its published configuration has it.

    `tokenizer` is a folder of shared/tokenizers, "" for one that is made up. `base` is the base of
    the rotation, `factor` that of Llama 3.1's scaling, 0 for none. `special` are the ids of the
    first and last token.
    """

    kind: str
    name: str
    tokenizer: str
    numbers: tuple[int, ...]
    base: float
    factor: float
    epsilon: float
    special: tuple[int | None, int]

    @property
    def config(self) -> dict[str, Any]:
        """Return transformers' fields."""
        made: dict[str, Any] = dict(zip(FIELDS, self.numbers, strict=True))
        made |= {"tie_word_embeddings": True, "rms_norm_eps": self.epsilon}
        made |= {"bos_token_id": self.special[0], "eos_token_id": self.special[1]}
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.base}
        if self.factor:
            rope |= {"rope_type": "llama3", "factor": self.factor}
            rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
            rope |= {"original_max_position_embeddings": 8192}
        made["rope_parameters"] = rope
        if self.kind == "exaone4":
            made |= {"sliding_window": None, "sliding_window_pattern": 0}
            # transformers cannot make this list up where no layer slides.
            made["layer_types"] = ["full_attention"] * made["num_hidden_layers"]
        return made

    def small(self) -> Row:
        """Return a tiny backbone of that kind with a made-up tokenizer, to try a script on."""
        name = f"small-{self.kind}"
        return replace(self, name=name, tokenizer="", numbers=SMALL, special=(None, 0))


# Source: the config.json of the repositories in runtime/bundles/backbones.py.
ROWS = {
    row.kind: row
    for row in (
        Row(
            "llama", "Llama-3.2-1B", "llama-3",
            (2048, 8192, 16, 32, 8, 64, 128256, 131072), 5e5, 32.0, 1e-5, (128000, 128001),
        ),
        Row(
            "qwen3", "Qwen3-0.6B", "qwen2",
            (1024, 3072, 28, 16, 8, 128, 151936, 40960), 1e6, 0.0, 1e-6, (151643, 151643),
        ),
        Row(
            "exaone4", "EXAONE-4.0-1.2B", "",
            (2048, 4096, 30, 32, 8, 64, 102400, 65536), 1e6, 16.0, 1e-5, (None, 0),
        ),
    )
}  # fmt: skip
# The numbers of a small one; rows stay multiples of 256, so K-quants apply.
SMALL = (256, 512, 2, 4, 2, 64, 512, 16384)


def built(row: Row, shared: Path, folder: Path) -> None:
    """Call `build` in a process of its own, whose memory goes away with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(build, row, shared, folder).result()


def build(row: Row, shared: Path, folder: Path) -> None:
    """Write a model folder with random weights in bfloat16, complete or not at all."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tokenizer(row, shared, partial)
    torch.manual_seed(42)
    config = AutoConfig.for_model(row.kind, **row.config)
    # Names and shapes only: transformers' own initialisation takes minutes.
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    state = {}
    for name, weight in model.named_parameters():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = torch.empty(weight.shape)
        values = values.fill_(1.0) if weight.dim() == 1 else values.normal_(std=0.02)
        state[name] = values.to(torch.bfloat16)
    config.architectures = [type(model).__name__]
    config.save_pretrained(partial)
    save_file(state, partial / "model.safetensors", metadata={"format": "pt"})
    os.replace(partial, folder)


def tokenizer(row: Row, shared: Path, folder: Path) -> None:
    """Write the files of the row's tokenizer into `folder`."""
    if row.tokenizer:
        source = shared / "tokenizers" / row.tokenizer
        if not source.is_dir():
            raise InputError(f"no {source}; pass the folder that holds tokenizers as --shared")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(source / name, folder / name)
        return
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    # GPT-2's rules. The ids that training leaves free are padding.
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        CORPUS * 5,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=[EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token=EOS).save_pretrained(folder)


def peft(
    model: Path, folder: Path, rank: int, category: str, weights: str, seed: int | None = None
) -> None:
    """Write a PEFT folder with random matrices on all seven projections of `model`.

    `weights` is the digest of the model in a bundle's manifest. Equal seeds give equal matrices;
    None stands for the rank.
    """
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((model / "config.json").read_text())
    shape = architectures.shape_of(config, str(model))
    rng, tensors = np.random.default_rng(rank if seed is None else seed), {}
    for block in range(shape.layers):
        for tensor in architectures.linear(shape, block):
            name = f"base_model.model.{tensor.source.removesuffix('.weight')}"
            rows, columns = tensor.shape
            for part, size in (("A", (rank, columns)), ("B", (rows, rank))):
                values = rng.standard_normal(size, dtype=np.float32)
                tensors[f"{name}.lora_{part}.weight"] = values * np.float32(0.02)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = [source.split(".")[1] for source, *_ in architectures.LINEAR]
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": targets,
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    training = {
        "backbone": {"name": model.name, "weights": weights},
        "prompt": prompt.digest(),
        "category": category,
        "split": "0" * 64,
        "config": {},
        "dataset": "none",
    }
    # Last: it says that the folder is complete.
    (folder / "training.json").write_text(json.dumps(training))


def exported(model: Path, out: Path, *options: str) -> tuple[Usage, list[dict[str, Any]]]:
    """Run tel-export in a child; return what it took and the files that it lists."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "tel_edge.export.commands.export",
        "--backbone",
        str(model),
    ]
    command += ["--out", str(out), "--json", "--quiet", *options]
    usage, text = measured(command)
    return usage, json.loads(text.splitlines()[-1])["files"]


def written(files: list[dict[str, Any]]) -> float:
    """Return the seconds in which the new ones of an export's files were written, not judged."""
    return sum(file["seconds"][0] for file in files if file["seconds"])


def check_space(home: Path, needed: int, option: str) -> None:
    """Raise `WorkError` unless so many bytes are free; `option` chooses another folder."""
    free = shutil.disk_usage(home).free
    if free < needed:
        raise WorkError(
            f"{home}: {free / 1e6:,.0f} MB free, {needed / 1e6:,.0f} MB needed; make room, or "
            f"pass {option} on another disk"
        )
