"""How often the verdict is wrong, and how often intervals hold what they say, in simulation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import Generator

from tel_edge.eval.findings import decision, paired
from tel_edge.eval.findings.ladder import Lowest, Rung
from tel_edge.eval.findings.paired import Change
from tel_edge.eval.statistics import clustered_share, difference, mcnemar, paired_difference, share

# The test parts of ot-full, in questions.
SIZES = (1996, 744, 400, 299, 300, 99)
LOSSES = (0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0)
RUNS = 2000
# Answers that change without a loss, as quantization makes them.
MOVED = 0.01


def change(rng: Generator, of: int, loss: float) -> Change:
    """Return what a variant changes that truly loses `loss` of its answers."""
    lost, won, _ = rng.multinomial(of, (MOVED / 2 + loss, MOVED / 2, 1 - MOVED - loss))
    p = mcnemar(int(won), int(lost))
    points = paired_difference(int(won), int(lost), of)
    return Change(of, int(lost), int(won), 0, points, p, p, share(of, of), None, None)


def rung(name: str, size: int, own: dict[str, Change]) -> Rung:
    own = paired.corrected(own)
    low = min(own, key=lambda at: own[at].points.low)
    return Rung(
        name, "gguf", name, "lora", size, 0.6, 0.6, 1.0, None, paired.pooled(list(own.values())),
        {at: each.points for at, each in own.items() if each.verdict == "loss"},
        Lowest(low, own[low].points, own[low].of),
    )  # fmt: skip


def picked(rng: Generator, losses: tuple[float, ...]) -> int | None:
    """Return which variant is decided for, None being the reference."""
    names = [str(at) for at in range(len(SIZES))]
    to = rung("F16", 1000, {n: change(rng, of, 0.0) for n, of in zip(names, SIZES, strict=True)})
    others = [
        rung(
            str(at), 900 - at,
            {n: change(rng, of, loss / 100) for n, of in zip(names, SIZES, strict=True)},
        )
        for at, loss in enumerate(losses)
    ]  # fmt: skip
    passed, _ = decision.sequence([to, *others], "F16", 0.01)
    return None if passed[-1] is to else int(passed[-1].variant)


@pytest.mark.slow
def test_a_variant_that_loses_more_than_the_margin_is_seldom_decided_for() -> None:
    rng = np.random.default_rng(1)
    orders = [tuple(rng.permutation(LOSSES).tolist()) for _ in range(RUNS)]
    found = [picked(rng, losses) for losses in orders]
    lost = [0.0 if at is None else losses[at] for losses, at in zip(orders, found, strict=True)]
    wrong = sum(loss >= 1.0 for loss in lost) / RUNS
    print(f"loses the margin or more: {wrong:.2%}; smaller than the reference: "
          f"{sum(at is not None for at in found) / RUNS:.2%}")  # fmt: skip
    assert wrong <= 0.025


@pytest.mark.slow
def test_twelve_that_all_lose_the_margin_are_as_seldom_taken_as_one() -> None:
    rng = np.random.default_rng(2)
    taken = sum(picked(rng, (1.0,) * 12) is not None for _ in range(RUNS)) / RUNS
    print(f"one of twelve that all lose one point is taken: {taken:.2%}")
    assert taken <= 0.025


@pytest.mark.slow
def test_a_variant_without_a_loss_is_found() -> None:
    rng = np.random.default_rng(3)
    found = sum(picked(rng, (0.0,)) is not None for _ in range(RUNS)) / RUNS
    print(f"one that loses nothing is taken: {found:.2%}")
    assert found >= 0.8


def covered(rng: Generator, kind: str) -> bool:
    of, value = int(rng.integers(200, 2000)), float(rng.uniform(0.2, 0.8))
    if kind == "share":
        made = share(int(rng.binomial(of, value)), of)
        return made.low <= value <= made.high
    if kind == "difference":
        other = float(rng.uniform(0.2, 0.8))
        one, two = share(int(rng.binomial(of, value)), of), share(int(rng.binomial(of, other)), of)
        between = difference(one, two)
        return between.low <= value - other <= between.high
    if kind == "paired":
        loss, moved = float(rng.uniform(0, 0.05)), float(rng.uniform(0.02, 0.2))
        lost, won, _ = rng.multinomial(of, (moved / 2 + loss, moved / 2, 1 - moved - loss))
        points = paired_difference(int(won), int(lost), of)
        return points.low <= -loss <= points.high
    # Each question has a share of its own that all of its orders have.
    spread = float(rng.uniform(0.3, 3))
    own = rng.beta(value * spread, (1 - value) * spread, of)
    made = clustered_share([(int(hits), 4) for hits in rng.binomial(4, own)])
    return made.low <= value <= made.high


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["share", "difference", "paired", "clustered"])
def test_intervals_hold_what_they_say(kind: str) -> None:
    rng = np.random.default_rng(4)
    runs = 6000
    coverage = sum(covered(rng, kind) for _ in range(runs)) / runs
    print(f"{kind}: {coverage:.2%} of {runs:,} intervals hold the truth")
    assert 0.94 <= coverage <= 0.96


def test_the_clustered_interval_is_that_of_questions_where_orders_agree() -> None:
    together = clustered_share([(4, 4)] * 60 + [(0, 4)] * 40)
    alone = share(60, 100)
    assert together.value == alone.value
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.05)
    assert clustered_share([]).high == 1.0
    assert (clustered_share([(4, 4)] * 30).low, clustered_share([(4, 4)] * 30).high) == (
        pytest.approx(share(30, 30).low, abs=0.02), 1.0,
    )  # fmt: skip
