"""A data set of a few dialogues, and an engine that talks and gives logits without a model."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fake_engine as fake
import numpy as np

from tel_edge.eval.care import templates
from tel_edge.eval.care.dialogues import Dialogue, Source, plan
from tel_edge.eval.care.scenarios import Scenario, scenarios
from tel_edge.runtime.engines.engine import EngineSettings, LoraFile, Template
from tel_edge.runtime.engines.packing import PackedEntry

# What a prompt looks like, in which `answer` finds the dialogue again.
TEMPLATE = Template(
    "<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]", "", ""
)
Says = Callable[[str], str]


def dataset(
    folder: Path, count: int = 4, each: int = 2, turns: int = 1, part: str = "test"
) -> Path:
    """Write `count` scenarios of different causes to one part, and others to the train part."""
    every = scenarios()
    rows(folder / f"{part}.jsonl", every[: count * 3 : 3], each, turns)
    rows(folder / "train.jsonl", every[100::40], 1, 1)
    return folder


def rows(file: Path, of: Sequence[Scenario], each: int, turns: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    made = []
    for one in plan(of, each, (turns, turns), 1):
        # The longest, in which everything is said.
        messages = templates.write(one.scenario, one.style, "long", turns, one.id)
        made.append(Dialogue(one, messages, Source("template", "test", "")).row())
    file.write_text("".join(json.dumps(row) + "\n" for row in made))


def answer(folder: Path) -> Says:
    """Return what answers with the data set's own words, in whichever exchange it is asked."""
    known: dict[str, str] = {}
    for file in folder.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            messages = json.loads(line)["messages"]
            for asked, said in zip(messages[::2], messages[1::2], strict=True):
                known[asked["content"]] = said["content"]

    def say(prompt: str) -> str:
        last = prompt.rpartition("[user]")[2].removesuffix("\n[assistant]")
        return known[last]

    return say


class TalkingEngine(fake.FakeEngine):
    """Says what `says` makes of a prompt; its logits are `peak` at the token before, else 0."""

    template = TEMPLATE
    peak = 3.0
    shut = False

    def use(self, adapter: str | None) -> None:
        self.used = adapter

    def forget(self) -> None:
        pass

    def decode(self, entries: Sequence[PackedEntry]) -> Iterator[tuple[tuple[int, int], Any]]:
        for entry in entries:
            if entry.read is not None:
                logits = np.zeros(self.vocabulary, np.float32)
                logits[entry.token] = self.peak
                yield entry.read, logits


@dataclass
class Talks:
    """An opener by the type in a file's name: what it says, and the peak of its logits."""

    says: Mapping[str, Says]
    peaks: Mapping[str, float] = field(default_factory=dict)
    context: int = 100_000
    engines: list[TalkingEngine] = field(default_factory=list)

    def __call__(
        self, path: Path, adapters: Mapping[str, LoraFile], settings: EngineSettings
    ) -> TalkingEngine:
        quant = next(name for name in self.says if name in path.name)

        def writer(prompt: str, adapter: str | None, turn: int) -> str:
            return self.says[quant](prompt)

        made = TalkingEngine(fake.uniform, self.context, adapters, settings, writer)
        made.peak = self.peaks.get(quant, 3.0)
        made.lock = threading.RLock()  # type: ignore[attr-defined]
        self.engines.append(made)
        return made

    def asked(self) -> int:
        """Return how many prompts were answered."""
        return sum(count for engine in self.engines for count, _ in engine.calls)
