"""Numbers of a model folder's configuration, refused by name where no engine can hold them.

GGUF holds whole numbers as uint32, which llama.cpp keeps as int32, and real ones as float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tel_edge.runtime.errors import InputError

MOST = 2**31 - 1
# The least and the largest float32 of full precision.
LEAST_REAL, MOST_REAL = 2.0**-126, (2 - 2.0**-23) * 2.0**127


def shown(value: Any) -> str:
    """Return a value as a message has it: on one line, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole(config: Mapping[str, Any], field: str, where: str, most: int = MOST) -> int:
    """Return a whole number from 1 to `most`, or raise `InputError` naming file and field."""
    value = config.get(field)
    if isinstance(value, int) and value > most:
        raise InputError(f"{where}: {field} is {shown(value)}; at most {most} is possible")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{where}: {field} is {shown(value)}, wanted a whole number above 0")
    return value


def real(config: Mapping[str, Any], field: str, where: str) -> float:
    """Return a float32 above 0, or raise `InputError` naming file and field."""
    value = config.get(field)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise InputError(f"{where}: {field} is {shown(value)}, wanted a number above 0")
    if not LEAST_REAL <= value <= MOST_REAL:
        raise InputError(f"{where}: {field} is {shown(value)}, which no float32 can hold")
    return float(value)


def ids(config: Mapping[str, Any], field: str, where: str, rows: int) -> tuple[int, ...]:
    """Return the token ids of a field, which has one, a list of them or none.

    Raises `InputError` for what is not a row of an embedding of `rows`.
    """
    given = config.get(field)
    found = given if isinstance(given, list) else [] if given is None else [given]
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < rows:
            raise InputError(
                f"{where}: {field} is {shown(given)}, wanted a token id below vocab_size {rows}"
            )
    return tuple(found)
