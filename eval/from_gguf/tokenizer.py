"""tokenizer.json and what stands beside it, of a GGUF file's metadata.

A byte-level BPE ("gpt2" there) whose pre-tokenizer has a row in `folders.pre_tokenizers`. It makes
the ids that the engine makes of the same file, whatever the published tokenizer of the model does:
a normalizer that the file does not state is not applied there either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tel_edge.eval.folders.gguf_layout import CONTROL, NORMAL, UNUSED, USER_DEFINED
from tel_edge.eval.folders.pre_tokenizers import BYTE_LEVEL, PreTokenizer, called, document
from tel_edge.eval.from_gguf.source import GgufSource

KEY = "tokenizer.ggml."
BYTES = {**BYTE_LEVEL, "use_regex": True}


def files(source: GgufSource) -> dict[str, Any]:
    """Return the documents of tokenizer.json and tokenizer_config.json, and the chat template.

    By their files' names; without a template there is no chat_template.jinja. Raises `InputError`
    for a vocabulary of another kind, a pre-tokenizer without a row, and arrays that do not fit.
    """
    kind = source.metadata.get(f"{KEY}model")
    if kind != "gpt2":
        raise source.wrong(
            f"{KEY}model is {kind!r}; a byte-level BPE (gpt2) can be read back, and the folder it "
            "was converted from can be used instead: --backbone DIR"
        )
    name = source.metadata.get(f"{KEY}pre")
    row = called(name, str(source.path))
    tokens, types = _array(source, "tokens"), _array(source, "token_type")
    if len(types) not in (0, len(tokens)):
        raise source.wrong(f"{KEY}token_type has {len(types):,} values for {len(tokens):,} tokens")
    types = types or [NORMAL] * len(tokens)
    unused = {at for at, of in enumerate(types) if of == UNUSED and tokens[at] == f"[PAD{at}]"}
    added = [
        {
            "id": at, "content": tokens[at], "special": types[at] == CONTROL, "normalized": False,
            "single_word": False, "lstrip": False, "rstrip": False,
        }
        for at in range(len(tokens))
        if types[at] in (CONTROL, USER_DEFINED)
    ]  # fmt: skip
    model = {
        "type": "BPE",
        "vocab": {token: at for at, token in enumerate(tokens) if at not in unused},
        "merges": _merges(source),
        "ignore_merges": row.ignore_merges,
        "byte_fallback": False,
        "fuse_unk": False,
    }
    named = {
        kind: tokens[at]
        for kind, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
        if (at := source.metadata.get(f"{KEY}{key}_token_id")) is not None and at < len(tokens)
    }
    normal = source.metadata.get("tel_edge.tokenizer.normalizer")
    made = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": normal} if normal else None,
        "pre_tokenizer": document(row),
        "post_processor": _around(source, row, named, tokens),
        "decoder": BYTES,
        "model": model,
    }
    settings: dict[str, Any] = {f"{kind}_token": token for kind, token in named.items()}
    settings |= {
        "clean_up_tokenization_spaces": False,
        "model_max_length": source.number("context_length"),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    template = source.metadata.get("tokenizer.chat_template")
    return {
        "tokenizer.json": made,
        "tokenizer_config.json": settings,
        **({"chat_template.jinja": template} if template else {}),
    }


def _array(source: GgufSource, name: str) -> list[Any]:
    found = source.metadata.get(f"{KEY}{name}", [])
    if not isinstance(found, list):
        raise source.wrong(f"{KEY}{name} is no array; get the file again")
    return found


def _merges(source: GgufSource) -> list[list[str]]:
    made = []
    for text in _array(source, "merges"):
        # As in the engine, a first character that is a space belongs to the pair.
        at = text.find(" ", 1)
        if at < 0:
            raise source.wrong(f"{KEY}merges has {text[:40]!r}, which is no pair")
        made.append([text[:at], text[at + 1 :]])
    return made


def _around(
    source: GgufSource, row: PreTokenizer, named: Mapping[str, str], tokens: list[str]
) -> dict[str, Any]:
    """Return the post-processor: the special tokens that the engine puts before and after."""
    states = {kind: source.metadata.get(f"{KEY}add_{kind}_token") for kind in ("bos", "eos")}
    first = row.begins if states["bos"] is None else states["bos"]
    around = {"bos": first, "eos": bool(states["eos"])}
    lacking = [kind for kind, put in around.items() if put and kind not in named]
    if lacking:
        raise source.wrong(f"{KEY}{lacking[0]}_token_id is missing, though that token is put")
    if not any(around.values()):
        return BYTES
    special = {
        kind: {"SpecialToken": {"id": named[kind], "type_id": 0}} for kind in around if around[kind]
    }

    def sequence(name: str) -> list[dict[str, Any]]:
        body = {"Sequence": {"id": name, "type_id": 0 if name == "A" else 1}}
        parts = (special.get("bos"), body, special.get("eos"))
        return [part for part in parts if part is not None]

    known = {
        token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]}
        for token in (named[kind] for kind in special)
    }
    template = {
        "type": "TemplateProcessing",
        "single": sequence("A"),
        "pair": sequence("A") + sequence("B"),
        "special_tokens": known,
    }
    return {"type": "Sequence", "processors": [BYTES, template]}
