"""A byte-level BPE of tokenizer.json as GGUF metadata.

The engine has its pre-tokenizers built in and knows them by name. Here the name follows from the
rules in tokenizer.json itself, not from a known list of vocabularies, so a vocabulary of one's own
works as long as its rules are those of a row of `pre_tokenizers`. Sources: the serialisation
of Hugging Face's tokenizers, and the `tokenizer.ggml.*` keys of ggml's docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval.folders import pre_tokenizers, special
from tel_edge.eval.folders.files import json_object
from tel_edge.eval.folders.gguf_layout import CONTROL, NORMAL, UNUSED, USER_DEFINED
from tel_edge.runtime.engines.readable import byte_letters, text_letters
from tel_edge.runtime.errors import InputError

ONNX = "--format onnx takes any tokenizer.json"


@dataclass(frozen=True)
class Vocabulary:
    """What goes under `tokenizer.*`: one token and type for each id; ids are None if not given.

    `normalizer` is "" or "NFC", which the engine does not apply by itself. `missing` are the bytes
    of texts that have no token, in order; with them the engine reads some texts otherwise, and the
    runtime refuses those (`runtime.engines.readable`).
    """

    pre: str
    missing: bytes
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    bos: int | None
    eos: int | None
    pad: int | None
    add_bos: bool
    add_eos: bool
    chat_template: str
    normalizer: str


def load(folder: Path, size: int, architecture: str = "") -> Vocabulary:
    """Read a folder's tokenizer and pad it to `size` ids, the rows of the embedding.

    `architecture` is the model's GGUF name.

    Raises `InputError` for anything the engine would not do in the same way, naming the rule.
    """
    path = folder / "tokenizer.json"
    document = json_object(path)
    settings = special.settings(folder)
    try:
        model = _check_model(document)
        pre = pre_tokenizers.find(
            document.get("pre_tokenizer"), bool(model.get("ignore_merges")), architecture
        )
        missing = _missing(document, model)
        tokens, types = _tokens(document, model, size)
        ids = {token: at for at, token in enumerate(tokens)}
        first, last = special.around(document.get("post_processor"))
        bos, eos, pad = (
            special.named(settings, kind, ids, len(tokens)) for kind in ("bos", "eos", "pad")
        )
        # What the template puts first is what the engine has to put first, whatever its name.
        bos = special.place(first, ids) if first else bos
        eos = special.place(last, ids) if last else eos
        return Vocabulary(
            pre=pre.name,
            missing=missing,
            tokens=tuple(tokens),
            types=tuple(types),
            merges=tuple(_merges(model)),
            bos=bos,
            eos=eos,
            pad=pad,
            add_bos=bool(first),
            add_eos=bool(last),
            chat_template=special.template(folder, settings),
            normalizer=_normalizer(document.get("normalizer")),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path}: not a tokenizer of this format ({error!r})") from None


def _check_model(document: Mapping[str, Any]) -> Mapping[str, Any]:
    model: Mapping[str, Any] = document.get("model") or {}
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind == "BPE" and model.get("byte_fallback") and byte_letters()[32] not in model["vocab"]:
        kind = "SentencePiece"
    elif kind == "Unigram":
        kind = "Unigram (SentencePiece)"
    if kind != "BPE":
        raise InputError(
            f"a {kind} tokenizer cannot be exported to GGUF, a byte-level BPE can; {ONNX}"
        )
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise InputError(
                f"the BPE option {option}={model[option]!r} cannot be exported; {ONNX}"
            )
    return model


def _missing(document: Mapping[str, Any], model: Mapping[str, Any]) -> bytes:
    """Return the bytes of texts that have no token; both sides leave them out."""
    lacking = {char: at for char, at in text_letters().items() if char not in model["vocab"]}
    if not lacking:
        return b""
    instead = model.get("unk_token")
    if model.get("byte_fallback"):
        coded = {char: [f"<0x{byte:02X}>" for byte in char.encode()] for char in lacking}
        found = (names for names in coded.values() if model["vocab"].keys() >= set(names))
        instead = next(found, [instead])[0]
    if instead is not None:
        raise InputError(
            f"{len(lacking)} bytes have no token, {min(lacking.values()):#04x} first, and "
            f"{instead!r} stands for them, where the engine leaves them out; {ONNX}"
        )
    for added in document.get("added_tokens") or []:
        if added["content"] in lacking:
            raise InputError(
                f"the added token {added['content']!r} is spelled as byte "
                f"{lacking[added['content']]:#04x}, which has no token of its own; {ONNX}"
            )
    return bytes(sorted(lacking.values()))


def _tokens(
    document: Mapping[str, Any], model: Mapping[str, Any], size: int
) -> tuple[list[str], list[int]]:
    tokens: dict[int, str] = {at: token for token, at in model["vocab"].items()}
    types = dict.fromkeys(tokens, NORMAL)
    for added in document.get("added_tokens") or []:
        token, at = added["content"], added["id"]
        if tokens.get(at, token) != token:
            raise InputError(f"id {at} is both {tokens[at]!r} and {token!r}")
        for option in ("single_word", "lstrip", "rstrip"):
            if added.get(option) and not added["special"]:
                raise InputError(f"added token {token!r}: {option} cannot be exported")
        if at >= size and added["special"]:
            # As one for padding that was added later: it is in no text, and no answer.
            continue
        tokens[at] = token
        types[at] = CONTROL if added["special"] else USER_DEFINED
    beyond = max(tokens, default=-1)
    if beyond >= size:
        raise InputError(f"token id {beyond} is beyond config.json's vocab_size {size}")
    for at in range(size):
        if at not in tokens:
            tokens[at], types[at] = f"[PAD{at}]", UNUSED
    if len(set(tokens.values())) < size:
        raise InputError("two ids have the same token")
    return [tokens[at] for at in range(size)], [types[at] for at in range(size)]


def _merges(model: Mapping[str, Any]) -> Iterator[str]:
    if not model["merges"]:
        raise InputError("a BPE without merges cannot be exported")
    for merge in model["merges"]:
        text = merge if isinstance(merge, str) else " ".join(merge)
        parts = text.split(" ")
        if len(parts) != 2:
            raise InputError(f"merge {merge!r} has a space inside a part")
        if not model["vocab"].keys() >= {*parts, "".join(parts)}:
            raise InputError(f"merge {merge!r} is not of tokens; copy the file again")
        yield text


def _normalizer(given: Mapping[str, Any] | None) -> str:
    if given is None:
        return ""
    kinds = given["normalizers"] if given["type"] == "Sequence" else [given]
    if any(kind["type"] != "NFC" for kind in kinds):
        raise InputError(
            f"the normalizer {dict(given)} cannot be exported to GGUF, none and NFC can; {ONNX}"
        )
    return "NFC" if kinds else ""


def metadata(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the GGUF keys: ids are uint32, flags bool, the rest strings and arrays of them."""
    keys: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": vocabulary.pre,
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": vocabulary.types,
        "tokenizer.ggml.merges": vocabulary.merges,
        "tokenizer.ggml.bos_token_id": vocabulary.bos,
        "tokenizer.ggml.eos_token_id": vocabulary.eos,
        "tokenizer.ggml.padding_token_id": vocabulary.pad,
        "tokenizer.ggml.add_bos_token": vocabulary.add_bos,
        "tokenizer.ggml.add_eos_token": vocabulary.add_eos,
        "tokenizer.chat_template": vocabulary.chat_template or None,
        "tel_edge.tokenizer.normalizer": vocabulary.normalizer or None,
        "tel_edge.tokenizer.missing_bytes": vocabulary.missing.hex() or None,
    }
    return {name: value for name, value in keys.items() if value is not None}
