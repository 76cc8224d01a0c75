"""What prompts begin with, kept for later decodes: its key, and what a cache does with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tel_edge.runtime.engines.packing import common

# The sequence of the cache that holds the prefix.
KEEPER = 0
# Tokens of a conversation that are worth a copy before another one takes their cells.
WORTH = 64


@dataclass(frozen=True)
class Key:
    """What a prefix was computed of: the adapter's digest ("" for none) and scale, and tokens.

    `units` are the parts, each computed in one go. The backbone decides a prefix too; a cache
    belongs to one.
    """

    adapter: str
    scale: float
    units: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Return the length of the prefix."""
        return sum(map(len, self.units))

    def first(self, count: int) -> Key:
        """Return the key of the first `count` units."""
        return replace(self, units=self.units[:count])

    def common(self, other: Key) -> int:
        """Return how many units both begin with; none under another adapter."""
        if (self.adapter, self.scale) != (other.adapter, other.scale):
            return 0
        return common(self.units, other.units)


def longest(key: Key, kept: Iterable[Key]) -> Key | None:
    """Return which of `kept` has the most units of the beginning of `key`, if any has one.

    Of equal ones the last.
    """
    best, most = None, 1
    for one in kept:
        if (count := key.common(one)) >= most:
            best, most = one, count
    return best


class Prefixes(Protocol):
    """The cells of a decode, and the prefixes that are kept for later ones."""

    def forget(self) -> None:
        """Drop everything."""
        ...

    def clear(self) -> None:
        """Empty the cells; what is kept stays."""
        ...

    def place(self, key: Key) -> bool:
        """Put a prefix into the cells and return whether it was there or kept.

        If not, the cells are empty: the caller decodes the units into `KEEPER` and calls `keep`.
        """
        ...

    def keep(self, key: Key) -> None:
        """Note that the cells hold that prefix and nothing else, and keep it."""
        ...

    def resume(self, key: Key) -> int:
        """Put what is kept of the beginning of a conversation into `KEEPER`; return its units.

        The cells hold nothing else. What was in them of another conversation stays kept.
        """
        ...

    def hold(self, key: Key) -> None:
        """Note that the cells hold that conversation and nothing else, and keep it for `resume`."""
        ...

    def share(self, key: Key, sequences: Sequence[int]) -> None:
        """Let `sequences` begin with the prefix in the cells."""
        ...

    def end(self, sequences: Sequence[int]) -> None:
        """Empty the sequences of a decode."""
        ...
