"""Dialogues: what is asked for, what was written, and the rows that both are in files."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tel_edge.eval.care import templates
from tel_edge.eval.care.scenarios import Scenario
from tel_edge.runtime.files import digest
from tel_edge.runtime.questions.conversation import Message


@dataclass(frozen=True)
class Wanted:
    """One dialogue to write: of a scenario its `number`-th, in `turns` exchanges."""

    scenario: Scenario
    number: int
    style: str
    length: str
    turns: int
    seed: int

    @property
    def id(self) -> str:
        """Return `term.cause.context.number`."""
        return f"{self.scenario.id}.{self.number:02d}"


@dataclass(frozen=True)
class Source:
    """Who wrote a dialogue: `kind` template, endpoint or gguf; `prompt` is a digest."""

    kind: str
    model: str
    prompt: str


@dataclass(frozen=True)
class Dialogue:
    """One row of the data set; the last message is the assistant's."""

    wanted: Wanted
    messages: tuple[Message, ...]
    source: Source

    def row(self) -> dict[str, Any]:
        """Return it as files have it."""
        of = self.wanted
        return {
            "id": of.id,
            "scenario": of.scenario.id,
            "messages": [asdict(message) for message in self.messages],
            "facts": of.scenario.facts,
            "style": of.style,
            "source": {**asdict(self.source), "seed": of.seed},
        }


def plan(
    scenarios: Sequence[Scenario], each: int, turns: tuple[int, int], seed: int
) -> Iterator[Wanted]:
    """Yield `each` dialogues of every scenario; styles and lengths are dealt evenly.

    The number of exchanges is dealt too, from the first to the second of `turns`.
    """
    styles = templates.styles()
    for place, scenario in enumerate(scenarios):
        chance = random.Random(f"{seed} plan {scenario.id}")
        for number in range(each):
            # Shifted from one scenario to the next; eight and three have no divisor in common.
            at = place + number
            yield Wanted(
                scenario, number, styles[at % len(styles)],
                templates.LENGTHS[at % len(templates.LENGTHS)], chance.randint(*turns), seed,
            )  # fmt: skip


def key(wanted: Wanted, source: Source) -> str:
    """Return the digest of all that a row depends on."""
    of = wanted.scenario
    made = [of.id, of.brief, wanted.number, wanted.style, wanted.length, wanted.turns, wanted.seed]
    return digest.of_value([*made, asdict(source)])[:32]


def messages(rows: Sequence[Mapping[str, str]]) -> tuple[Message, ...]:
    """Return messages as rows have them."""
    return tuple(Message(row["role"], row["content"]) for row in rows)


def contents(parts: Mapping[str, Iterable[Sequence[Message]]]) -> str:
    """Return the digest over what is said in each part, which an adapter names as its split."""
    return digest.of_value(
        {name: [[*map(asdict, said)] for said in dialogues] for name, dialogues in parts.items()}
    )
