"""SHA-256 digests of files, folders and values: what an artifact was made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of_value(value: Any) -> str:
    """Return the SHA-256 of a value's JSON with sorted keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def of_folder(folder: Path, patterns: Iterable[str]) -> str:
    """Return one SHA-256 over names and contents of the files in `folder` that match."""
    names = sorted({file.name for pattern in patterns for file in folder.glob(pattern)})
    return of_value([(name, of_file(folder / name)) for name in names])


def of_weights(folder: Path) -> str:
    """Return the digest of a Hugging Face model folder's weights and configuration."""
    return of_folder(folder, ("*.safetensors", "config.json"))


def of_tokenizer(folder: Path) -> str:
    """Return the digest of a Hugging Face folder's tokenizer."""
    return of_folder(folder, ("tokenizer.json", "tokenizer_config.json"))


def of_adapter(folder: Path) -> str:
    """Return the digest of a PEFT folder: its weights and its configuration."""
    return of_folder(folder, ("adapter_model.safetensors", "adapter_config.json"))
