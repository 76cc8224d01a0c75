"""The pre-tokenizers that the engine has built in, one row each, by their rules in tokenizer.json.

Sources: `llama_vocab::impl::load` and `llm_tokenizer_bpe` in src/llama-vocab.cpp of the llama.cpp
that llama-cpp-python 0.3.36 holds (names, expressions, and what else a name switches on), and the
serialisation of Hugging Face's tokenizers 0.23. Besides the split a name decides whether whole
words skip merges and whether BOS is put first where the file does not say, which are columns here,
and whether spaces are cleaned in `llama_detokenize`, which the runtime does not call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tel_edge.runtime.errors import InputError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(end: str, digits: str) -> tuple[str, ...]:
    """Return the rules that part a word where a capital follows a small letter."""
    first = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{end}"
    second = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{end}"
    others = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES
    return (f"split {first}|{second}|{digits}{others}", "bytes")


_GPT_2 = ("words and bytes",)
_DIGITS = ("single digits", "words and bytes")
_LLAMA_3 = ("split " + _WORDS + r"\p{N}{1,3}" + _OTHERS, "bytes")
_QWEN_2 = ("split " + _WORDS + r"\p{N}" + _OTHERS, "bytes")
_QWEN_3_5 = (
    "split " + _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _SPACES,
    "bytes",
)
# As tokenizer.json has the step that makes letters of bytes, but for whether it parts words too.
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


@dataclass(frozen=True)
class PreTokenizer:
    """One row: the engine's name, the rules it stands for, and whether whole words skip merges.

    `architecture` is the only one that the row is for, "" where any may have it. `same` are names
    under which the engine makes the same ids. `begins`: it puts BOS first where the file does not
    say.
    """

    name: str
    rules: tuple[str, ...]
    ignore_merges: bool
    architecture: str = ""
    same: tuple[str, ...] = ()
    begins: bool = False


PRE_TOKENIZERS = (
    PreTokenizer("llama-bpe", _LLAMA_3, True, same=("llama3", "llama-v3"), begins=True),
    PreTokenizer("dbrx", _LLAMA_3, False, same=("smaug-bpe",)),
    PreTokenizer("qwen2", _QWEN_2, False, same=("deepseek-r1-qwen", "stablelm2")),
    PreTokenizer("qwen35", _QWEN_3_5, False),
    PreTokenizer("tekken", _cased("", r"\p{N}"), True, begins=True),
    PreTokenizer("gpt-4o", _cased(_CONTRACTIONS + "?", r"\p{N}{1,3}"), False),
    PreTokenizer("smollm", _DIGITS, False, same=("starcoder", "refact", "command-r")),
    PreTokenizer("exaone4", _GPT_2, False, architecture="exaone4"),
    PreTokenizer("gpt-2", _GPT_2, False, same=("mpt", "olmo")),
)


def find(given: Mapping[str, Any] | None, ignore_merges: bool, architecture: str) -> PreTokenizer:
    """Return the row for the `pre_tokenizer` of tokenizer.json.

    `architecture` is the model's GGUF name. Raises `InputError` where the engine has no such rules.
    """
    rules = tuple(_rules(given))
    for row in PRE_TOKENIZERS:
        fits = row.architecture in ("", architecture)
        if fits and (row.rules, row.ignore_merges) == (rules, ignore_merges):
            return row
    raise InputError(
        f"the engine has no pre-tokenizer {' then '.join(rules) or 'none'} (ignore_merges="
        f"{ignore_merges}); --format onnx takes it, and GGUF those of: {_names()}"
    )


def called(name: Any, where: str) -> PreTokenizer:
    """Return the row that the engine's `name` is of. Raises `InputError`, which begins `where`."""
    for row in PRE_TOKENIZERS:
        if name in (row.name, *row.same):
            return row
    raise InputError(
        f"{where}: tokenizer.ggml.pre is {name!r}, whose rules are not known here; these are: "
        f"{_names()}"
    )


def document(row: PreTokenizer) -> dict[str, Any]:
    """Return the `pre_tokenizer` of tokenizer.json with a row's rules, which `find` finds again."""
    made: list[dict[str, Any]] = []
    for rule in row.rules:
        if rule.startswith("split "):
            pattern = {"Regex": rule.removeprefix("split ")}
            split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
            made.append(split)
        elif rule == "single digits":
            made.append({"type": "Digits", "individual_digits": True})
        else:
            made.append({**BYTE_LEVEL, "use_regex": rule == "words and bytes"})
    return made[0] if len(made) == 1 else {"type": "Sequence", "pretokenizers": made}


def _names() -> str:
    return " ".join(name for row in PRE_TOKENIZERS for name in (row.name, *row.same))


def _rules(given: Mapping[str, Any] | None) -> Iterator[str]:
    kind = (given or {}).get("type")
    if given is None:
        return
    if kind == "Sequence":
        for part in given["pretokenizers"]:
            yield from _rules(part)
    elif kind == "ByteLevel" and not given.get("add_prefix_space"):
        yield "words and bytes" if given.get("use_regex", True) else "bytes"
    elif kind == "Digits" and given.get("individual_digits"):
        yield "single digits"
    elif kind == "Split" and (given.get("behavior"), bool(given.get("invert"))) in (
        ("Isolated", False),
        # What matches is kept and the rest left out: every rule here matches all of a text.
        ("Removed", True),
    ):
        yield f"split {given['pattern'].get('Regex')}"
    else:
        yield f"{kind} {dict(given)}"
