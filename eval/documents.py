"""JSON documents of a schema version, as the evaluation writes and reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files.atomic import write_text

T = TypeVar("T")


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document in one step, the same bytes for the same contents."""
    write_text(path, json.dumps(document, indent=1, sort_keys=True) + "\n")


def number(document: Mapping[str, Any], name: str) -> float:
    """Return a number from 0 on. Raises `ValueError` for anything else, NaN and infinity too."""
    value = document[name]
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}, wanted a number from 0 on")
    return float(value)


def read(path: Path, version: int) -> Any:
    """Read a document. Raises `ValueError` if it is no JSON or of another version.

    `TypeError` or `KeyError` say that it is JSON of something else.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["schema_version"] != version:
        raise ValueError(f"schema_version {document['schema_version']}")
    return document


def lines(path: Path, make: Callable[[dict[str, Any]], T], wrong: str) -> Iterator[T]:
    """Yield what `make` makes of each line of JSON in a file, nothing where there is no file.

    A torn last line, which a killed run leaves, ends it. Raises `InputError` for a broken one
    before it, saying `wrong` with its {path}, {number} and {error}.
    """
    if not path.exists():
        return
    # Not at other separators, which texts may have in them.
    *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, text in enumerate(whole, 1):
        try:
            made = make(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            said = wrong.format(path=path, number=number, error=error)
            raise InputError(said) from None
        yield made
