"""Messages to the text that a model is given: by its own chat template, or plainly.

A chat template is a Jinja program that comes with the model, so it is run in a sandbox, with the
settings and the names that transformers gives one (`transformers/utils/chat_template_utils.py`),
but for the date: only a template that cannot do without is told it, so that the others show the
same conversation in the same way on any day.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from tel_edge.runtime.engines.engine import Template
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.extras import need

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """What somebody said; `role` is one of `ROLES`."""

    role: str
    content: str


def templated(template: Template, messages: Sequence[Message], asked: bool = True) -> str:
    """Return the text of a conversation and, if `asked`, of the beginning of the answer to it.

    Raises `InputError` with the template's own words for a conversation that it does not take.
    """
    try:
        text: str = _program(template.text).render(
            messages=[asdict(message) for message in messages],
            add_generation_prompt=asked,
            bos_token=template.start,
            eos_token=template.end,
        )
    except InputError:
        raise
    except Exception as error:
        # Whatever a program of somebody else's may do.
        raise InputError(
            f"the model's chat template cannot be used ({type(error).__name__}: {error})"
        ) from None
    return text


# Reading a program takes far longer than running it, and there is one for thousands of dialogues.
@lru_cache(maxsize=4)
def _program(text: str) -> Any:
    sandbox = need("jinja2.sandbox", "llama")

    def refuse(text: object) -> None:
        raise InputError(f"the model's chat template does not take these messages: {text}")

    room = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def json_of(value: object, **how: Any) -> str:
        # Jinja's own escapes what HTML would read.
        return json.dumps(value, **{"ensure_ascii": False, **how})

    room.add_extension(_answers_marked())
    room.filters["tojson"] = json_of
    room.globals["raise_exception"] = refuse
    if "strftime_now is defined" not in text:
        room.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return room.from_string(text)


def _answers_marked() -> Any:
    """Return the tag by which some templates mark answers for a trainer; it shows what is in it."""
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def plain(messages: Sequence[Message]) -> str:
    """Return the contents, an empty line between them: what an adapter for questions is asked."""
    return "\n\n".join(message.content for message in messages)
