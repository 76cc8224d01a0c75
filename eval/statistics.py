"""Intervals for shares of right answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """`right` of `of` questions, with the 95 % Wilson interval `low` to `high`."""

    right: int
    of: int
    value: float
    low: float
    high: float


def share(right: int, of: int) -> Share:
    """Return the share and its Wilson score interval; of no questions at all it is [0, 1].

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927).
    """
    if of == 0:
        return Share(0, 0, 0.0, 0.0, 1.0)
    value = right / of
    spread = Z95 * math.sqrt(value * (1 - value) / of + Z95**2 / (4 * of**2))
    middle, scale = value + Z95**2 / (2 * of), 1 + Z95**2 / of
    low, high = max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
    return Share(right, of, value, low if right else 0.0, high if right < of else 1.0)


def quantile(values: list[float], at: float) -> float:
    """Return the value below which the share `at` of the values lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(at * len(ordered)))]
