"""How often a study's intervals hold the truth and its alarms are right, where truth is known."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import made_study as made

from tel_edge.eval.care.judges.verdicts import Judge, Study
from tel_edge.eval.care.study import audit, checks, strength
from tel_edge.eval.care.study.tallies import tallied

TABLES = 500
BIASED = {"first": 0.10, "length": 0.6}


@dataclass
class Seen:
    """Shares over tables: of scores, wins and ranks that intervals hold, and of alarms by kind."""

    tables: int = 0
    held: Counter[str] = field(default_factory=Counter)
    alarms: Counter[str] = field(default_factory=Counter)

    def share(self, name: str) -> float:
        return self.held[name] / self.held["of"]


def study(truth: made.Truth) -> Study:
    return Study("s", "b", "d", "x", "test", (), (), (), ())


def seen(
    tables: int, seed: int, compare: bool = False, prompts: int = 144, **settings: float
) -> Seen:
    rng = np.random.default_rng(seed)
    found = Seen()
    for _ in range(tables):
        truth = made.drawn(rng, **settings)
        verdicts = made.verdicts(truth, rng, prompts)
        tally = tallied(verdicts, truth.systems)
        fit, lengths = strength.fitted(tally), strength.fitted(tally, lengths=True)
        assert fit is not None
        right = made.expected(truth)
        chance = 1 / (1 + np.exp(-np.subtract.outer(right, right)))
        shares = (chance.sum(1) - 0.5) / (len(right) - 1)
        places = 1 + (right[None, :] > right[:, None]).sum(1)
        for at, one in enumerate(strength.standings(fit, len(tally.won))):
            assert one.score.low is not None
            assert one.wins.low is not None
            found.held["of"] += 1
            found.held["scores"] += one.score.low <= right[at] <= one.score.high  # type: ignore[operator]
            found.held["wins"] += one.wins.low <= shares[at] <= one.wins.high  # type: ignore[operator]
            found.held["ranks"] += one.rank_low <= places[at] <= one.rank_high
        # Where nobody likes length, scores at equal length are the same.
        for at, one in enumerate(strength.standings(lengths, len(tally.won)) if lengths else ()):
            assert one.score.low is not None
            found.held["equal"] += one.score.low <= right[at] <= one.score.high  # type: ignore[operator]
        if compare:
            low, high = made.percentiles(tally)
            found.held["percentiles"] += int(((low <= right) & (right <= high)).sum())
        own = audit.audited(
            study(truth), Judge("judge", "gguf", "f", "m", "d"), verdicts, tally, lengths
        )
        found.alarms.update({one.kind for one in checks.of_judges([own])})
        found.tables += 1
    return found


def test_intervals_and_alarms_are_about_right() -> None:
    found = seen(12, 1)
    assert 0.88 <= found.share("scores") <= 1
    assert found.share("ranks") >= 0.9
    assert found.alarms["first"] + found.alarms["length"] <= 2
    biased = seen(6, 2, **BIASED)
    assert biased.alarms["first"] == biased.alarms["length"] == 6


def told(name: str, found: Seen) -> None:
    held = {key: f"{found.share(key):.2%}" for key in found.held if key != "of"}
    print(f"{name}: {found.tables} tables, held {held}, alarms {dict(found.alarms)}")


@pytest.mark.slow
def test_intervals_hold_what_they_say_and_alarms_are_seldom_false() -> None:
    found = seen(TABLES, 3, compare=True)
    told("no bias", found)
    assert 0.94 <= found.share("scores") <= 0.96
    assert 0.94 <= found.share("wins") <= 0.96
    assert 0.94 <= found.share("equal") <= 0.96
    assert found.share("ranks") >= 0.95
    assert found.alarms["first"] <= 0.05 * TABLES
    assert found.alarms["length"] <= 0.05 * TABLES


@pytest.mark.slow
def test_thirty_scenarios_are_enough() -> None:
    found = seen(TABLES, 5, compare=True, prompts=checks.SCENARIOS)
    told("30 scenarios", found)
    assert 0.94 <= found.share("scores") <= 0.96
    assert found.share("ranks") >= 0.95
    assert found.alarms["first"] + found.alarms["length"] <= 0.05 * TABLES


@pytest.mark.slow
def test_biases_are_found_and_intervals_hold_all_the_same() -> None:
    found = seen(TABLES, 4, **BIASED)
    told("first 0.10, length 0.6 nats a unit of log length", found)
    assert 0.94 <= found.share("scores") <= 0.96
    assert found.alarms["first"] >= 0.95 * TABLES
    assert found.alarms["length"] >= 0.95 * TABLES
