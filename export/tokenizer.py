"""A byte-level BPE of tokenizer.json as GGUF metadata.

The engine has its pre-tokenizers built in and knows them by name. Here the name follows from the
rules in tokenizer.json itself, not from a known list of vocabularies, so a vocabulary of one's own
works as long as its rules are those of a row. Sources: the serialisation of Hugging Face's
tokenizers, and the `tokenizer.ggml.*` keys of ggml's docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval.folders.files import json_object
from tel_edge.runtime.errors import InputError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
LEGACY = "special_tokens_map.json"

_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_3 = ("split " + _HEAD + r"\p{N}{1,3}" + _TAIL, "bytes")
_QWEN_2 = ("split " + _HEAD + r"\p{N}" + _TAIL, "bytes")


@dataclass(frozen=True)
class PreTokenizer:
    """One row: the engine's name, the rules it stands for, and whether whole words skip merges.

    `architecture` is the only one that the row is for, "" where any may have it.
    """

    name: str
    rules: tuple[str, ...]
    ignore_merges: bool
    architecture: str = ""


PRE_TOKENIZERS = (
    PreTokenizer("llama-bpe", _LLAMA_3, True),
    PreTokenizer("dbrx", _LLAMA_3, False),
    PreTokenizer("qwen2", _QWEN_2, False),
    PreTokenizer("exaone4", ("words and bytes",), False, "exaone4"),
    PreTokenizer("gpt-2", ("words and bytes",), False),
)


@dataclass(frozen=True)
class Vocabulary:
    """What goes under `tokenizer.*`: one token and type for each id; ids are None if not given.

    `normalizer` is "" or "NFC", which the engine does not apply by itself.
    """

    pre: str
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
    settings: dict[str, Any] = {}
    for name in ("generation_config.json", "config.json", "tokenizer_config.json", LEGACY):
        # transformers 5.23 reads the last one where the one before it is as old.
        if (folder / name).is_file() and (name != LEGACY or "added_tokens_decoder" not in settings):
            given = json_object(folder / name)
            settings |= {key: value for key, value in given.items() if value is not None}
    try:
        model = document.get("model") or {}
        _check_model(model)
        tokens, types = _tokens(document, model, size)
        ids = {token: at for at, token in enumerate(tokens)}
        first, last = _around(document.get("post_processor"))
        bos, eos, pad = (
            _special(settings, kind, ids, len(tokens)) for kind in ("bos", "eos", "pad")
        )
        # What the template puts first is what the engine has to put first, whatever its name.
        bos = _id(first, ids) if first else bos
        eos = _id(last, ids) if last else eos
        return Vocabulary(
            pre=_pre(document.get("pre_tokenizer"), bool(model.get("ignore_merges")), architecture),
            tokens=tuple(tokens),
            types=tuple(types),
            merges=tuple(_merges(model)),
            bos=bos,
            eos=eos,
            pad=pad,
            add_bos=bool(first),
            add_eos=bool(last),
            chat_template=_template(folder, settings),
            normalizer=_normalizer(document.get("normalizer")),
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path}: not a tokenizer of this format ({error!r})") from None


def _check_model(model: Mapping[str, Any]) -> None:
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise InputError(f"a {kind} tokenizer cannot be exported; byte-level BPE can")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise InputError(f"the BPE option {option}={model[option]!r} cannot be exported")


def _tokens(
    document: Mapping[str, Any], model: Mapping[str, Any], size: int
) -> tuple[list[str], list[int]]:
    tokens: dict[int, str] = {at: token for token, at in model["vocab"].items()}
    types = dict.fromkeys(tokens, NORMAL)
    lacking = [char for char in _byte_letters() if char not in model["vocab"]]
    if lacking:
        raise InputError(
            f"{len(lacking)} of the 256 byte tokens are missing, {lacking[0]!r} first; "
            "only a complete byte-level BPE can be exported"
        )
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


def _byte_letters() -> list[str]:
    """Return the 256 characters that byte-level BPE writes bytes as, in no special order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(code) for code in shown] + [chr(256 + at) for at in range(256 - len(shown))]


def _merges(model: Mapping[str, Any]) -> Iterator[str]:
    if not model["merges"]:
        raise InputError("a BPE without merges cannot be exported")
    for merge in model["merges"]:
        text = merge if isinstance(merge, str) else " ".join(merge)
        if text.count(" ") != 1:
            raise InputError(f"merge {merge!r} has a space inside a part")
        yield text


def _pre(given: Mapping[str, Any] | None, ignore_merges: bool, architecture: str) -> str:
    rules = tuple(_rules(given))
    for row in PRE_TOKENIZERS:
        fits = row.architecture in ("", architecture)
        if fits and (row.rules, row.ignore_merges) == (rules, ignore_merges):
            return row.name
    raise InputError(
        f"the pre-tokenizer {' then '.join(rules) or 'none'} (ignore_merges={ignore_merges}) "
        "is none the engine has\nthese can be exported: "
        + " ".join(row.name for row in PRE_TOKENIZERS)
    )


def _rules(given: Mapping[str, Any] | None) -> Iterator[str]:
    kind = (given or {}).get("type")
    if given is None:
        return
    if kind == "Sequence":
        for part in given["pretokenizers"]:
            yield from _rules(part)
    elif kind == "ByteLevel" and not given.get("add_prefix_space"):
        yield "words and bytes" if given.get("use_regex", True) else "bytes"
    elif kind == "Split" and given.get("behavior") == "Isolated" and not given.get("invert"):
        yield f"split {given['pattern'].get('Regex')}"
    else:
        yield f"{kind} {dict(given)}"


def _normalizer(given: Mapping[str, Any] | None) -> str:
    if given is None:
        return ""
    kinds = given["normalizers"] if given["type"] == "Sequence" else [given]
    if any(kind["type"] != "NFC" for kind in kinds):
        raise InputError(f"the normalizer {dict(given)} cannot be exported; none and NFC can")
    return "NFC" if kinds else ""


def _around(given: Mapping[str, Any] | None) -> tuple[str, str]:
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


def _special(
    settings: Mapping[str, Any], kind: str, ids: Mapping[str, int], size: int
) -> int | None:
    # The tokenizer's own name first: a model's eos_token_id may be a list of several.
    name = _text(settings.get(f"{kind}_token"))
    if name:
        return ids.get(name) if kind == "pad" else _id(name, ids)
    value = settings.get(f"{kind}_token_id")
    at = value[0] if isinstance(value, list) and value else value
    if at is None:
        return None
    if not isinstance(at, int) or not 0 <= at < size:
        raise InputError(f"{kind}_token_id {at!r} is outside the {size} tokens")
    return at


def _id(token: str, ids: Mapping[str, int]) -> int:
    if token not in ids:
        raise InputError(f"the special token {token!r} has no id")
    return ids[token]


def _template(folder: Path, settings: Mapping[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    given = settings.get("chat_template", "")
    if isinstance(given, list):
        named = {entry["name"]: entry["template"] for entry in given}
        given = named.get("default", "")
    return given if isinstance(given, str) else ""


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
    }
    return {name: value for name, value in keys.items() if value is not None}
