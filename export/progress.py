"""Progress of long work, as the caller shows it: the number of units done since the last call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Step = Callable[[int], None]
# So many units and what they are called, to the step function for as long as that work lasts.
Bar = Callable[[int, str], AbstractContextManager[Step]]


def silent(done: int) -> None:
    """Show nothing: a `Step`."""


@contextmanager
def unseen(total: int, label: str) -> Iterator[Step]:
    """Show nothing: a `Bar`."""
    yield silent
