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

from tel_edge.runtime.engines.prefixes import KEEPER, Key
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

    def forget(self) -> None:
        """Drop everything."""
        self._copies.clear()
        self.clear()

    def clear(self) -> None:
        """Empty the context's cache; the copies stay."""
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
        copy = self._copies.get(key)
        if copy is None:
            return False
        if not self._llama.llama_state_seq_set_data(self._context, copy, len(copy), KEEPER):
            raise WorkError("llama.cpp does not take back a prefix that it gave out")
        self._placed = key
        return True

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
