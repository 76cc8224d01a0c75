"""Dialogues from templates: the embedded writer, the same for a seed on every machine.

Every answer names the term, asks for the check and gives the fix, in the scenario's own words, so
that what a model learns and what it is measured by are the same facts. All else is dealt: the
customer's style, the length, what else they tell.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from tel_edge.eval.care.scenarios import Scenario
from tel_edge.runtime.questions.conversation import Message

LENGTHS = ("short", "medium", "long")
# Exchanges: all in one, the fix apart, then what follows where it fails, then thanks.
MOST_TURNS = 4


@cache
def phrases() -> Mapping[str, Any]:
    """Return the embedded phrases by what they are for."""
    made: Mapping[str, Any] = json.loads(
        files(__package__).joinpath("phrases.json").read_text(encoding="utf-8")
    )
    return made


def styles() -> tuple[str, ...]:
    """Return the customers' styles."""
    return tuple(phrases()["styles"])


def write(
    scenario: Scenario, style: str, length: str, turns: int, seed: str
) -> tuple[Message, ...]:
    """Return a dialogue of `turns` exchanges; all that is dealt depends on `seed` alone."""
    return _Writer(scenario, style, random.Random(seed)).dialogue(length, turns)


class _Writer:
    def __init__(self, scenario: Scenario, style: str, chance: random.Random) -> None:
        self.scenario, self.style, self.chance = scenario, style, chance
        self.known = {
            **scenario.facts,
            "symptom": scenario.symptom,
            "term": scenario.term.name,
            "definition": scenario.term.definition,
            "place": self.chance.choice(phrases()["place"][scenario.context]),
        }

    def one(self, of: str) -> str:
        """Return one of the phrases for something, with the scenario in it."""
        choices = phrases()[of]
        if isinstance(choices, dict):
            choices = choices[self.style]
        return str(self.chance.choice(choices)).format(**self.known)

    def dialogue(self, length: str, turns: int) -> tuple[Message, ...]:
        detail = LENGTHS.index(length)
        first = [self.one("answered")] if detail or self.chance.random() < 0.5 else []
        if detail == 2 or not self._names(first):
            first.append(self.one("define"))
        check, fix, escalate = self.one("check"), self.one("fix"), self.one("escalate")
        closing = [self.one("closing")] if detail == 2 else []
        says = [self._asks(detail)]
        if turns == 1:
            answers = [[*first, check, fix, *([escalate] if detail else []), *closing]]
        else:
            answers = [[*first, check], [fix], [escalate], closing or [self.one("closing")]]
            says += [self.one("did"), self.one("still"), self.one("thanks")]
            # What is left of the facts belongs to the last exchange.
            last = [part for answer in answers[turns - 1 :] for part in answer]
            answers = [*answers[: turns - 1], last if turns < MOST_TURNS else answers[-1]]
        made = []
        for say, answer in zip(says, answers, strict=False):
            made += [Message("user", _sentence(say)), Message("assistant", " ".join(answer))]
        return tuple(made)

    def _names(self, parts: list[str]) -> bool:
        return any(self.scenario.term.name in part for part in parts)

    def _asks(self, detail: int) -> str:
        greeting, trouble = self.one("greeting"), self.one("trouble")
        where = [self.known["place"], self.chance.choice(phrases()["since"])]
        self.chance.shuffle(where)
        parts = [f"{trouble} {' '.join(where[: 1 + (detail > 0)])}."]
        if detail == 2 or self.chance.random() < 0.3:
            parts.append(self.one("tried"))
        parts.append(self.one("request"))
        if not greeting.endswith((",", ":")):
            parts[0] = parts[0][0].upper() + parts[0][1:]
        return " ".join([greeting, *parts])


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
