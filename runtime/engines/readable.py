"""Texts that llama.cpp reads as other tokens than the tokenizer a GGUF file was exported from.

Both leave out a byte that has no token. Hugging Face's tokenizers 0.23 (`BPE::merge_word`) do so
before merging, so its neighbours in a word may join; llama.cpp (src/llama-vocab.cpp of
llama-cpp-python 0.3.36) does so after it. And for words that are parted at capitals (`tekken`,
`gpt-4o`) llama.cpp has a simpler expression, in which a letter beyond ASCII is capital and small at
once and an accent of its own is no part of a word. The rest is the same, so a text is refused only
where the two may differ. The exporter says in its files which bytes lack; of other files the
vocabulary is looked through.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

# Of letters: ASCII and other capitals, ASCII and other small ones, and those without case.
_KINDS = {"Lu": "UX", "Lt": "XX", "Ll": "ly", "Lm": "oo", "Lo": "oo"}
_WANTED = re.compile("[UXo]*[lyo]+|[UXo]+[lyo]*")
_ENGINE = re.compile("[UXyo]*[lXyo]+|[UXyo]+[lXyo]*")
# C++'s regular expressions recurse for each character; at 30,000 equal ones the process ends.
LONGEST = 2000
_RUN = re.compile(rf"\w{{{LONGEST}}}|[^\w\s]{{{LONGEST}}}|\s{{{LONGEST}}}")

# Bytes that no UTF-8 text has.
NO_TEXT = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))
# Names of pre-tokenizers whose expression in the engine is the simpler one.
CASED = ("tekken", "gpt-4o", "llama4")


def byte_letters() -> dict[int, str]:
    """Return the character that byte-level BPE writes each of the 256 bytes as."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {
        byte: chr(256 + at) for at, byte in enumerate(hidden)
    }


def text_letters() -> dict[str, int]:
    """Return the bytes that texts have by the character that each is written as."""
    return {letter: byte for byte, letter in byte_letters().items() if byte not in NO_TEXT}


@dataclass(frozen=True)
class Readable:
    """What a file's vocabulary lacks: bytes without a token, and exact words (`cased`)."""

    missing: frozenset[int] = frozenset()
    cased: bool = False

    def fault(self, text: str) -> str | None:
        """Return what of `text` the engine may read otherwise, in words, None where nothing is."""
        if not self.missing.isdisjoint(text.encode()) and (found := self._unknown(text)):
            return f"the character {found!r}, for which this vocabulary has no token"
        return _uneven(text) if self.cased else None

    def _unknown(self, text: str) -> str | None:
        for at, char in enumerate(text):
            coded = char.encode()
            if self.missing.isdisjoint(coded):
                continue
            before, after = text[max(at - 1, 0) : at], text[at + 1 : at + 2]
            # In every rule a sign behind a letter or digit begins another word, and nothing joins.
            starts = before == "" or before.isalnum()
            # So does a letter or space behind a sign; a line's end belongs to the sign. But a sign
            # of which bytes are left may belong to the letter.
            ends = after == "" or after.isalnum() or (after.isspace() and after not in "\r\n")
            only_first = self.missing.isdisjoint(coded[1:])
            if char.isalnum() or not (only_first and (starts or (ends and len(coded) == 1))):
                return char
        return None


def _uneven(text: str) -> str | None:
    """Return what the simpler expression parts in another way."""
    if run := _RUN.search(text):
        return f"{LONGEST:,} characters without a break, such as {run[0][:8]!r}"
    if text.isascii():
        return None
    kinds = [unicodedata.category(char) for char in text]
    for char, kind in zip(text, kinds, strict=True):
        if kind[0] == "M":
            return f"{char!r}, an accent apart from its letter"
    shapes = "".join(
        _KINDS.get(kind, "  ")[not char.isascii()] for char, kind in zip(text, kinds, strict=True)
    )
    for word in re.finditer(r"[^ ]*[Xy][^ ]*", shapes):
        if _WANTED.findall(word[0]) != _ENGINE.findall(word[0]):
            return f"{text[word.start() : word.end()]!r}, capitals and small letters beyond ASCII"
    return None
