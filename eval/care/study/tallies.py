"""Verdicts on pairs as arrays: a row a pair of answers, both orders that it was shown in together.

Each order counts half, so a tie is half a win, and a pair of which both times the answer in the
same place won, a flip, is a tie too. A pair of which one order is missing is counted and left out,
since the place would count along.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tel_edge.eval.care.judges.verdicts import PairVerdict
from tel_edge.eval.statistics import Share, clustered_share
from tel_edge.runtime.errors import InputError

# What a choice is worth to the answer that was shown first.
WORTH = {"first": 1.0, "tie": 0.5, "second": 0.0}
Unit = tuple[str, int, int]


@dataclass(frozen=True, eq=False)
class Tally:
    """What was said of `n` pairs of answers of `systems`.

    `left` and `right` [n] are indices of systems, left the smaller one; `won` [n] is left's share
    of the pair, 0 to 1, `longer` [n] the natural logarithm of left's words over right's, `first`
    [n] the share of the answer shown first, 0.5 where the place does not matter. `flipped` [n]:
    both times the same place won, `changed` [n]: the other order gave another outcome, ties too.
    `scenarios` and `prompts` [n] are names.

    Of `asked` verdicts `missing` could not be read; `half` pairs have one order only.
    """

    systems: tuple[str, ...]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    won: NDArray[np.float64]
    longer: NDArray[np.float64]
    first: NDArray[np.float64]
    flipped: NDArray[np.bool_]
    changed: NDArray[np.bool_]
    scenarios: NDArray[Any]
    prompts: NDArray[Any]
    asked: int
    missing: int
    half: int

    @property
    def pairs(self) -> list[Unit]:
        """Return (prompt, left, right) of each row; of several judges, the same several times."""
        rows = zip(self.prompts.tolist(), self.left.tolist(), self.right.tolist(), strict=True)
        return [*rows]

    def means(self) -> dict[Unit, float]:
        """Return left's share of each pair, the mean of judges who had it."""
        found: dict[Unit, list[float]] = {}
        for unit, won in zip(self.pairs, self.won.tolist(), strict=True):
            found.setdefault(unit, []).append(won)
        return {unit: sum(of) / len(of) for unit, of in found.items()}

    def homes(self) -> dict[Unit, str]:
        """Return the scenario of each pair."""
        return dict(zip(self.pairs, self.scenarios.tolist(), strict=True))

    @property
    def groups(self) -> NDArray[np.int64]:
        """Return the scenario of each row as an index from 0 on [n]."""
        made: NDArray[np.int64] = np.unique(self.scenarios, return_inverse=True)[1]
        return made

    def clustered(self, values: NDArray[Any]) -> list[list[float]]:
        """Return values [n] in lists, those of a scenario together."""
        order = np.argsort(self.groups, kind="stable")
        cuts = np.flatnonzero(np.diff(self.groups[order])) + 1
        return [part.tolist() for part in np.split(values[order].astype(float), cuts)]

    def shared(self, of: NDArray[np.bool_]) -> Share:
        """Return the share of pairs, with an interval over scenarios."""
        if not len(of):
            return clustered_share([])
        return clustered_share([(int(sum(one)), len(one)) for one in self.clustered(of)])


def tallied(verdicts: Iterable[PairVerdict], systems: Sequence[str], both: bool = True) -> Tally:
    """Return what one judge said; repeats are counted nowhere.

    Of people, who see a pair in one order drawn by lot, `both` is False: what is there counts.
    Raises `InputError` for a verdict on what is no pair of `systems`.
    """
    place = {name: at for at, name in enumerate(systems)}
    pairs: dict[Unit, dict[bool, PairVerdict]] = {}
    asked = missing = 0
    for one in verdicts:
        if one.repeat:
            continue
        asked += 1
        missing += one.choice is None
        if one.first not in place or one.second not in place or one.first == one.second:
            raise InputError(
                f"{one.judge} was asked about {one.first} and {one.second}, which are no two "
                "systems of study.json; the verdicts are of another study"
            )
        low, high = sorted((place[one.first], place[one.second]))
        pairs.setdefault((one.prompt, low, high), {})[place[one.first] == low] = one
    rows, half = [], 0
    for unit, orders in pairs.items():
        known = {straight: one for straight, one in orders.items() if one.choice is not None}
        if len(known) == 2 or (known and not both):
            rows.append((unit, known))
        half += len(known) == 1 and both
    return _arrays(rows, tuple(systems), asked, missing, half)


def _arrays(
    rows: Sequence[tuple[Unit, dict[bool, PairVerdict]]],
    systems: tuple[str, ...],
    asked: int,
    missing: int,
    half: int,
) -> Tally:
    def read(known: dict[bool, PairVerdict]) -> tuple[float, float, float, bool, bool, str]:
        worth = {straight: WORTH[str(one.choice)] for straight, one in known.items()}
        won = sum(v if straight else 1 - v for straight, v in worth.items()) / len(worth)
        twice, total = len(worth) == 2, sum(worth.values())
        straight, one = next(iter(known.items()))
        mine, other = one.words if straight else one.words[::-1]
        longer = math.log(max(mine, 1) / max(other, 1))
        flipped = twice and total in (0, 2)
        return won, longer, total / len(worth), flipped, twice and total != 1, one.scenario

    made = [read(known) for _, known in rows]
    won, longer, first, flipped, changed, scenarios = ([one[at] for one in made] for at in range(6))
    units = [unit for unit, _ in rows]
    return Tally(
        systems,
        np.array([low for _, low, _ in units], np.int64),
        np.array([high for *_, high in units], np.int64),
        np.array(won, float),
        np.array(longer, float),
        np.array(first, float),
        np.array(flipped, np.bool_),
        np.array(changed, np.bool_),
        np.array(scenarios, np.str_),
        np.array([prompt for prompt, *_ in units], np.str_),
        asked,
        missing,
        half,
    )


ARRAYS = (
    *("left", "right", "won", "longer", "first", "flipped", "changed"),
    *("scenarios", "prompts"),
)


def pooled(tallies: Sequence[Tally]) -> Tally:
    """Return what several judges said as one tally, every pair of each counting the same."""
    first = tallies[0]
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(t, name) for t in tallies]) for name in ARRAYS
    }
    sums = (sum(getattr(t, name) for t in tallies) for name in ("asked", "missing", "half"))
    asked, missing, half = sums
    return replace(first, **arrays, asked=asked, missing=missing, half=half)


def joined(tallies: Sequence[Tally]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return left's share of each pair by every judge [units, judges], and the units' scenarios.

    NaN where a judge has no verdict of both orders.
    """
    every: dict[Unit, str] = {}
    for one in tallies:
        every |= one.homes()
    ratings = np.full((len(every), len(tallies)), np.nan)
    row = {unit: at for at, unit in enumerate(every)}
    for column, one in enumerate(tallies):
        ratings[[row[unit] for unit in one.pairs], column] = one.won
    return ratings, np.unique([*every.values()], return_inverse=True)[1]
