"""One thread at a time in an engine, and nobody after it is closed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from tel_edge.runtime.errors import WorkError


class Shared(Protocol):
    """What several threads may ask: its lock, and whether it is closed."""

    shut: bool

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Return what one thread at a time has."""
        ...


E = TypeVar("E", bound=Shared)
P = ParamSpec("P")
R = TypeVar("R")


def alone(work: Callable[Concatenate[E, P], R]) -> Callable[Concatenate[E, P], R]:
    """Let one thread at a time do `work`, and nobody after the engine is closed."""

    @functools.wraps(work)
    def locked(engine: E, /, *given: P.args, **named: P.kwargs) -> R:
        with engine.lock:
            if engine.shut:
                raise WorkError("the engine is closed")
            return work(engine, *given, **named)

    return locked
