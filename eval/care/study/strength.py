"""How good systems are by pairs that were judged: Bradley-Terry scores with intervals, and ranks.

Source of the model: R. A. Bradley and M. E. Terry, "Rank analysis of incomplete block designs",
Biometrika 39 (1952): left wins with the probability 1 / (1 + exp(score of right - score of left)).
With the lengths a term is added for how much longer left is, as Y. Dubois and others do in
"Length-controlled AlpacaEval" (2024). Shares between 0 and 1 (ties, orders that differ) are fitted
by the same likelihood, as W. E. Papke and J. M. Wooldridge do ("Econometric methods for fractional
response variables", Journal of Applied Econometrics 11, 1996).

Prompts are what would be others another time, and all verdicts on a scenario go together. So the
covariance is the sandwich over scenarios (K.-Y. Liang and S. L. Zeger, "Longitudinal data analysis
using generalized linear models", Biometrika 73, 1986), and intervals are Student's with as many
degrees of freedom as there are scenarios, less one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tel_edge.eval.agreement import SEED
from tel_edge.eval.care.study.tallies import Tally
from tel_edge.eval.statistics import Mean, student

Floats = NDArray[np.float64]
# Newton's steps, the largest of one, and when it is there.
STEPS, LONGEST, NEAR = 100, 2.0, 1e-11
DRAWS = 1000
# The share of the spread of lengths that has to be between answers of the same two systems: what is
# all between systems cannot be told from how good they are.
WITHIN = 0.3
# A coefficient of lengths, in nats, that only grows with the number of steps.
FARTHEST = 20.0
# What each side of every pair is given where a system has won or lost everything.
GIVEN = 0.5


@dataclass(frozen=True, eq=False)
class Fit:
    """Scores of `s` systems in nats of log-odds, their mean 0, from `n` pairs of `c` scenarios.

    `moves` [c, s] is what each scenario moves scores by; `covariance` [s, s] follows from it.
    `length` is what one standard deviation more of length is worth, in nats, None where it was not
    asked for, or lengths are all but the systems' own. `bounded` names systems without a finite
    score, which have been given half a win and half a loss against each that they met.
    """

    systems: tuple[str, ...]
    scores: Floats
    moves: Floats
    covariance: Floats
    length: Mean | None
    bounded: tuple[str, ...]


@dataclass(frozen=True)
class Standing:
    """One system: its score, its share of wins against all others, its rank, with 95 % intervals.

    Scores are in nats of log-odds, their mean 0; shares follow from scores, so they are about every
    other system, met or not. The interval of the rank is that of M. Mogstad and others (`ranked`).
    """

    system: str
    score: Mean
    wins: Mean
    rank: int
    rank_low: int
    rank_high: int


def fitted(tally: Tally, lengths: bool = False) -> Fit | None:
    """Return the scores; None where no chain of pairs joins all systems.

    With `lengths` they are those of answers of the same length.
    """
    size = len(tally.systems)
    met = _met(tally, np.ones(len(tally.won)))
    if size < 2 or not _reach(met + met.T).all():
        return None
    spread = float(np.sqrt((tally.longer**2).mean()))
    means = _met(tally, tally.longer) / np.maximum(met, 1)
    rest = float(np.sqrt(((tally.longer - means[tally.left, tally.right]) ** 2).mean()))
    lengths = lengths and rest > WITHIN * spread
    rows = np.arange(len(tally.won))
    x = np.zeros((len(rows), size + lengths))
    x[rows, tally.left], x[rows, tally.right] = 1, -1
    if lengths:
        x[:, size] = tally.longer / spread
    bounded = _bounded(tally)
    prior = _prior(met, size + lengths) if bounded else np.zeros((0, size + lengths))
    try:
        found, inverse = solved(x, tally.won, prior, size)
    except np.linalg.LinAlgError:
        if not lengths:
            raise
        return fitted(tally)
    if lengths and not abs(found[size]) < FARTHEST:
        # Lengths foretell every verdict, so no finite coefficient is the likeliest.
        return fitted(tally)
    groups = tally.groups
    count = int(groups.max()) + 1
    gradient = np.zeros((count, size + lengths))
    np.add.at(gradient, groups, x * (tally.won - _chance(x @ found))[:, None])
    moves = gradient @ inverse
    covariance = moves.T @ moves * (count / max(count - 1, 1))
    length = None
    if lengths:
        length = _mean(found[size], covariance[size, size], len(rows), count)
    names = tuple(tally.systems[at] for at in bounded)
    every = slice(0, size)
    return Fit(
        tally.systems, found[every], moves[:, every], covariance[every, every], length, names
    )


def solved(x: Floats, won: Floats, prior: Floats, size: int) -> tuple[Floats, Floats]:
    """Return the likeliest coefficients [k] of rows [n, k], and the inverse information [k, k].

    `prior` [m, k] are rows that are half won. The first `size` coefficients are scores, on whose
    sum nothing depends; it is 0.
    """
    whole, half = np.vstack([x, prior]), np.append(won, np.full(len(prior), GIVEN))
    # In the direction in which all scores rise together, the information is 0.
    same = np.zeros((whole.shape[1],) * 2)
    same[:size, :size] = 1
    found = np.zeros(whole.shape[1])
    for _ in range(STEPS):
        chance = _chance(whole @ found)
        information = (whole * (chance * (1 - chance))[:, None]).T @ whole + same
        step = np.linalg.solve(information, whole.T @ (half - chance) - same @ found)
        found = found + step * min(1.0, LONGEST / max(float(np.abs(step).max()), 1e-300))
        if np.abs(step).max() < NEAR:
            break
    return found, np.linalg.inv(information).astype(np.float64)


def _chance(odds: Floats) -> Floats:
    made: Floats = 1 / (1 + np.exp(-odds))
    return made


def _met(tally: Tally, of: Floats) -> Floats:
    """Return sums of `of` [n] by (left, right) [s, s]."""
    made = np.zeros((len(tally.systems),) * 2)
    np.add.at(made, (tally.left, tally.right), of)
    return made


def _reach(arrows: Floats) -> NDArray[np.bool_]:
    """Return from where one can get to where."""
    made = (arrows > 0) | np.eye(len(arrows), dtype=np.bool_)
    for _ in range(len(arrows).bit_length()):
        made = made @ made
    return made


def _bounded(tally: Tally) -> list[int]:
    """Return which systems have no finite score: not all can be reached over wins, and back.

    Source: L. R. Ford, "Solution of a ranking problem from binary comparisons", American
    Mathematical Monthly 64 (1957). Of parts that only win and only lose, the smallest is named.
    """
    reach = _reach(_met(tally, tally.won) + _met(tally, 1 - tally.won).T)
    if reach.all():
        return []
    together = reach & reach.T
    sizes = together.sum(1)
    return np.flatnonzero(sizes == sizes.min()).tolist() if sizes.min() < len(sizes) else []


def _prior(met: Floats, width: int) -> Floats:
    """Return a row for each two systems that met; half won, it is half a win for each."""
    left, right = np.nonzero(met)
    made = np.zeros((len(left), width))
    rows = np.arange(len(left))
    made[rows, left], made[rows, right] = 1, -1
    return made


def _mean(value: float, variance: float, of: int, groups: int) -> Mean:
    if groups < 2:
        return Mean(float(value), None, None, of, groups)
    spread = student(groups - 1) * float(np.sqrt(max(variance, 0.0)))
    return Mean(float(value), float(value) - spread, float(value) + spread, of, groups)


def standings(fit: Fit, pairs: int) -> tuple[Standing, ...]:
    """Return scores, shares of wins and ranks of all systems in their order; `pairs` were judged.

    A share's interval is that of the score, carried on by the derivatives.
    """
    size, count = len(fit.scores), len(fit.moves)
    chance = _chance(np.subtract.outer(fit.scores, fit.scores))
    slopes = chance * (1 - chance) / (size - 1)
    np.fill_diagonal(slopes, 0.0)
    carried = np.diag(slopes.sum(1)) - slopes
    shares = (chance.sum(1) - 0.5) / (size - 1)
    spread = np.diag(carried @ fit.covariance @ carried.T)
    low, high = ranked(fit)
    return tuple(
        Standing(
            name,
            _mean(fit.scores[at], fit.covariance[at, at], pairs, count),
            _mean(shares[at], spread[at], pairs, count),
            1 + int((fit.scores > fit.scores[at] + 1e-9).sum()),
            low[at],
            high[at],
        )
        for at, name in enumerate(fit.systems)
    )


def ranked(fit: Fit) -> tuple[list[int], list[int]]:
    """Return the best and the worst rank that each system may have, at 95 %.

    Behind as many as are better beyond doubt, before as many as are worse: differences are compared
    with what the largest of one system's differs by chance, which is drawn `DRAWS` times, scenarios
    with replacement. Source: M. Mogstad, J. P. Romano, A. Shaikh and D. Wilhelm, "Inference for
    ranks with applications to mobility across neighbourhoods and academic achievement across
    countries", Review of Economic Studies 91 (2024), marginal confidence sets, one step.
    """
    size, count = len(fit.scores), len(fit.moves)
    if count < 2:
        return [1] * size, [size] * size
    random = np.random.default_rng(SEED)
    drawn = random.multinomial(count, np.full(count, 1 / count), DRAWS) - 1
    moved = drawn @ fit.moves
    own = np.diag(fit.covariance)
    errors = np.sqrt(np.maximum(own[:, None] + own - 2 * fit.covariance, 1e-12))
    low, high = [], []
    for at in range(size):
        others = np.arange(size) != at
        errors_ = errors[at, others]
        largest = (np.abs(moved[:, others] - moved[:, [at]]) / errors_).max(1)
        # No less than for one difference alone, and wider for few scenarios.
        limit = max(float(np.quantile(largest, 0.95)), student(count - 1))
        apart = (fit.scores[others] - fit.scores[at]) / errors_
        low.append(1 + int((apart > limit).sum()))
        high.append(size - int((apart < -limit).sum()))
    return low, high


def apart(fit: Fit, one: int, other: int) -> tuple[float, float]:
    """Return by how many nats `one` is better than `other`, and the standard error of that."""
    of = fit.covariance
    error = float(np.sqrt(max(of[one, one] + of[other, other] - 2 * of[one, other], 0.0)))
    return float(fit.scores[one] - fit.scores[other]), error
