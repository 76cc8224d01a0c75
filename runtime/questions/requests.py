"""Requests of `tel-run`: a question from an argument or a line of JSONL, or why it is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from tel_edge.runtime.errors import InputError
from tel_edge.runtime.files import jsonl
from tel_edge.runtime.questions.categories import Category, category
from tel_edge.runtime.questions.prompt import LETTERS
from tel_edge.runtime.questions.question import Question, check, from_row
from tel_edge.runtime.questions.router import Route
from tel_edge.runtime.questions.stream import MOST_LINE

# Labels of a question's own: each branch of their trie takes a sequence of the engine.
MOST_LABELS = 200
# What a request is of which nothing more is known.
PLAIN = Category("", "", "", "")

# (text, choices) to a category, for requests that name none.
Router = Callable[[str, Sequence[str]], Route]


@dataclass(frozen=True)
class Request:
    """A question to answer, or the reason why the line is none. `line` counts from 1.

    `route` is how the category was found, None where the request or the command names it. `id` is
    the line's own, text or number; where it has none, its number as text, or None in an error.
    """

    line: int
    question: Question | None
    error: str = ""
    route: Route | None = None
    id: Any = None


@dataclass(frozen=True)
class Defaults:
    """What a request means by what it does not say.

    `category` None leaves it to `router`; None there too is an error, unless `bare`, which asks
    for no category at all. `labels` are the answers of questions that bring no choices.
    """

    category: Category | None = None
    router: Router | None = None
    bare: bool = False
    labels: tuple[str, ...] = ()


def from_arguments(
    texts: Iterable[str], choices: Sequence[str], defaults: Defaults
) -> Iterator[Request]:
    """Yield one request a text, all with the same choices."""
    for line, text in enumerate(texts, start=1):
        row: dict[str, Any] = {"question": text}
        yield request(line, row | ({"choices": list(choices)} if choices else {}), defaults)


def from_lines(lines: Iterable[str], defaults: Defaults) -> Iterator[Request]:
    """Yield one request a JSONL line; empty lines are passed over.

    A line holds `question` and `choices`, unless the category has fixed labels, or `labels`, which
    are answers in words that are not shown; it may hold `id` and `category`. Raises `InputError`
    where the first line shows that none of them is UTF-8 text.
    """
    for line, text in enumerate(lines, start=1):
        if line == 1:
            jsonl.check_start(text)
        if len(text) > MOST_LINE:
            yield Request(line, None, f"more than {MOST_LINE:,} characters")
            continue
        try:
            row = jsonl.parsed(text)
        except InputError as error:
            yield Request(line, None, str(error))
            continue
        if row is not None:
            yield request(line, row, defaults)


def request(line: int, row: Mapping[str, Any], defaults: Defaults) -> Request:
    """Return the request of one row."""
    own = row.get("id")
    id = str(line if own is None else own)
    # NaN is no JSON, and may stand inside whatever is neither text nor number.
    if own is not None and not isinstance(own, (str, int)):
        own = own if isinstance(own, float) and isfinite(own) else id
    given = id if own is None else own
    asked = {key: value for key, value in row.items() if key != "answer"}
    try:
        if asked.get("labels") is not None and asked.get("choices") is not None:
            raise InputError("both labels and choices; give one")
        of, route = _category(asked, defaults)
        _check_choices(asked, of)
        labels = asked.get("labels", None if "choices" in asked else defaults.labels or None)
        if labels is not None:
            return Request(line, _spelled(asked, of, id, labels), route=route, id=given)
        return Request(line, from_row(asked, of, id, len(LETTERS)), route=route, id=given)
    except InputError as error:
        return Request(line, None, str(error), id=own)


def _category(row: Mapping[str, Any], defaults: Defaults) -> tuple[Category, Route | None]:
    if row.get("category") is not None:
        return category(str(row["category"])), None
    if defaults.category is not None:
        return defaults.category, None
    text, choices = row.get("question"), row.get("choices")
    choices = choices if isinstance(choices, (list, tuple)) else ()
    if defaults.router is None:
        if defaults.bare:
            return PLAIN, None
        raise InputError(
            "no category, and no router in the bundle that finds one; name it with --category or "
            "in the line"
        )
    if not isinstance(text, str) or not all(isinstance(choice, str) for choice in choices):
        # Whatever the category: the reader says what is wrong.
        return PLAIN, None
    route = defaults.router(text, tuple(choices))
    of = category(route.category) if route.category else PLAIN
    return (PLAIN if _others(choices, of) else of), route


def _others(choices: Any, of: Category) -> bool:
    """Return whether a category of fixed labels would answer with others than these choices."""
    return bool(of.labels and choices) and tuple(choices) != tuple(of.labels)


def _check_choices(row: Mapping[str, Any], of: Category) -> None:
    choices = row.get("choices")
    if isinstance(choices, (list, tuple)) and _others(choices, of):
        raise InputError(
            f"{of.name} always answers with one of {' '.join(of.labels)}: leave the choices out, "
            "or name another category"
        )


def _spelled(row: Mapping[str, Any], of: Category, id: str, labels: Any) -> Question:
    if not isinstance(labels, (list, tuple)) or not all(isinstance(x, str) for x in labels):
        raise InputError("field 'labels' is no list of strings")
    # The text is read by the same rules as any; the answers are these.
    read = from_row(dict(row) | {"choices": ["a", "b"]}, of, id, len(LETTERS))
    return check(replace(read, choices=tuple(labels), spelled=True), MOST_LABELS)
