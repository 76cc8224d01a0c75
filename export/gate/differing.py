"""Where the ids of two tokenizers part, and which settings usually make them."""

from __future__ import annotations

from collections.abc import Sequence


def told(wanted: Sequence[int], got: Sequence[int]) -> str:
    """Return one line on the first id of `got` that is not the one of `wanted`, transformers' ids.

    Both are of one text; they must not be equal.
    """
    pairs = zip(wanted, got, strict=False)
    at = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(got)))
    ours, theirs = (str(ids[at]) if at < len(ids) else "none" for ids in (got, wanted))
    return f"token {at} is {ours} instead of {theirs}; look at {_setting(wanted, got, at)}"


def _setting(wanted: Sequence[int], got: Sequence[int], at: int) -> str:
    short, long = sorted((list(wanted), list(got)), key=len)
    if long[1:] == short:
        return (
            "what comes before a text: post_processor of tokenizer.json, and bos_token and "
            "add_bos_token of tokenizer_config.json"
        )
    if long[:-1] == short:
        return (
            "what comes behind a text: post_processor of tokenizer.json, and eos_token and "
            "add_eos_token of tokenizer_config.json"
        )
    return (
        "pre_tokenizer, normalizer and added_tokens of tokenizer.json, and tokenizer_class of "
        "tokenizer_config.json, which can replace the first two"
    )
