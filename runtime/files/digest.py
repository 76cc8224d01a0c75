"""SHA-256 digests of files, folders and values: what an artifact was made of."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tel_edge.runtime.errors import InputError


def of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of_value(value: Any) -> str:
    """Return the SHA-256 of a value's JSON with sorted keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    # JSON may escape half a surrogate pair, which UTF-8 alone has no bytes for.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def in_policy(text: str) -> str:
    """Return a style or script as a Content-Security-Policy names it.

    Source: https://www.w3.org/TR/CSP3/.
    """
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def of_folder(folder: Path, patterns: Iterable[str], of: Callable[[Path], str] = of_file) -> str:
    """Return one SHA-256 over names and contents of the files in `folder` that match.

    `of` gives the SHA-256 of one file; see `tel_edge.runtime.files.checked` for one that remembers.
    Raises `InputError` for a match that is no regular file.
    """
    files = {file.name: file for pattern in patterns for file in folder.glob(pattern)}
    for name, file in files.items():
        # A pipe would be waited for without end.
        if not file.is_file():
            raise InputError(f"{folder / name}: not a regular file; remove it, or copy it again")
    return of_value([(name, of(folder / name)) for name in sorted(files)])


def of_weights(folder: Path, of: Callable[[Path], str] = of_file) -> str:
    """Return the digest of a Hugging Face model folder's weights and configuration.

    Raises `InputError` for a folder without weights, whose digest would be that of any such one.
    """
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: no *.safetensors; copy or download the folder again")
    return of_folder(folder, ("*.safetensors", "config.json"), of)


def of_tokenizer(folder: Path) -> str:
    """Return the digest of a Hugging Face folder's tokenizer files."""
    return of_folder(folder, ("tokenizer.json", "tokenizer_config.json"))


# What of the tokenizer files changes no token of a plain prompt: how chats are put together, how
# batches are padded and cut, how ids become text, and notes of who wrote the file.
NO_TOKEN = {
    *("chat_template", "padding", "truncation", "decoder", "version", "pad_token", "padding_side"),
    *("truncation_side", "model_max_length", "max_length", "stride", "pad_to_multiple_of"),
    *("pad_token_type_id", "clean_up_tokenization_spaces", "errors", "name_or_path", "backend"),
    *("transformers_version", "processor_class", "model_input_names", "is_local", "auto_map"),
    *("local_files_only", "special_tokens_map_file", "truncation_strategy"),
}
# Names of the class that takes tokenizer.json as it is, by transformers 4 and 5.
PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")


def of_tokenization(folder: Path) -> str:
    """Return the digest of what a Hugging Face folder's tokenizer makes of a plain prompt.

    Another chat template, another padding token or the same files laid out otherwise leave it as it
    is. Raises `InputError` for a file that is no JSON. Source of the names: tokenizers 0.22 and
    transformers 5's `tokenizer_config.json`.
    """
    read = []
    for name in ("tokenizer.json", "tokenizer_config.json"):
        file = folder / name
        try:
            found = json.loads(file.read_bytes()) if file.is_file() else {}
            kept = {k: v for k, v in found.items() if v is not None and k not in NO_TOKEN}
        except (ValueError, RecursionError, AttributeError) as error:
            raise InputError(f"{file}: not a JSON object ({error}); download it again") from None
        if kept.get("tokenizer_class") in PLAIN_CLASSES:
            del kept["tokenizer_class"]
        if name == "tokenizer_config.json":
            for kind in ("bos", "eos"):
                # Its name alone puts the token nowhere.
                if not kept.get(f"add_{kind}_token"):
                    kept.pop(f"{kind}_token", None)
        read.append(kept)
    return of_value(read)


def of_adapter(folder: Path) -> str:
    """Return the digest of a PEFT folder: its weights and its configuration."""
    return of_folder(folder, ("adapter_model.safetensors", "adapter_config.json"))
