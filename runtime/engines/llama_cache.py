"""The KV cache of `with_llama`: what prompts begin with, kept for each adapter.

A prefix is kept under the adapter's digest and scale, since its keys and values were computed
through the adapter; the backbone decides them too, and a cache belongs to one. A prefix used under
another adapter gives that adapter's answers, silently.

The cache itself holds one prefix at a time, always in its first cells; the others are copies
outside of it. So a prompt finds the same cells whether its prefix was kept or is computed again,
and gets the same bits: the order of the engine's sums depends on where the cells are.
"""

from __future__ import annotations

import ctypes
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from tel_edge.runtime.engines.prefixes import KEEPER, WORTH, Key, longest
from tel_edge.runtime.errors import WorkError
from tel_edge.runtime.extras import need

# Bytes of prefixes outside of the cache; the least recently used make room.
MOST_BYTES = 64 * 2**20


class PrefixCache:
    """Puts prefixes into the context's cache and keeps copies of them."""

    def __init__(self, context: Any) -> None:
        self._llama = need("llama_cpp.llama_cpp", "llama")
        self._context = context
        self._memory = self._llama.llama_get_memory(context)
        self._copies: OrderedDict[Key, Any] = OrderedDict()
        self._placed: Key | None = None
        # Whether the cells hold a conversation of which there is no copy.
        self._held = False

    def forget(self) -> None:
        """Drop everything."""
        self._copies.clear()
        self._held = False
        self.clear()

    def clear(self) -> None:
        """Empty the context's cache; the copies stay, and a conversation becomes one."""
        self._save()
        self._llama.llama_memory_clear(self._memory, False)
        self._placed = None

    def place(self, key: Key) -> bool:
        """Put a prefix into the cache and return whether it was there or kept.

        If not, the cache is empty: the caller decodes the units into `KEEPER` and calls `keep`.
        """
        if key in self._copies:
            self._copies.move_to_end(key)
        if self._placed == key:
            return True
        self.clear()
        if key not in self._copies:
            return False
        self._restore(key)
        return True

    def _restore(self, key: Key) -> None:
        copy = self._copies[key]
        if not self._llama.llama_state_seq_set_data(self._context, copy, len(copy), KEEPER):
            raise WorkError("llama.cpp does not take back a prefix that it gave out")
        self._placed = key

    def resume(self, key: Key) -> int:
        """Put what is kept of the beginning of a conversation into the cells; return its units."""
        there = [*self._copies, *([self._placed] if self._placed else [])]
        found = longest(key, there)
        if found is None:
            self.clear()
            return 0
        units = key.common(found)
        if found != self._placed:
            self._copies.move_to_end(found)
            self.clear()
            # What was in the cells may have taken its room.
            if found not in self._copies:
                return 0
            self._restore(found)
        elif found.tokens - key.first(units).tokens >= WORTH:
            self._save()
        self._placed = key.first(units)
        if not self._llama.llama_memory_seq_rm(self._memory, KEEPER, self._placed.tokens, -1):
            # Some architectures cannot forget a part.
            self._held = False
            self.clear()
            return 0
        return units

    def hold(self, key: Key) -> None:
        """Note that the cells hold that conversation; it is copied when others take them."""
        self._placed, self._held = key, True

    def _save(self) -> None:
        if self._held and self._placed and self._placed.tokens >= WORTH:
            held = self._placed
            for one in [one for one in self._copies if one.common(held) == len(one.units)]:
                del self._copies[one]
            self.keep(held)
        self._held = False

    def keep(self, key: Key) -> None:
        """Note that `KEEPER` now holds that prefix, and keep a copy of it."""
        size = self._llama.llama_state_seq_get_size(self._context, KEEPER)
        copy = (ctypes.c_uint8 * size)()
        self._placed = key
        if self._llama.llama_state_seq_get_data(self._context, copy, size, KEEPER) != size:
            return
        self._copies[key] = copy
        while len(self._copies) > 1 and sum(map(len, self._copies.values())) > MOST_BYTES:
            self._copies.popitem(last=False)

    def share(self, key: Key, sequences: Sequence[int]) -> None:
        """Let `sequences` begin with the prefix in the cache."""
        for sequence in sequences:
            self._llama.llama_memory_seq_cp(self._memory, KEEPER, sequence, 0, key.tokens)

    def end(self, sequences: Sequence[int]) -> None:
        """Empty the sequences of a decode."""
        for sequence in sequences:
            self._llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
