"""JSON Lines as people hand them in: with byte order marks, in UTF-16, packed, or as a list."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tel_edge.runtime.errors import InputError

T = TypeVar("T")

# Windows' tools write it before the first line; in files put together it is before others too.
MARK = "\ufeff"
# How a file begins that is no UTF-8 text, its bytes read as Python's `surrogateescape` does.
FOREIGN = tuple(
    (start.decode("utf-8", "surrogateescape"), name)
    for start, name in (
        (b"\xff\xfe", "UTF-16"),
        (b"\xfe\xff", "UTF-16"),
        (b"\x1f\x8b", "gzip"),
        (b"PK\x03\x04", "zip"),
    )
)
# Bad lines that are named beside the first.
NAMED = 5
REMEDY = {"UTF-16": "save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"}


def check_start(text: str) -> None:
    """Raise `InputError` if a file's first characters show that it is no UTF-8 text.

    Bytes that are no UTF-8 are surrogates in `text`, as `surrogateescape` makes them. UTF-16
    without a byte order mark has a zero byte beside its first character.
    """
    found = next((name for start, name in FOREIGN if text.startswith(start)), None)
    if text[:2] == "\0\0":
        raise InputError("this is no text: it begins with zero bytes")
    if found is None and "\0" in text[:2]:
        found = "UTF-16"
    if found:
        raise InputError(f"this is {found}, not UTF-8; {REMEDY.get(found, 'unpack it first')}")


def read(file: Path, make: Callable[[dict[str, Any]], T]) -> Iterator[tuple[int, T]]:
    """Yield (number of the line, what `make` makes of its object) of each line that is not empty.

    Raises `InputError` with file and line for the first that is no object, or is none to `make`; it
    names others that are bad too, and yields nothing behind the first.
    """
    bad: list[str] = []
    # Bytes that are no UTF-8 get through here, so that they are one line's fault.
    with file.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                try:
                    check_start(line)
                except InputError as error:
                    raise InputError(f"{file}: {error}") from None
            try:
                if (row := parsed(line)) is None:
                    continue
                made = make(row)
            except InputError as error:
                bad.append(f"{number}" if bad else f"line {number}: {error}")
                continue
            if not bad:
                yield number, made
    if bad:
        first, *others = bad
        # Dots for a single one would be no shorter.
        shown = others if len(others) == NAMED + 1 else others[:NAMED]
        named = ", ".join(shown) + ", ..." * (len(others) > len(shown))
        more = f"; {len(others)} more bad line{'s' * (len(others) > 1)}: {named}" if others else ""
        raise InputError(f"{file}: {first}{more}")


def parsed(line: str) -> dict[str, Any] | None:
    """Return the object in a line, None for an empty one. Raises `InputError` with the reason."""
    text = line.removeprefix(MARK).strip()
    if not text:
        return None
    if text in ("[", "{"):
        raise InputError(
            "not JSON Lines: a value over several lines begins here; write one object a line "
            "(jq -c does)"
        )
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON: {error.msg}, at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        of = {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a value")
        raise InputError(f"not a JSON object but {of}; write one object a line")
    return value
