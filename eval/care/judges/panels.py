"""`panel.json`: who judges, read strictly, since a field that nobody reads judges otherwise."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tel_edge.eval.care.judges.verdicts import PANEL
from tel_edge.runtime.errors import InputError

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
STANDINS = ("rules", "lexical")


@dataclass(frozen=True)
class Row:
    """One judge as the panel names it; what means nothing for its kind is as it is here.

    `key` is the name of an environment variable, `file` a GGUF file. A reply has at most
    `max_tokens` and `timeout` seconds. `price` is of a million tokens, read and written.
    """

    name: str
    kind: str
    family: str = ""
    url: str = ""
    model: str = ""
    key: str = ""
    file: Path = Path()
    max_tokens: int = 400
    timeout: float = 120.0
    parallel: int | None = None
    threads: int | None = None
    price: tuple[float, float] | None = None


# The fields of each kind that are needed, and those that may be left out.
FIELDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "endpoint": (("url", "model", "family"), ("key", "max_tokens", "timeout", "parallel", "price")),
    "gguf": (("file", "family"), ("threads",)),
    "standin": ((), ()),
}
EVERY = ("name", "kind")
# Who judges where no panel is given.
USUAL = tuple(Row(name, "standin") for name in STANDINS)


def read(path: Path) -> tuple[Row, ...]:
    """Return the judges of a panel. Raises `InputError` with the judge and the field."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--panel {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"--panel {path}: not JSON: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("judges"), list):
        raise InputError(f'--panel {path}: {{"judges": [...]}} is needed')
    if other := sorted(set(document) - {"judges"}):
        raise InputError(f"--panel {path}: unknown field {other[0]!r}; there is: judges")
    rows = [_row(path, at, given) for at, given in enumerate(document["judges"], 1)]
    if not rows:
        raise InputError(f"--panel {path}: no judges")
    names = [row.name for row in rows]
    if PANEL in names:
        raise InputError(f"--panel {path}: {PANEL} is what all judges together are called")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"--panel {path}: two judges are called {twice[0]}")
    return tuple(rows)


def _row(path: Path, at: int, given: Any) -> Row:
    name = given.get("name") if isinstance(given, dict) else None
    where = f"--panel {path}: judge {name if isinstance(name, str) and name else at}"
    if not isinstance(given, dict):
        raise InputError(f"{where}: no object")
    kind = given.get("kind")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise InputError(f"{where}: kind is {kind!r}, not one of {' '.join(FIELDS)}")
    needed, optional = FIELDS[kind]
    if other := sorted(set(given) - {*EVERY, *needed, *optional}):
        there = " ".join((*EVERY, *needed, *optional))
        raise InputError(f"{where}: unknown field {other[0]!r} of kind {kind}; there are: {there}")
    if lacking := [field for field in (*EVERY, *needed) if field not in given]:
        raise InputError(f"{where}: field {lacking[0]!r} is missing")
    for field, value in given.items():
        fits, wanted = CHECKS[field]
        if not fits(value):
            # A key that was written down here is not written down once more.
            shown = "" if field == "key" else f" is {str(value)[:60]!r},"
            raise InputError(f"{where}: {field}{shown} {wanted}")
    if kind == "standin" and given["name"] not in STANDINS:
        raise InputError(f"{where}: stand-ins are called {' or '.join(STANDINS)}")
    made = dict(given)
    if "file" in made:
        made["file"] = path.parent / made["file"]
        if not made["file"].is_file():
            raise InputError(f"{where}: file {made['file']}: no such file")
    if "price" in made:
        made["price"] = tuple(map(float, made["price"]))
    return Row(**made)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _like(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and bool(pattern.fullmatch(value))


def _whole(most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 1 <= value <= most


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _price(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_number, value))


# What a field's value has to be, and how that is said.
CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_like(NAME), "letters, digits and . _ - are needed"),
    "kind": (_text, "a text is needed"),
    "url": (_text, "a URL that ends in /v1 is needed"),
    "model": (_text, "a text is needed"),
    "family": (_text, "a text is needed, such as qwen or llama"),
    "key": (
        _like(VARIABLE), "the name of an environment variable is needed, never the key itself",
    ),
    "file": (_text, "a GGUF file is needed"),
    "max_tokens": (_whole(100_000), "a whole number above 0 is needed"),
    "timeout": (lambda value: _number(value) and value > 0, "seconds above 0 are needed"),
    "parallel": (_whole(64), "a whole number from 1 to 64 is needed"),
    "threads": (_whole(512), "a whole number from 1 to 512 is needed"),
    "price": (_price, "two prices are needed, such as [0.15, 0.6]"),
}  # fmt: skip
