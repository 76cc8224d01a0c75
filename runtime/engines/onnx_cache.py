"""The keys and values of `with_onnx`: the cells of a decode, and kept prefixes.

A graph has no cache of its own: it takes what was computed before as inputs and gives all of it
back, longer. So a kept prefix costs nothing to put in place, and the same values are used whether
it was kept or has just been computed.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tel_edge.runtime.engines.prefixes import Key, longest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Bytes of kept prefixes; the least recently used make room. In float32 they are twice llama.cpp's.
MOST_BYTES = 256 * 2**20


class OnnxCache:
    """`past` are the inputs of the next step, `marks` [cells] the sequences of each cell as bits.

    `empty` is what `past` is without any cell.
    """

    def __init__(self, empty: Sequence[Any]) -> None:
        import numpy as np

        self._empty = list(empty)
        self._none = np.zeros(0, np.uint64)
        self._kept: OrderedDict[Key, list[Any]] = OrderedDict()
        self._placed: Key | None = None
        self.past, self.marks = self._empty, self._none

    def extend(self, past: Sequence[Any], marks: npt.NDArray[np.uint64]) -> None:
        """Take over what a step gave back, with the sequences of the cells that are new."""
        import numpy as np

        self.past, self.marks = list(past), np.concatenate([self.marks, marks])

    def forget(self) -> None:
        """Drop everything."""
        self._kept.clear()
        self.clear()

    def clear(self) -> None:
        """Empty the cells; what is kept stays."""
        self.past, self.marks, self._placed = self._empty, self._none, None

    def place(self, key: Key) -> bool:
        """Put a kept prefix into the cells and return whether there is one; else empty them."""
        self.clear()
        if key not in self._kept:
            return False
        self._kept.move_to_end(key)
        self._put(key)
        return True

    def keep(self, key: Key) -> None:
        """Keep what is in the cells as that prefix."""
        self._kept[key] = self.past
        while len(self._kept) > 1 and self.kept_bytes() > MOST_BYTES:
            self._kept.popitem(last=False)
        self._put(key)

    def resume(self, key: Key) -> int:
        """Put what is kept of the beginning of a conversation into the cells; return its units."""
        import numpy as np

        found = longest(key, self._kept)
        if found is None:
            self.clear()
            return 0
        units = key.common(found)
        self._kept.move_to_end(found)
        self._put(found)
        if units < len(found.units):
            self._placed = None
            size = found.first(units).tokens
            # A graph takes whole values, so the beginning is copied.
            self.past = [
                type(value).ortvalue_from_numpy(np.ascontiguousarray(value.numpy()[:, :, :size]))
                for value in self.past
            ]
            self.marks = self.marks[:size]
        return units

    def hold(self, key: Key) -> None:
        """Keep what is in the cells as that conversation, in the place of its own beginnings."""
        for one in [one for one in self._kept if one.common(key) == len(one.units)]:
            del self._kept[one]
        self.keep(key)

    def share(self, key: Key, sequences: Sequence[int]) -> None:
        """Let `sequences` begin with the prefix in the cells, as all of them do already."""

    def end(self, sequences: Sequence[int]) -> None:
        """Empty the cells of a decode; only the prefix stays."""
        if self._placed is None:
            self.clear()
        else:
            self._put(self._placed)

    def kept_bytes(self) -> int:
        """Return the bytes of all kept prefixes."""
        return sum(_bytes(value) for values in self._kept.values() for value in values)

    def _put(self, key: Key) -> None:
        import numpy as np

        self.past, self._placed = self._kept[key], key
        # Every sequence begins with the prefix.
        self.marks = np.full(key.tokens, np.iinfo(np.uint64).max, np.uint64)


def _bytes(value: Any) -> int:
    # Keys and values are float32.
    dims: list[int] = value.shape()
    return 4 * math.prod(dims)
