"""Data sets of dialogues: a folder with a file of JSON lines for each part.

The layout is the one that `tel-generate` writes and that the hub has: `messages` are objects with
`role` and `content`, and every other field may be left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval.care.dialogues import contents
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import jsonl
from tel_edge.runtime.questions.conversation import ROLES, Message

# The parts, those that are needed first.
PARTS = ("train", "validation", "test", "unseen")
NEEDED = PARTS[:2]
# What would show other texts than the messages, and is not supported.
SHOWN = ("tools", "documents")


@dataclass(frozen=True)
class Dialogue:
    """What was said, and where it stands: `train.jsonl: line 3`."""

    messages: tuple[Message, ...]
    where: str
    id: str = ""


@dataclass(frozen=True)
class Dialogues:
    """A data set: its dialogues by part, and a SHA-256 over what is said in each.

    `shared` of those to train on are left out, since another part has the same.
    """

    name: str
    parts: Mapping[str, tuple[Dialogue, ...]]
    shared: int
    digest: str


def read(folder: Path) -> Dialogues:
    """Read a data set. Raises `InputError` with file, line and field for what is no dialogue."""
    files = {name: folder / f"{name}.jsonl" for name in PARTS}
    for name in NEEDED:
        if not files[name].is_file():
            raise InputError(
                f"{folder}: no {name}.jsonl; a folder with train.jsonl and validation.jsonl of "
                "messages is needed, as tel-generate writes one"
            )
    parts = {name: _part(file) for name, file in files.items() if file.is_file()}
    for name in NEEDED:
        if not parts[name]:
            raise InputError(f"{files[name]}: no dialogue in it")
    held = {one.messages for name, of in parts.items() if name != "train" for one in of}
    left = tuple(one for one in parts["train"] if one.messages not in held)
    if not left:
        raise InputError(f"{files['train']}: every dialogue stands in another part too")
    shared = len(parts["train"]) - len(left)
    whole = contents({name: [one.messages for one in of] for name, of in parts.items()})
    return Dialogues(folder.resolve().name, parts | {"train": left}, shared, whole)


def _part(file: Path) -> tuple[Dialogue, ...]:
    def said(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], str]:
        name = row.get("id")
        return _messages(row), "" if name is None else str(name)

    return tuple(
        Dialogue(messages, f"{file}: line {number}", name)
        for number, (messages, name) in jsonl.read(file, said)
    )


def _messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    if strange := [name for name in SHOWN if row.get(name)]:
        raise InputError(f"field {strange[0]!r} cannot be trained with; leave it out")
    given = row.get("messages")
    if not isinstance(given, list) or not given:
        raise InputError("field 'messages': a list of messages is needed")
    made = [_message(f"messages[{at}]", one) for at, one in enumerate(given)]
    first = int(made[0].role == "system")
    for at, one in enumerate(made[first:], first):
        wanted = ("user", "assistant")[(at - first) % 2]
        if one.role != wanted:
            raise InputError(f"messages[{at}].role is {one.role!r}, {wanted!r} is to follow here")
    if made[-1].role != "assistant":
        raise InputError(
            f"messages[{len(made) - 1}].role: the last message has to be an assistant's"
        )
    return tuple(made)


def _message(where: str, given: Any) -> Message:
    if not isinstance(given, dict):
        raise InputError(f"{where} is no object with role and content")
    if strange := [k for k, value in given.items() if k not in ("role", "content") and value]:
        raise InputError(f"{where}.{strange[0][:40]} cannot be trained with; leave it out")
    role, content = given.get("role"), given.get("content")
    if role not in ROLES:
        raise InputError(f"{where}.role is {str(role)[:40]!r}, one of {' '.join(ROLES)} is needed")
    if not isinstance(content, str) or not content.strip():
        raise InputError(f"{where}.content: a text is needed")
    if any("\ud800" <= letter <= "\udfff" for letter in content):
        raise InputError(f"{where}.content has bytes that are no UTF-8")
    return Message(role, content)
