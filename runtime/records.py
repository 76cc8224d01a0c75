"""What is written of an answer: the line of `tel-run`, which is `tel-serve`'s reply too."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tel_edge.runtime.errors import InputError

if TYPE_CHECKING:
    from tel_edge.runtime.answerer import Answer
    from tel_edge.runtime.questions.requests import Request


def line(record: dict[str, Any]) -> str:
    """Return a record as JSON; half a surrogate pair, which has no bytes, as its escape."""
    text = json.dumps(record, ensure_ascii=False)
    return json.dumps(record) if any("\ud800" <= c <= "\udfff" for c in text) else text


def record(asked: Request, made: Answer | InputError) -> dict[str, Any]:
    """Return the output record of a request: its answer, or `error` with the line."""
    if isinstance(made, InputError):
        id = {} if asked.id is None else {"id": asked.id}
        return id | {"line": asked.line, "error": str(made)}
    head: dict[str, Any] = {"id": asked.id}
    if asked.route:
        # What was sent to a category without an adapter was answered by the bare backbone.
        head["category"] = made.adapter
        head["route_probability"] = round(asked.route.probability, 6)
    body: dict[str, Any] = {"text": made.text}
    if made.text is None:
        body = {
            "probabilities": [round(value, 6) for value in made.probabilities],
            "mass": round(made.mass, 6),
        }
    votes = {"votes": list(made.votes), "majority": made.majority, "adapter": made.adapter}
    return head | {"answer": made.choice, "index": made.index} | body | votes
