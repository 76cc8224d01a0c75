"""What an engine does for the runtime; `with_llama` and `with_onnx` are two."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tel_edge.runtime.errors import InputError

# Names of `EngineSettings.kv`.
KV_TYPES = ("F32", "F16", "Q8_0")


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is run; the defaults are safe on every machine.

    `threads` None means all cores. `context` is the number of tokens that the KV cache holds,
    `batch` the most that one decode computes, None all of it, or in a bundle what suits its format.
    `flash` is flash attention, None leaving it to the engine. `kv` is the type of the KV cache.
    `extra_buffers` copies the weights into the layout that the processor likes best, where the
    engine has one. `gpu_layers` go to the GPU, -1 all, None (and 0) none. `providers` are
    onnxruntime's execution providers in their order, none meaning the CPU. `max_adapters` stay
    loaded, None any number. `exact` answers one question at a time, with nothing kept from another
    one.
    """

    threads: int | None = None
    context: int = 4096
    batch: int | None = None
    flash: bool | None = None
    kv: str = "F16"
    extra_buffers: bool = False
    gpu_layers: int | None = None
    providers: tuple[str, ...] = ()
    max_adapters: int | None = None
    exact: bool = False


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file that is loaded when it is first asked for.

    `check` returns the path after checking the file, or raises `InputError`. `digest` is the
    file's SHA-256; it and `scale` are part of the key of everything computed under the adapter.
    """

    check: Callable[[], Path]
    digest: str
    scale: float = 1.0


@dataclass(frozen=True)
class Template:
    """A model's chat template, and the texts of the tokens that begin and end a text."""

    text: str
    start: str
    end: str

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the template's text, which an adapter for dialogues is bound to."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Item:
    """A prompt and the labels that may follow it, all as token ids. No label is empty.

    `known` is how many of the first tokens all prompts of its kind begin with.
    """

    prompt: Sequence[int]
    labels: tuple[tuple[int, ...], ...]
    known: int = 0


@dataclass(frozen=True)
class Score:
    """Log-probabilities of the labels, over the whole vocabulary, and what they cost.

    A label that other labels begin with counts without those: its probability is that it comes
    and none of them does. `tokens` is the length of the prompt, `decoded` how many tokens were
    computed for this question rather than taken from a kept prefix, `milliseconds` its share, by
    tokens, of the decode that it was part of, and `packed` how many questions that decode had.
    """

    logprobs: tuple[float, ...]
    tokens: int
    decoded: int
    milliseconds: float
    packed: int = 1


@dataclass(frozen=True)
class Sampling:
    """How texts are generated after a prompt: one greedily, `k` sampled at `temperature`.

    `known` is that of `Item`. Each text has at most `limit` tokens. `seed` is that of the one
    prompt: the random numbers depend on neither the others nor their order, and `spent` of them
    were drawn before. `goes_on` is given (number of the text, its tokens) after each of them;
    False ends that text. Of a prompt that is `kept`, a conversation that may go on, one text alone
    is made, the sampled one if `k` is 1, and what is computed stays for the next turn; `reads_on`
    is given (tokens that were there, tokens read) after each part of it, and False ends it there.
    """

    k: int
    temperature: float
    limit: int
    seed: str
    known: int = 0
    spent: int = 0
    kept: bool = False
    goes_on: Callable[[int, Sequence[int]], bool] | None = field(default=None, compare=False)
    reads_on: Callable[[int, int], bool] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Generation:
    """The texts generated after one prompt, the greedy one first; the rest as in `Score`.

    `generated` counts the tokens of all texts.
    """

    texts: tuple[str, ...]
    tokens: int
    decoded: int
    generated: int
    milliseconds: float
    packed: int = 1


class Unanswered(InputError):
    """Some items of a call have no answer; those of all others were given before.

    `reasons` are the errors by index of the item.
    """

    def __init__(self, reasons: Mapping[int, InputError]) -> None:
        super().__init__(str(reasons[min(reasons)]))
        self.reasons = reasons


class Engine(Protocol):
    """A backbone in memory with any number of adapters beside it.

    Several threads may use one engine: it computes one thing at a time, and the answers are those
    of one thread alone. Between two answers nothing is held, so a reader may stop anywhere.
    """

    @property
    def version(self) -> str:
        """Return the name and version of the engine, for the records."""
        ...

    @property
    def timing(self) -> Mapping[str, float]:
        """Return what opening took, in milliseconds by part; empty where nobody measured."""
        ...

    @property
    def kv_bytes_per_token(self) -> int | None:
        """Return the bytes that are kept of each token of the context, None where unknown."""
        ...

    @property
    def context(self) -> int:
        """Return the longest prompt, in tokens, that can be scored."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text at the start of a sequence, with the tokens that belong there.

        What looks like a special token inside the text is text.
        """
        ...

    def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
        """Yield (index of the item, its score) as decodes end, in any order.

        `adapter` is the name of one of the engine's adapters, None the bare backbone. Raises
        `Unanswered`, after everything else, for items that cannot be scored, and another
        `InputError` where none can.
        """
        ...

    def generate(
        self, prompts: Sequence[tuple[Sequence[int], Sampling]], adapter: str | None
    ) -> Iterator[tuple[int, Generation]]:
        """Yield (index of the prompt, its texts) as they end, in any order; as in `score`."""
        ...

    def close(self) -> None:
        """Free what the engine holds; what is asked of it later raises `WorkError`."""
        ...
