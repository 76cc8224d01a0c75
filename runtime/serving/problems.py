"""How a request may fail: HTTP status and code, one row each."""

from __future__ import annotations

from typing import Any

Kind = tuple[int, str]

INVALID: Kind = (400, "invalid_request")
LONG: Kind = (400, "context_length_exceeded")
KEYLESS: Kind = (401, "invalid_api_key")
FOREIGN: Kind = (403, "forbidden")
MODEL: Kind = (404, "model_not_found")
LARGE: Kind = (413, "body_too_large")
FULL: Kind = (429, "overloaded")
BROKEN: Kind = (500, "engine_error")
DRAINING: Kind = (503, "draining")
STARTING: Kind = (503, "engine_starting")
RESTARTING: Kind = (503, "engine_restarted")
LATE: Kind = (504, "deadline_exceeded")


# Characters of an error: a client's own words may be of any length.
MOST_TEXT = 300


def shortened(text: str) -> str:
    """Return a text of at most `MOST_TEXT` characters, and dots where there was more."""
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}..."


class Failed(Exception):
    """A request that gets an error: its kind, a sentence, seconds to come again."""

    def __init__(self, kind: Kind, text: str, after: float | None = None) -> None:
        super().__init__(text)
        self.kind, self.after = kind, after

    def told(self) -> dict[str, Any]:
        """Return it as the engine's process sends it."""
        status, code = self.kind
        after = {} if self.after is None else {"after": round(self.after, 1)}
        return {"status": status, "code": code, "message": shortened(str(self)), **after}
