"""The special tokens and the chat template of a model folder's tokenizer.

Source: transformers 5.23, `tokenization_utils_base.from_pretrained`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tel_edge.eval.folders.files import json_object
from tel_edge.runtime.errors import InputError

LEGACY = "special_tokens_map.json"


def settings(folder: Path) -> dict[str, Any]:
    """Return what a folder's files say of its tokenizer, the last file counting most."""
    made: dict[str, Any] = {}
    for name in ("generation_config.json", "config.json", "tokenizer_config.json", LEGACY):
        # transformers 5.23 reads the last one where the one before it is as old.
        if (folder / name).is_file() and (name != LEGACY or "added_tokens_decoder" not in made):
            given = json_object(folder / name)
            made |= {key: value for key, value in given.items() if value is not None}
    return made


def around(given: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return the special tokens put before and after a text, "" for none.

    `add_bos_token` and `add_eos_token` of tokenizer_config.json say nothing where there is a
    tokenizer.json: transformers 5.23 drops both (`tokenization_utils_base.from_pretrained`).
    """
    for part in (given or {}).get("processors", [given] if given else []):
        if part["type"] == "TemplateProcessing":
            pieces = [piece.get("SpecialToken", {}).get("id", "") for piece in part["single"]]
            text = pieces.index("") if "" in pieces else -1
            if text not in (0, 1) or len(pieces) - text > 2 or pieces.count("") != 1:
                raise InputError(f"the template {part['single']} cannot be exported")
            return ("".join(pieces[:text]), "".join(pieces[text + 1 :]))
        if part["type"] != "ByteLevel":
            raise InputError(f"the post-processor {part['type']} cannot be exported")
    return "", ""


def _text(token: Any) -> str:
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else ""


def named(settings: Mapping[str, Any], kind: str, ids: Mapping[str, int], size: int) -> int | None:
    """Return the id of the token of that kind, bos, eos or pad, in a vocabulary of `size`."""
    # The tokenizer's own name first: a model's eos_token_id may be a list of several.
    name = _text(settings.get(f"{kind}_token"))
    if name:
        return ids.get(name) if kind == "pad" else place(name, ids)
    value = settings.get(f"{kind}_token_id")
    at = value[0] if isinstance(value, list) and value else value
    if at is None:
        return None
    if not isinstance(at, int) or not 0 <= at < size:
        raise InputError(f"{kind}_token_id {at!r} is outside the {size} tokens")
    return at


def place(token: str, ids: Mapping[str, int]) -> int:
    """Return the id of a token. Raises `InputError` where it has none."""
    if token not in ids:
        raise InputError(f"the special token {token!r} has no id")
    return ids[token]


def template(folder: Path, settings: Mapping[str, Any]) -> str:
    """Return the chat template of a folder, its file before its settings; empty without one."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{file.name}: not UTF-8 ({error.reason}); save it as UTF-8") from None
    given = settings.get("chat_template", "")
    if isinstance(given, list):
        named = {entry["name"]: entry["template"] for entry in given}
        given = named.get("default", "")
    if not isinstance(given, str):
        return ""
    if any("\ud800" <= letter <= "\udfff" for letter in given):
        raise InputError("the chat template has half a surrogate pair, which is no text")
    return given
