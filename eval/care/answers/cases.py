"""The dialogues of a data set that are asked, and what an answer to them has to say.

Source of the layout: `tel-generate` (docs/care.md). Other folders that have it are read as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval.care.answers.measured import FACTS, THRESHOLD
from tel_edge.eval.care.dialogues import contents
from tel_edge.eval.care.gates import said
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import digest, jsonl
from tel_edge.runtime.questions.conversation import ROLES, Message

PARTS = ("test", "unseen", "validation", "train")


@dataclass(frozen=True)
class Case:
    """One dialogue: `messages` as the data set has them, `facts` by name (`FACTS`), the `term`."""

    id: str
    scenario: str
    messages: tuple[Message, ...]
    term: str
    facts: Mapping[str, str]

    @property
    def asked(self) -> str:
        """Return eight hexadecimal digits of all that an answer and its measures depend on."""
        said_ = [(one.role, one.content) for one in self.messages]
        return digest.of_value([said_, self.term, dict(self.facts)])[:8]

    @property
    def references(self) -> tuple[str, ...]:
        """Return the answers that the data set has."""
        return tuple(one.content for one in self.messages if one.role == "assistant")

    @property
    def wanted(self) -> tuple[str, ...]:
        """Return which facts an answer has to say: check and fix, and what the reference says."""
        whole = " ".join(self.references)
        return tuple(
            name
            for name in FACTS
            if name != "escalate" or said(whole, self.facts[name]) >= THRESHOLD
        )


@dataclass(frozen=True)
class Cases:
    """The dialogues of one part; `others` are the facts of all parts, `left_out` not wanted.

    `digest` is over what is said in all parts, which adapters that were trained on it name too.
    """

    part: str
    dataset: str
    digest: str
    cases: tuple[Case, ...]
    others: tuple[str, ...]
    left_out: int


def read(folder: Path, part: str, limit: int | None = None) -> Cases:
    """Return at most `limit` dialogues of a part, which ones being a digest's choice.

    Those of a smaller limit are among those of a larger one. Raises `InputError` for a folder that
    is no such data set, with the line that is wrong.
    """
    if not (folder / f"{part}.jsonl").is_file():
        there = " ".join(name for name in PARTS if (folder / f"{name}.jsonl").is_file())
        raise InputError(
            f"--dataset {folder}: no {part}.jsonl (there: {there or 'no part'}); --category care "
            "needs a folder that tel-generate made: tel-generate --out DIR"
        )
    files = {name: folder / f"{name}.jsonl" for name in PARTS}
    parts = {
        name: [case for _, case in jsonl.read(file, _case)]
        for name, file in files.items()
        if file.is_file()
    }
    every = (one for of in parts.values() for one in of)
    facts = dict.fromkeys(text for one in every for text in one.facts.values())
    whole = contents({name: [one.messages for one in of] for name, of in parts.items()})
    own = parts[part]
    if not own:
        raise InputError(f"{folder / part}.jsonl: no dialogues")
    if len({case.id for case in own}) < len(own):
        raise InputError(f"{folder / part}.jsonl: two dialogues have the same id")
    chosen = sorted(own, key=lambda case: digest.of_value(case.id))[:limit]
    kept = {case.id for case in chosen}
    cases = tuple(case for case in own if case.id in kept)
    return Cases(
        part, folder.resolve().name, whole, cases, tuple(facts),
        len(own) - len(cases),
    )  # fmt: skip


def _case(row: Mapping[str, Any]) -> Case:
    facts = _field(row, "facts", dict)
    messages = tuple(
        Message(_field(one, "role", str), _field(one, "content", str))
        for one in _field(row, "messages", list)
        if isinstance(one, dict)
    )
    roles = [one.role for one in messages if one.role != ROLES[0]]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise InputError(f"messages are of {' '.join(roles)[:60] or 'nobody'}, not in turn")
    texts = {name: _field(facts, name, str) for name in FACTS}
    case = Case(
        _field(row, "id", str), _field(row, "scenario", str), messages,
        _field(facts, "term", str), texts,
    )  # fmt: skip
    _writable([case.id, case.term, *texts.values(), *(one.content for one in messages)])
    return case


def _field(row: Mapping[str, Any], name: str, kind: type) -> Any:
    value = row.get(name)
    if not isinstance(value, kind) or not value:
        raise InputError(f"{name} is {str(value)[:40]!r}, a {kind.__name__} is needed")
    return value


def _writable(texts: Sequence[str]) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise InputError("characters that are no UTF-8") from None
