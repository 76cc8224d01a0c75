"""Under every pre-tokenizer the engine makes the ids of Hugging Face's tokenizers, or says no."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import export_models as models
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tel_edge.export.gguf import container, tokenizer
from tel_edge.export.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from tel_edge.export.gguf.quantize import silence
from tel_edge.runtime.engines.llama_native import NativeVocabulary
from tel_edge.runtime.errors import InputError

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
NAMES = [row.name for row in PRE_TOKENIZERS]
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


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Give engine and tokenizer of a row's vocabulary, made once."""

    @cache
    def both(
        name: str, missing: bytes = b""
    ) -> tuple[NativeVocabulary, Callable[[str], list[int]]]:
        document = made(name, missing)
        folder = tmp_path_factory.mktemp(name)
        return engine(document, folder, name), wanted(document)

    return both


@pytest.mark.parametrize("name", NAMES)
def test_texts_that_are_hard_to_part(name: str, pair: Callable[..., Any]) -> None:
    vocabulary, expected = pair(name)
    for text in NASTY:
        try:
            ids = vocabulary.tokenize(text)
        except InputError:
            assert name in ("tekken", "gpt-4o")
            assert not text.isascii()
            continue
        assert ids == expected(text), text


CHARACTERS = st.one_of(
    # The engine's tables are those of Unicode 15; what is newer counts as no letter there.
    st.characters(exclude_categories=("Cs", "Cn")),
    st.sampled_from(" \n\r\t'sStTlLdD!?/.,()aAbBzZ019éÉßǅЖж東한\u0301\u00a0\u04ff🙂\x04\x1d\u0093"),
    st.sampled_from(["'s", "'LL", "\r\n", "  ", "12345", "Ab", "aB", "\x04!", "!\x04\n", "!!"]),
)
TEXTS = st.lists(CHARACTERS, max_size=12).map("".join)
OFTEN = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("missing", [b"", MISSING], ids=["every byte", "some bytes missing"])
@pytest.mark.parametrize("name", NAMES)
def test_random_texts(name: str, missing: bytes, pair: Callable[..., Any]) -> None:
    vocabulary, expected = pair(name, missing)

    @OFTEN
    @given(TEXTS)
    @example("!\x04!")
    @example("\U00107a53\x80")
    @example("!\U00040000a")
    @example("a\x04b \x1d c \U00040000.")
    @example("x\u04d3\u04d3y")
    def check(text: str) -> None:
        try:
            ids = vocabulary.tokenize(text)
        except InputError:
            return
        assert ids == expected(text)

    check()


@pytest.mark.parametrize(
    ("row", "name"), [(row, name) for row in PRE_TOKENIZERS for name in row.same]
)
def test_names_of_one_rule(row: PreTokenizer, name: str, tmp_path: Path) -> None:
    """The engine makes the same ids under a row's other names."""
    document = made(row.name)
    vocabulary = engine(document, tmp_path, row.name)
    keys = tokenizer.metadata(tokenizer.load(tmp_path, 900, row.architecture))
    other = opened({**keys, "tokenizer.ggml.pre": name}, tmp_path / "other.gguf")
    for text in NASTY:
        assert other.tokenize(text) == vocabulary.tokenize(text), text


def test_what_is_kept_is_what_matches(tmp_path: Path) -> None:
    """The other spelling of a split, which converted files have."""
    document = made("gpt-4o")
    document["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed", invert=True)
    vocabulary, expected = engine(document, tmp_path, "gpt-4o"), wanted(document)
    for text in filter(str.isascii, NASTY):
        assert vocabulary.tokenize(text) == expected(text), text


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("wow!\x04!", r"'\\x04', for which this vocabulary has no token"),
        ("wow!\x04\n", r"'\\x04'"),
        ("\u04d3", "'\u04d3'"),
        ("cafe\u0301", "an accent apart from its letter"),
        ("gNodeÉnb", "'gNodeÉnb', capitals and small letters beyond ASCII"),
        ("x" * 5000, "2,000 characters without a break, such as 'xxxxxxxx'"),
    ],
)
def test_one_text_is_refused_and_says_why(text: str, fault: str, pair: Callable[..., Any]) -> None:
    vocabulary, _ = pair("gpt-4o", MISSING)
    with pytest.raises(InputError, match=rf"{fault}.*: leave it out, or use an ONNX bundle"):
        vocabulary.tokenize(text)


def test_a_long_run_is_read_where_the_engine_can(pair: Callable[..., Any]) -> None:
    vocabulary, expected = pair("smollm")
    assert vocabulary.tokenize("x" * 50_000) == expected("x" * 50_000)
