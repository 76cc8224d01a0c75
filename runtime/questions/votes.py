"""From label log-probabilities to a pick, to k draws and their majority, drawn or exact."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeVar

from tel_edge.runtime.errors import InputError

Vote = TypeVar("Vote", bound=Hashable)
# The most draws of a question.
MOST_DRAWS = 128


def pick(logprobs: Sequence[float]) -> int:
    """Return the index of the largest value, the first of equal ones."""
    return max(range(len(logprobs)), key=lambda at: (logprobs[at], -at))


def probabilities(logprobs: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Return the distribution over the labels alone, at that temperature; it sums to 1."""
    top = max(logprobs)
    weights = [math.exp((value - top) / temperature) for value in logprobs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def mass(logprobs: Sequence[float]) -> float:
    """Return the probability that the model gives to all labels together.

    Near 1 the labels are what the model would say anyway; far below, they are forced on it.
    """
    return math.fsum(map(math.exp, logprobs))


def draws(
    logprobs: Sequence[float], k: int, temperature: float, seed: int, id: str
) -> tuple[int, ...]:
    """Return `k` answers sampled from the label distribution.

    The random numbers are a function of (seed, question id) alone, so neither the order of the
    questions nor their batch changes them.
    """
    rng = random.Random(f"{seed} {id}")
    shares = probabilities(logprobs, temperature)
    return tuple(rng.choices(range(len(shares)), shares, k=k))


def majority(votes: Sequence[Vote]) -> Vote:
    """Return the most frequent of at least one vote; of equally frequent ones the first seen wins.

    The rule is that of `Counter.most_common`, which the open-telco harness uses.
    """
    return Counter(votes).most_common(1)[0][0]


def majority_share(shares: Sequence[float], k: int, at: int) -> float:
    """Return the probability that `majority` of `k` independent draws is label `at`.

    It is exact, nothing is sampled: what `draws` and `majority` give on average over all seeds,
    by the same rule for ties. `shares` is the distribution of one draw and sums to 1.

    All orders of the same draws are equally likely, so of m labels that share the largest count
    each is seen first with probability 1 / m. What is summed, over the largest count `top` and
    m, is therefore the multinomial probability that the label and m - 1 others are drawn `top`
    times and the rest less often, over m. A label that is drawn i times adds the factor
    (k share)^i / i!, and k! / k^k makes probabilities of the products. All terms are positive,
    so nothing cancels: the error stays below 1e-12 for 100 labels and `MOST_DRAWS` draws. Raises
    `InputError` for more draws: near 700 the products are beyond any float.
    """
    import numpy as np

    if not 1 <= k <= MOST_DRAWS:
        raise InputError(f"a majority of {k} draws; 1 to {MOST_DRAWS} can be computed")
    won = 0.0
    # The largest count is at least the mean, and no more labels can have it than there are.
    for top in range(-(-k // len(shares)), k + 1):
        # `rows[ties][count]`: the sum over all ways in which `ties` of the labels so far are drawn
        # `top` times each and the others less often, together `count` times.
        most = min(k // top, len(shares))
        rows = [np.zeros(k - top * (ties + 1) + 1) for ties in range(most)]
        rows[0][0] = 1.0
        for label, share in enumerate(shares):
            if label != at:
                *less, level = _factors(share * k, top)
                made = [np.convolve(row, less)[: len(row)] for row in rows]
                for ties in range(1, most):
                    made[ties] += level * rows[ties - 1][: len(made[ties])]
                rows = made
        tied = math.fsum(float(row[-1]) / (ties + 1) for ties, row in enumerate(rows))
        won += _factors(shares[at] * k, top)[top] * tied
    scale: float = math.factorial(k) / k**k
    return won * scale


def majority_shares(shares: Sequence[float], k: int) -> list[float]:
    """Return `majority_share` of every label; they sum to 1."""
    return [majority_share(shares, k, at) for at in range(len(shares))]


def _factors(rate: float, top: int) -> list[float]:
    """Return rate^i / i! for i up to `top`."""
    factors = [1.0]
    for i in range(1, top + 1):
        factors.append(factors[-1] * rate / i)
    return factors
