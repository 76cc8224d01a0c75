"""What is read from a row of logits."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

from tel_edge.runtime.engines.logits import drawn, log_sum
from tel_edge.runtime.errors import WorkError

ROW = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32)) + np.float32(20)


def test_the_sum_is_that_of_the_exponentials() -> None:
    assert log_sum(ROW) == pytest.approx(20, abs=1e-5)
    # Neither large nor many values lose what is small.
    assert log_sum(np.full(1 << 20, 80, np.float32)) == pytest.approx(80 + 20 * math.log(2))
    assert log_sum(np.array([1e4, -1e4], np.float32)) == 1e4


def test_at_no_temperature_it_is_the_likeliest() -> None:
    assert {drawn(ROW, 0, random.Random(seed)) for seed in range(20)} == {0}
    assert drawn(ROW[::-1], 0, random.Random(1)) == 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature: float) -> None:
    chance, count = random.Random(5), 8000
    counts = Counter(drawn(ROW, temperature, chance) for _ in range(count))
    weights = np.array([0.5, 0.25, 0.15, 0.1]) ** (1 / temperature)
    for token, share in enumerate(weights / weights.sum()):
        # Five standard deviations.
        assert abs(counts[token] / count - share) < 5 * math.sqrt(share * (1 - share) / count)


def test_a_draw_is_one_of_the_tokens_to_the_very_end() -> None:
    class Last(random.Random):
        def random(self) -> float:
            return math.nextafter(1, 0)

    class First(random.Random):
        def random(self) -> float:
            return 0.0

    for row in (ROW, np.zeros(1000, np.float32), np.array([-1e4, 0, -1e4], np.float32)):
        assert 0 <= drawn(row, 0.7, Last()) < len(row)
        assert 0 <= drawn(row, 0.7, First()) < len(row)
    # What has no probability is not drawn.
    assert drawn(np.array([-1e4, 0, -1e4], np.float32), 0.7, First()) == 1
    assert drawn(np.array([-1e4, 0, -1e4], np.float32), 0.7, Last()) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_damaged_weights_are_told(value: float) -> None:
    row = np.full(4, value, np.float32)
    for work in (lambda: log_sum(row), lambda: drawn(row, 0, random.Random(1))):
        with pytest.raises(WorkError, match="not finite; its weights are damaged"):
            work()
