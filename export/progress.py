"""Progress of long work, as the caller shows it: the number of units done since the last call."""

from __future__ import annotations

from collections.abc import Callable

Step = Callable[[int], None]
