"""Adapters in a form that PEFT does not read: what they are, and what makes them readable.

PEFT warns of tensors that it misses and then computes the bare backbone, so such a folder is
refused. Sources: peft 0.21.2, mlx-lm's `tuner/lora.py` and `tuner/utils.py` (commit 0367286),
torchtune's checkpointer, tried with PEFT where it can be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tel_edge.runtime.errors import InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What mlx-lm calls the weights beside a configuration of the same name as PEFT's.
MLX = "adapters.safetensors"
PREFIX = "base_model.model."
# What wraps a model, and the part of a name that it adds.
WRAPPERS = (
    ("_orig_mod.", "torch.compile"),
    ("_fsdp_wrapped_module.", "FSDP"),
    ("_checkpoint_wrapped_module.", "activation checkpointing"),
)
NAMED = re.compile(r"\.lora_[AB]\.([^.]+)\.weight")
SAVE = "save it again with save_pretrained, or rename the tensors"


def check_folder(folder: Path) -> None:
    """Raise `InputError` unless the folder has an adapter_config.json, saying what is there."""
    if (folder / CONFIG).is_file():
        return
    inside = sorted((file.parent.name for file in folder.glob(f"*/{CONFIG}")), key=_natural)
    if inside:
        raise InputError(
            f"{folder}: no {CONFIG}, but {len(inside)} folders that have one: "
            f"{' '.join(inside[-5:])}\nname one of them: --adapter {folder / inside[-1]}"
        )
    if (folder / "config.json").is_file():
        raise InputError(
            f"{folder}: no {CONFIG}: this is a whole model and no adapter\n"
            "pass it with --backbone; an adapter that was merged into it is part of it"
        )
    raise InputError(f"{folder}: no {CONFIG}; a PEFT folder is needed")


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise `InputError` for the adapter of a tool that has a format of its own."""
    if "lora_parameters" in config or (
        (folder / MLX).is_file() and not (folder / WEIGHTS).is_file()
    ):
        raise InputError(
            f"{folder}: an adapter of mlx-lm, which PEFT does not read\n"
            "fuse it with mlx_lm.fuse and pass that with --backbone, or save lora_a and lora_b "
            "transposed as PEFT's lora_A and lora_B, lora_alpha = scale x rank"
        )


def why(name: str) -> str | None:
    """Return why PEFT does not read a tensor of that name, and what to do, in two lines."""
    for part, by in WRAPPERS:
        if part in name:
            return f"{by} put {part!r} into its name, so PEFT ignores it\n{SAVE} without that"
    if "lora_a" in name or "lora_b" in name:
        return (
            "it is mlx-lm's or torchtune's own, so PEFT ignores it\n"
            "save it in PEFT's form: lora_A [rank, in] and lora_B [out, rank]"
        )
    if found := NAMED.search(name):
        return (
            f"its name holds the adapter's, {found[1]!r}, so PEFT reads it under that name only\n"
            f"{SAVE} without that"
        )
    if not name.startswith(PREFIX) and ".lora_" in name:
        return f"its name does not begin with {PREFIX!r}, so PEFT ignores it\n{SAVE} with that"
    return None


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that puts checkpoint-20 before checkpoint-100."""
    return [(int(part or 0), rest) for rest, part in re.findall(r"(\D*)(\d*)", name)]
