"""Under every pre-tokenizer the engine makes the ids of Hugging Face's tokenizers, or says no."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from for_pre_tokenizers import MISSING, NASTY, engine, made, opened, wanted
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tel_edge.eval.folders.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from tel_edge.export.gguf import tokenizer
from tel_edge.runtime.engines.llama_native import NativeVocabulary
from tel_edge.runtime.errors import InputError

NAMES = [row.name for row in PRE_TOKENIZERS]


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
