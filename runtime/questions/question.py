"""`Question`, the one record that readers make and everything else takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.categories import Category


@dataclass(frozen=True)
class Question:
    """One question with a closed set of answers.

    `choices` are the answers as shown, in order; `answer` is the index of the right one, or None
    where nobody knows it (a request on a device). `spelled` answers are not shown: the model
    scores their own text, a label each, instead of the letter of an option. The category "" is
    that of a request about which nothing more is known.
    """

    id: str
    category: str
    text: str
    choices: tuple[str, ...]
    answer: int | None = None
    spelled: bool = False


def check_text(text: str) -> None:
    """Raise `InputError` for half a surrogate pair, which JSON can hold and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        # What was a byte that is no UTF-8, as Python's `surrogateescape` reads it.
        if "\udc80" <= half <= "\udcff":
            raise InputError(f"byte 0x{ord(half) - 0xDC00:02X} is no UTF-8") from None
        raise InputError(f"{half!r} is no Unicode character") from None


def check(question: Question, most: int) -> Question:
    """Return `question`, or raise `InputError` saying which rule it breaks.

    The rules are those of the benchmark and of a request alike: a text, 2 to `most` choices, all
    different and none empty, all of it Unicode, and an answer inside them.
    """
    check_text("".join((question.id, question.text, *question.choices)))
    if not question.text.strip():
        raise InputError("empty question")
    if not 2 <= len(question.choices) <= most:
        raise InputError(f"{len(question.choices)} choices; 2 to {most} can be answered")
    stripped = [choice.strip() for choice in question.choices]
    if not all(stripped):
        raise InputError(f"choice {stripped.index('')} is empty")
    if len(set(stripped)) < len(stripped):
        twin = next(choice for choice in stripped if stripped.count(choice) > 1)
        raise InputError(f"two equal choices: {twin[:60]!r}")
    if question.answer is not None and not 0 <= question.answer < len(question.choices):
        from_one = ", which count from 0" if question.answer == len(question.choices) else ""
        raise InputError(
            f"answer {question.answer} is outside the {len(question.choices)} choices{from_one}"
        )
    return question


def excerpt(text: str, category: Category) -> str:
    """Return what follows the category's marker, without braces around it; all where none is."""
    if not category.marker or category.marker not in text:
        return text
    text = text.split(category.marker, 1)[1].strip()
    return text[1:-1] if text[:1] == "{" and text[-1:] == "}" else text


def from_row(row: Mapping[str, Any], category: Category, id: str, most: int) -> Question:
    """Make a checked `Question` of one row in the layout of the hub's data set.

    `row` holds `question`, `answer` and, unless the category has fixed labels, `choices`; the
    answer is an index from 0, or the text or capital letter of one choice. Every other column is
    ignored, `file_name` of 3gpp_tsg first of all: its prefix gives the answer away. A missing
    `answer` is accepted and gives None. Raises `InputError` with the reason.
    """
    text = row.get("question")
    if not isinstance(text, str):
        raise InputError(_wrong("question", text, "a string"))
    text = excerpt(text, category)
    if category.labels:
        choices: Any = list(category.labels)
    else:
        choices = row.get("choices")
    if not isinstance(choices, (list, tuple)) or not all(isinstance(c, str) for c in choices):
        raise InputError(_wrong("choices", choices, "a list of strings"))
    answer = row.get("answer")
    if category.labels and isinstance(answer, str):
        if answer not in category.labels:
            raise InputError(f"answer {answer!r} is none of {' '.join(category.labels)}")
        answer = category.labels.index(answer)
    index = _index(answer, choices)
    return check(Question(id, category.name, text.strip(), tuple(choices), index), most)


def _index(answer: Any, choices: Sequence[str]) -> int | None:
    """Return the index that `answer` means: itself, or that of the choice it spells or letters.

    A column of whole numbers with a gap comes from pandas as floats, and the gap as NaN.
    """
    if isinstance(answer, float) and (answer.is_integer() or math.isnan(answer)):
        answer = None if math.isnan(answer) else int(answer)
    if answer is None or (isinstance(answer, int) and not isinstance(answer, bool)):
        return answer
    if not isinstance(answer, str):
        raise InputError(_wrong("answer", answer, "a whole number"))
    text = answer.strip()
    meant = {at for at, choice in enumerate(choices) if choice.strip() == text}
    meant |= {at for at in range(len(choices)) if ascii_uppercase[at : at + 1] == text}
    if len(meant) > 1:
        raise InputError(f"answer {text!r} is the letter of one choice and the text of another")
    if not meant:
        raise InputError(
            f"answer {text[:60]!r} is neither the text nor the letter of a choice; "
            "an index is a number, and counts from 0"
        )
    return meant.pop()


def _wrong(column: str, value: Any, wanted: str) -> str:
    if value is None:
        return f"column {column!r} is missing"
    return f"column {column!r} holds {type(value).__name__}, wanted {wanted}"
