"""An engine without a model, the bundle that it opens, and questions that say their answer."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tel_edge.runtime.bundles import manifest as manifests
from tel_edge.runtime.bundles.manifest import BackboneInfo, Manifest, describe
from tel_edge.runtime.engines.engine import (
    EngineSettings,
    Generation,
    Item,
    LoraFile,
    Sampling,
    Score,
    Template,
)
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions import prompt

BOS, FIRST_LABEL = 256, 257
TOKENS = re.compile(rb" [A-P]|.", re.DOTALL)
WEIGHTS = "b" * 64
# What onnxruntime writes for the tensor "x", two ones, of the backbone WEIGHTS.
ONNX_ADAPTER = bytes.fromhex(
    "18000000544f5254000000000c0010000400000008000c000c00000001000000"
    + struct.pack("<I", int(WEIGHTS[:8], 16) >> 1).hex()
    + "0400000001000000100000000c001400040008000c0010000c00000028000000180000000100000004000000"
    "080000000000803f0000803f0100000002000000000000000100000078000000"
)

# Probabilities of the labels, given the prompt's text, the adapter and the number of labels.
Rule = Callable[[str, str | None, int], Sequence[float]]


def uniform(prompt: str, adapter: str | None, labels: int) -> list[float]:
    return [1 / labels] * labels


def gold(prompt: str, adapter: str | None, labels: int) -> list[float]:
    """Score 0.7 on the answer that a question of `rows` says, with an adapter; else uniform."""
    said = re.search(r"gold (\d+)", prompt)
    if adapter is None or said is None:
        return uniform(prompt, adapter, labels)
    shares = [0.3 / (labels - 1)] * labels
    shares[int(said[1])] = 0.7
    return shares


def dies(prompt: str, adapter: str | None, labels: int) -> list[float]:
    """Take the whole process down at the third question, as a native crash does."""
    DONE.append(prompt)
    if len(DONE) == 3:
        os._exit(139)
    return gold(prompt, adapter, labels)


DONE: list[str] = []


Writer = Callable[[str, str | None, int], str]


def says_gold(prompt: str, adapter: str | None, turn: int) -> str:
    """Write the line that is asked for; without an adapter, or at the third text, another."""
    said = re.search(r"gold (\d+)", prompt)
    if adapter is None or said is None or turn == 2:
        return "Hard to say."
    return f"Well.\nANSWER: {'ABCD'[int(said[1])]}"


class FakeEngine:
    """Bytes are tokens, and so are a space and a letter; BOS comes first.

    Labels have the probabilities that `rule` says, whatever their tokens; `writer` gives the texts.
    """

    version = "fake 1"
    timing: Mapping[str, float] = {}
    kv_bytes_per_token: int | None = None
    vocabulary = FIRST_LABEL + 16
    template = Template("{% for m in messages %}{{ m.content }}\n{% endfor %}", "", "")

    def __init__(
        self,
        rule: Rule,
        context: int,
        adapters: Mapping[str, LoraFile],
        settings: EngineSettings | None = None,
        writer: Writer = says_gold,
    ) -> None:
        self.rule, self.context, self.adapters, self.writer = rule, context, adapters, writer
        self.settings = settings or EngineSettings()
        self.asked: list[tuple[str, str | None]] = []
        self.closed = False
        # How many prompts each call brought, and for which adapter.
        self.calls: list[tuple[int, str | None]] = []

    def adapter(self, name: str) -> LoraFile:
        return self.adapters[name]

    def use(self, name: str | None) -> None:
        if name is not None:
            self.adapters[name].check()

    def adopt(self, name: str, file: LoraFile) -> None:
        file.check()
        self.adapters = {**self.adapters, name: file}

    def move(self, name: str, file: LoraFile) -> None:
        self.adapters = {**self.adapters, name: file}

    def drop(self, name: str) -> None:
        self.adapters = {one: file for one, file in self.adapters.items() if one != name}

    def tokenize(self, text: str) -> list[int]:
        return [BOS, *(_id(piece) for piece in TOKENS.findall(text.encode()))]

    def _text(self, prompt: Sequence[int], adapter: str | None) -> str:
        if adapter is not None:
            self.adapters[adapter].check()
        text = b"".join(map(_bytes, prompt[1:])).decode(errors="replace")
        self.asked.append((text, adapter))
        return text

    def score(self, items: Sequence[Item], adapter: str | None) -> Iterator[tuple[int, Score]]:
        self.calls.append((len(items), adapter))
        # Longest first, as an engine that packs does, so that nobody relies on the order.
        for at in sorted(range(len(items)), key=lambda i: -len(items[i].prompt)):
            item = items[at]
            shares = self.rule(self._text(item.prompt, adapter), adapter, len(item.labels))
            tokens = len(item.prompt)
            yield at, Score(tuple(map(math.log, shares)), tokens, tokens, 2.0, len(items))

    def generate(
        self, prompts: Sequence[tuple[Sequence[int], Sampling]], adapter: str | None
    ) -> Iterator[tuple[int, Generation]]:
        self.calls.append((len(prompts), adapter))
        for at, (ids, how) in reversed(list(enumerate(prompts))):
            text = self._text(ids[: len(ids) - how.spent], adapter)
            made = tuple(self._written(text, adapter, turn, how) for turn in range(how.k + 1))
            yield at, Generation(made, len(ids), len(ids), 3 * len(made), 4.0, len(prompts))

    def _written(self, text: str, adapter: str | None, turn: int, how: Sampling) -> str:
        made = self.writer(text, adapter, turn)
        if how.goes_on is None:
            return made
        ids = self.marked(made)[how.spent :][: how.limit]
        for count in range(1, len(ids) + 1):
            if not how.goes_on(turn, ids[:count]):
                return self.text(ids[:count])
        return self.text(ids)

    def marked(self, text: str) -> list[int]:
        return self.tokenize(text)[1:]

    def text(self, tokens: Sequence[int]) -> str:
        return b"".join(_bytes(token) for token in tokens if token != BOS).decode(
            "utf-8", "replace"
        )

    def name(self, token: int) -> str:
        return "<s>" if token == BOS else self.text([token])

    def end(self) -> tuple[int, str]:
        raise InputError("the vocabulary names no token that ends a text")

    def close(self) -> None:
        self.closed = True


def _id(piece: bytes) -> int:
    return piece[0] if len(piece) == 1 else FIRST_LABEL + piece[1] - ord("A")


def _bytes(token: int) -> bytes:
    return bytes([token]) if token < BOS else b" " + bytes([ord("A") + token - FIRST_LABEL])


@dataclass
class FakeOpener:
    """A `bundle.Opener`; `opened` lists backbone and adapters of each call in this process."""

    rule: Rule = gold
    context: int = 100_000
    opened: list[tuple[Path, list[str]]] = field(default_factory=list)
    engine: type[FakeEngine] = FakeEngine
    writer: Writer = says_gold
    engines: list[FakeEngine] = field(default_factory=list)

    def __call__(
        self, path: Path, adapters: Mapping[str, LoraFile], settings: EngineSettings
    ) -> FakeEngine:
        self.opened.append((path, sorted(adapters)))
        context = min(settings.context, self.context)
        self.engines.append(self.engine(self.rule, context, adapters, settings, self.writer))
        return self.engines[-1]


# What the gate found of a file that it accepted.
PARITY = {"prompts": 12, "largest": 0.001, "kl": 0.0, "picks": 1.0, "error": 0.001}


def gguf(**metadata: str) -> bytes:
    """Return the bytes of a GGUF file without tensors; `__` in a key stands for a dot."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(metadata))
    for name, value in metadata.items():
        key, text = name.replace("__", ".").encode(), value.encode()
        head += struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(text)) + text
    return head


