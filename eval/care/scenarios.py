"""What customers come with: a term of the glossary, what is wrong with it, and where they are.

The glossary has 52 terms in eight families; a table has a symptom, a check, a fix and an escalation
for each family and each of ten causes. With three contexts that are 1,560 scenarios, the number of
arXiv 2606.05176, whose own terms and texts are not published: these are the project's.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tel_edge.runtime.errors import InputError

CONTEXTS: Mapping[str, str] = {
    "home": "at home",
    "travelling": "while travelling",
    "business": "at work",
}
TERM, FAULT = (
    ("term", "family", "definition"),
    (*("family", "cause", "symptom", "check", "fix", "escalate"),),
)
# Terms that no training sees, and shares of all other scenarios that it does not see either.
UNSEEN, SHARES = 4, {"validation": 0.1, "test": 0.1}


@dataclass(frozen=True)
class Term:
    """A word that customers use, in its family, with its meaning in a sentence."""

    name: str
    family: str
    definition: str


@dataclass(frozen=True)
class Scenario:
    """One thing that may be wrong, and what helps; the facts are those of the family and cause."""

    term: Term
    cause: str
    context: str
    symptom: str
    check: str
    fix: str
    escalate: str

    @property
    def id(self) -> str:
        """Return `term.cause.context`, all lower case."""
        return f"{slug(self.term.name)}.{self.cause}.{self.context}"

    @property
    def facts(self) -> dict[str, str]:
        """Return what an answer has to be about and to say."""
        return {
            "term": self.term.name,
            "cause": self.cause,
            "context": self.context,
            "check": self.check,
            "fix": self.fix,
            "escalate": self.escalate,
        }

    @property
    def brief(self) -> str:
        """Return the scenario in words, for whoever writes a dialogue about it."""
        return (
            f"A customer has trouble with {self.term.name} ({self.term.definition}) "
            f"{CONTEXTS[self.context]}: {self.symptom}. The cause is in the area of "
            f"{self.cause}. First {self.check}. What helps: {self.fix}. "
            f"If it does not: {self.escalate}."
        )


def slug(text: str) -> str:
    """Return a name in lower case with hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def scenarios(glossary: Path | None = None) -> tuple[Scenario, ...]:
    """Return every scenario of a glossary, by default the embedded one; terms stay in their order.

    A glossary is a table with tabs whose first line is `term family definition`; its families are
    those of the embedded one. Raises `InputError` with the line that is wrong.
    """
    faults = _table(None, "faults.tsv", FAULT)
    rows = _table(glossary, "glossary.tsv", TERM)
    families = list(dict.fromkeys(row["family"] for row in faults))
    where = glossary or "glossary.tsv"
    names: set[str] = set()
    for number, row in enumerate(rows, 2):
        if row["family"] not in families:
            raise InputError(
                f"{where}: line {number}: family {row['family']!r} is none of {' '.join(families)}"
            )
        name = slug(row["term"])
        if not name or not row["term"].isprintable():
            raise InputError(
                f"{where}: line {number}: term {row['term'][:40]!r} has no letter from a to z "
                "for its id"
            )
        if name in names:
            raise InputError(
                f"{where}: line {number}: term {row['term']!r} reads like another one ({name})"
            )
        names.add(name)
    if len(rows) <= UNSEEN:
        raise InputError(f"{where}: {len(rows)} terms, more than {UNSEEN} are needed")
    return tuple(
        Scenario(
            Term(row["term"], row["family"], row["definition"]),
            fault["cause"], context, fault["symptom"], fault["check"], fault["fix"],
            fault["escalate"],
        )
        for row in rows
        for fault in faults
        if fault["family"] == row["family"]
        for context in CONTEXTS
    )  # fmt: skip


def _table(file: Path | None, own: str, fields: Sequence[str]) -> list[dict[str, str]]:
    source: Any = file or files(__package__).joinpath(own)
    try:
        with source.open(encoding="utf-8-sig", newline="") as lines:
            rows = [*csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)]
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{source}: not UTF-8; save it as UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{source}: {error}") from None
    if not rows or tuple(rows[0]) != tuple(fields):
        raise InputError(f"{source}: line 1: {' '.join(fields)} with tabs between is needed")
    found = []
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(fields) or not all(cell.strip() for cell in row):
            raise InputError(f"{source}: line {number}: {len(fields)} texts with tabs are needed")
        found.append(dict(zip(fields, map(str.strip, row), strict=True)))
    return found


def split(every: Sequence[Scenario], seed: int) -> dict[str, tuple[Scenario, ...]]:
    """Deal scenarios to `train`, `validation`, `test` and `unseen`, each whole to one of them.

    `unseen` has all of some terms, of as many families; the others are dealt evenly over causes.
    Source of the parts: the project's own, since the paper's validation and judged sets are told to
    be distributed differently without saying how.
    """
    chance = random.Random(f"{seed} scenarios")
    families: dict[str, list[Term]] = {}
    for term in dict.fromkeys(one.term for one in every):
        families.setdefault(term.family, []).append(term)
    # Of the families that can best spare one; of as large ones by lot.
    order = sorted(families, key=lambda name: (-len(families[name]), chance.random()))
    ring = [name for turn in range(UNSEEN) for name in order][:UNSEEN]
    unseen = {chance.choice(families[name]) for name in ring}
    while len(unseen) < UNSEEN:
        unseen.add(chance.choice([one.term for one in every]))
    parts: dict[str, list[Scenario]] = {name: [] for name in ("train", *SHARES, "unseen")}
    parts["unseen"] = [one for one in every if one.term in unseen]
    causes: dict[str, list[Scenario]] = {}
    for one in every:
        if one.term not in unseen:
            causes.setdefault(one.cause, []).append(one)
    seen = 0
    for group in causes.values():
        chance.shuffle(group)
        seen += len(group)
        for name, share in SHARES.items():
            # Over all causes each part has its share to the nearest one.
            size = round(seen * share) - len(parts[name])
            parts[name] += [group.pop() for _ in range(size)]
        parts["train"] += group
    place = {one.id: at for at, one in enumerate(every)}
    return {
        name: tuple(sorted(part, key=lambda one: place[one.id])) for name, part in parts.items()
    }
