"""What the tests of pre tokenizers share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export_models as models

from tel_edge.export.gguf import container, tokenizer
from tel_edge.export.gguf.quantize import silence
from tel_edge.runtime.engines.llama_native import NativeVocabulary

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
WORDS = r"[^\r\n\p{L}\p{N}]?"
SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
FIRST = WORDS + r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
SECOND = WORDS + r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# The expressions of the published tokenizer.json files.
EXPRESSIONS = {
    "llama-bpe": models.SPLITS["llama"],
    "dbrx": models.SPLITS["llama"],
    "qwen2": models.SPLITS["qwen3"],
    "qwen35": ENDS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": rf"{FIRST}|{SECOND}|\p{{N}}{SIGNS}",
    "gpt-4o": rf"{FIRST}{ENDS}?|{SECOND}{ENDS}?|\p{{N}}{{1,3}}{SIGNS}",
}
WHOLE = ("llama-bpe", "tekken")
NASTY = (
    *models.TRICKY,
    *models.CORPUS,
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n",
    "\r\n\r\r\n a\r\nb \r\n\r\n!\r\n!!\n/\n//\r",
    "3 33 333 3333 33333 1½ ⅷ ٣٤٥ १२३ 1,000.00",
    "I'm he'll THEY'VE we'Re 'S 'd'd''t don't",
    "ABCdef abcDEF XMLHttpRequest iPhone gNodeB 5GC-AMF NGAP/SCTP",
    "ВТОРОЙ Второй второй ÜBER Über über ǅungla ŒUVRE",
    "កាន់តែពិសេសអាចខល 我想在apple工作1314151天 東京タワー 한국어",
    "🚀 (normal) 😶‍🌫️ ✅ 🦙🦙 ❤ ©®™",
    "a\u0301e\u0301 नमस्ते ไทย مَرْحَبًا",
    "\u00a0\u2003\u3000x\u200b\u200d\ufeff\u0085\u001c.\u001f",
    "x" * 300 + " " * 70 + "=" * 90,
)


def pre_tokenizer(name: str) -> dict[str, Any]:
    if name in EXPRESSIONS:
        pattern = {"Regex": EXPRESSIONS[name]}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        parts = [split, {**BYTES, "use_regex": False}]
    elif name == "smollm":
        parts = [{"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}]
    else:
        return {**BYTES, "use_regex": True}
    return {"type": "Sequence", "pretokenizers": parts}


def made(name: str, missing: bytes = b"") -> dict[str, Any]:
    """Train a small vocabulary under the rules of a row, and take the tokens of bytes away."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers import models as kinds
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    empty = Tokenizer(kinds.BPE())
    document = json.loads(empty.to_str()) | {"pre_tokenizer": pre_tokenizer(name)}
    trained = Tokenizer.from_str(json.dumps(document))
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=[models.BOS, models.EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([*NASTY, "!!?! !!\n (( )) a'b"] * 3, trainer)
    document = json.loads(trained.to_str())
    model = document["model"]
    model["ignore_merges"] = name in WHOLE
    gone = {letter for byte, letter in bytes_to_unicode().items() if byte in missing}
    model["vocab"] = {t: at for t, at in model["vocab"].items() if gone.isdisjoint(t)}
    model["merges"] = [m for m in model["merges"] if gone.isdisjoint("".join(m))]
    return document


def engine(document: dict[str, Any], folder: Path, name: str) -> NativeVocabulary:
    """Export the vocabulary alone and open it as the runtime does."""
    (folder / "tokenizer.json").write_text(json.dumps(document))
    architecture = "exaone4" if name == "exaone4" else "llama"
    ids = [*document["model"]["vocab"].values(), *(one["id"] for one in document["added_tokens"])]
    vocabulary = tokenizer.load(folder, max(ids) + 1, architecture)
    assert vocabulary.pre == name
    return opened(tokenizer.metadata(vocabulary), folder / "v.gguf")


def opened(keys: dict[str, Any], path: Path) -> NativeVocabulary:
    import ctypes

    from llama_cpp import llama_cpp as llama

    llama.llama_log_set(silence(), ctypes.c_void_p(0))
    shape = {"llama.block_count": 1, "llama.context_length": 8, "llama.embedding_length": 8}
    container.write(path, "llama", {**shape, **keys}, [], lambda _: None)
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    assert model
    return NativeVocabulary(model)


def wanted(document: dict[str, Any]) -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer

    tok = Tokenizer.from_str(json.dumps(document))
    tok.encode_special_tokens = True
    return lambda text: list(tok.encode(text).ids)


# Two that never stand in UTF-8, a control character, one that a line may hold, a lead byte of
# characters beyond the emoji, and a byte inside of letters.
MISSING = bytes((0xC0, 0xFF, 0x04, 0x1D, 0xF1, 0x93))
