"""Prompts in OpenAI's form: what is taken, what is refused by name, and the replies.

Sources: OpenAI's API reference of `/v1/completions`; lm-evaluation-harness, `local-completions`
(`lm_eval/models/openai_completions.py`, `lm_eval/api_models.py`), which scores with `echo` and
`logprobs`, and asks `/tokenizer_info`, `/tokenize` and `/detokenize` for its tokenizer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tel_edge.runtime.serving.problems import INVALID, Failed

MOST_TOKENS, MOST_PROMPTS, MOST_STOPS = 512, 256, 8


class Completion(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/v1/completions`; a field that is not here is refused by name."""

    # Texts, one prompt's ids, or several prompts' ids; msgspec takes one kind of list in a union.
    prompt: str | list[str | int | list[int]]
    model: str | None = None
    max_tokens: int = 16
    temperature: float = 1.0
    logprobs: int | None = None
    echo: bool = False
    seed: int = 42
    user: str | None = None
    n: int = 1
    best_of: int = 1
    stream: bool = False
    stop: str | list[str] | None = None
    suffix: str | None = None
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[str, float] | None = None


# Fields that would change the result and of which only one value does what it says.
FIXED: Mapping[str, Sequence[Any]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "suffix": (None, ""),
    "top_p": (1.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "logit_bias": (None, {}),
}


class Tokenize(msgspec.Struct):
    """The body of `/tokenize`."""

    prompt: str
    add_special_tokens: bool = True


class Detokenize(msgspec.Struct):
    """The body of `/detokenize`."""

    tokens: list[int]


def messages(given: Completion) -> list[dict[str, Any]]:
    """Return what the engine's process is asked, one a prompt; raise `Failed` for what is not done.

    `logprobs` is that of the likeliest token beside the token's own.
    """
    check_fixed(given, FIXED)
    check_number("max_tokens", given.max_tokens, MOST_TOKENS)
    check_number("temperature", given.temperature, 2)
    if given.logprobs is not None and given.logprobs not in (0, 1):
        raise Failed(INVALID, f"logprobs {given.logprobs}: 0 or 1 work")
    if given.logprobs is not None and given.temperature and given.max_tokens:
        raise Failed(INVALID, "logprobs of a sampled token are not supported; set temperature 0")
    prompts = given.prompt
    kinds = {type(one) for one in prompts}
    if len(kinds) > 1:
        raise Failed(INVALID, "prompt: texts, token ids or lists of ids, not some of each")
    single = isinstance(prompts, str) or kinds <= {int}
    every: Sequence[Any] = [prompts] if single else prompts
    if len(every) > MOST_PROMPTS:
        raise Failed(INVALID, f"{len(every)} prompts; at most {MOST_PROMPTS} at a time")
    known = {
        "op": "complete",
        "model": given.model,
        "max_tokens": given.max_tokens,
        "temperature": given.temperature,
        "logprobs": given.logprobs is not None,
        "echo": given.echo,
        "seed": given.seed,
        "stop": stops(given.stop),
    }
    return [{**known, "prompt": prompt} for prompt in every]


def stops(given: str | list[str] | None) -> list[str]:
    """Return the texts that end an answer; raise `Failed` for empty ones, or too many."""
    made = [given] if isinstance(given, str) else given or []
    if len(made) > MOST_STOPS or not all(made):
        raise Failed(INVALID, f"stop: at most {MOST_STOPS} texts, none of them empty")
    return made


def check_fixed(given: Any, fixed: Mapping[str, Sequence[Any]]) -> None:
    """Raise `Failed` for a field with another value than those that do what they say."""
    for name, values in fixed.items():
        value = getattr(given, name)
        if value not in values:
            raise Failed(INVALID, f"{name} {value!r} is not supported; leave it out")


def check_number(name: str, value: float, most: float, least: float = 0) -> None:
    """Raise `Failed` for a number out of its bounds."""
    if not least <= value <= most:
        raise Failed(INVALID, f"{name} {value}: {least} to {most} work")


def usage(replies: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many tokens were read and made."""
    prompt, made = (sum(reply[key] for reply in replies) for key in ("prompt_tokens", "generated"))
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def head(kind: str, number: str, model: str, bundle: str) -> dict[str, Any]:
    """Return what every reply begins with; `number` is its id."""
    return {
        "id": number,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": bundle,
    }


def completion(
    replies: Sequence[Mapping[str, Any]], model: str, bundle: str, number: str
) -> dict[str, Any]:
    """Return the body of a completion."""
    return {
        **head("text_completion", f"cmpl-{number}", model, bundle),
        "choices": [
            {
                "index": at,
                "text": reply["text"],
                "logprobs": reply.get("logprobs"),
                "finish_reason": reply["ended"],
            }
            for at, reply in enumerate(replies)
        ],
        "usage": usage(replies),
    }