def bundle(
    folder: Path,
    adapters: Sequence[str] = ("oranbench",),
    quants: Sequence[str] = ("F16", "Q4_K_M"),
    split: str | None = None,
    **info: str,
) -> Manifest:
    """Write a bundle of files that pass every check and hold no model; F16 is the largest."""
    folder.mkdir(parents=True, exist_ok=True)
    digests = {"weights": WEIGHTS, "tokenizer": "c" * 64, "prompt": prompt.digest()}
    made = Manifest(
        BackboneInfo(**{"name": "tel-nano", "architecture": "llama", **digests, **info})
    )
    for at, quant in enumerate(quants):
        path = folder / f"nano-{quant}.gguf"
        path.write_bytes(gguf(general__name="x" * (1000 - at)))
        made = made.with_file(
            describe(
                folder, path, kind="backbone", format="gguf", quant=quant, source=WEIGHTS,
                parity=PARITY,
            )
        )  # fmt: skip
    for category in adapters:
        path = folder / f"nano-{category}-LoRA.gguf"
        keys = {"general__type": "adapter", "tel_edge__backbone__weights": WEIGHTS}
        path.write_bytes(gguf(**keys, tel_edge__category=category))
        known = {"backbone": WEIGHTS, "category": category, "split": split, "parity": PARITY}
        made = made.with_file(
            describe(folder, path, kind="adapter", format="gguf", quant="F16", rank=8, **known)
        )
    manifests.write(made, folder)
    return made


def onnx(
    folder: Path,
    adapters: Sequence[str] = ("oranbench",),
    quants: Sequence[str] = ("fp32", "int4"),
    split: str | None = None,
) -> Manifest:
    """Add ONNX files to the bundle in `folder`: models without nodes, adapters of two numbers."""
    made = manifests.read(folder)
    for at, quant in enumerate(quants):
        path = folder / f"nano-{quant}.onnx"
        # Protobuf: ir_version 10 and an empty graph, then a name.
        path.write_bytes(bytes([0x08, 10, 0x3A, 0, 0x12, len(quant)]) + quant.encode())
        data = folder / f"{path.name}.data"
        data.write_bytes(bytes(4000 >> at))
        for file, kind in ((path, "backbone"), (data, "data")):
            known = {"kind": kind, "quant": quant, "source": WEIGHTS}
            known |= {"parity": PARITY} if kind == "backbone" else {}
            made = made.with_file(describe(folder, file, format="onnx", **known))
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text("{}" + " " * 98)
    made = made.with_file(
        describe(folder, tokenizer, kind="tokenizer", format="onnx", quant="json")
    )
    for category in adapters:
        path = folder / f"nano-{category}.onnx_adapter"
        path.write_bytes(ONNX_ADAPTER)
        known = {"backbone": WEIGHTS, "category": category, "split": split, "parity": PARITY}
        made = made.with_file(
            describe(folder, path, kind="adapter", format="onnx", quant="F32", **known)
        )
    manifests.write(made, folder)
    return made


def rows(count: int) -> list[dict[str, Any]]:
    """Return rows whose questions say which answer is right, which only `gold` reads."""
    choices = ["red", "green", "blue", "white"]
    return [
        {"question": f"Item {at}, gold {at % 4}?", "choices": choices, "answer": at % 4}
        for at in range(count)
    ]


def dataset(folder: Path, category: str, made: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as JSONL in the hub's layout and return the data set's folder."""
    part = folder / category
    part.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in made)
    (part / "test-00000-of-00001.jsonl").write_text(text)
    return folder
