"""What waits in the queue of the engine's process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tel_edge.runtime.answerer import Answering
from tel_edge.runtime.engines.engine import Item
from tel_edge.runtime.questions.requests import Request
from tel_edge.runtime.questions.writing import Prompt


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


def characters(value: Any) -> int:
    """Return how many characters and numbers there are in a message."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(characters, value.values()))
    if isinstance(value, list):
        return sum(map(characters, value))
    return 1
