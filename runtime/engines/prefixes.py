"""What prompts begin with, kept for later decodes: its key, and what a cache does with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# The sequence of the cache that holds the prefix.
KEEPER = 0


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

    def share(self, key: Key, sequences: Sequence[int]) -> None:
        """Let `sequences` begin with the prefix in the cells."""
        ...

    def end(self, sequences: Sequence[int]) -> None:
        """Empty the sequences of a decode."""
        ...
