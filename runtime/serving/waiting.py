"""What waits in the queue of the engine's process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tel_edge.runtime.answerer import Answering
from tel_edge.runtime.engines.engine import Item
from tel_edge.runtime.questions.requests import Request
from tel_edge.runtime.questions.scoring import TooLong
from tel_edge.runtime.questions.writing import Prompt

# Characters of a message for each token of the context.
WIDEST = 32


@dataclass(frozen=True)
class Waiting:
    """What is in the queue: of which adapter of which bundle, since when (`time.monotonic`).

    `category` is the adapter's, `adapter` its name in the engine. A question of `request` or a
    `prompt` with choices, with its `item`, or a `prompt` alone.
    """

    category: str | None
    adapter: str | None
    bundle: str
    since: float
    request: Request | None = None
    item: Item | None = None
    how: Answering | None = None
    prompt: Prompt | None = None

    def origin(self, engine: Any) -> dict[str, Any]:
        """Return what an answer says of where it is from."""
        digest = engine.adapter(self.adapter).digest if self.adapter else None
        masked = {"masked": self.prompt.masked} if self.prompt and self.prompt.masked else {}
        made = {"adapter": self.category, "adapter_digest": digest, "bundle": self.bundle}
        return made | masked


def check_size(message: Mapping[str, Any], context: int) -> None:
    """Refuse what is far too long before it is read, which all others wait for."""
    size, most = characters(message), WIDEST * context
    if size > most:
        raise TooLong(f"{size:,} characters, at most {most:,} are read")


def characters(value: Any) -> int:
    """Return how many characters and numbers there are in a message."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(characters, value.values()))
    if isinstance(value, list):
        return sum(map(characters, value))
    return 1
