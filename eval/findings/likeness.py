"""How like two variants' answers are, and in what way they are not: letters, options, adapters.

Each function returns a sentence for the reader where the answers are less likely than `UNLIKELY` in
a sound pipeline, and None otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tel_edge.eval.findings.answers import Answers, aligned
from tel_edge.eval.scoring.records import UNPARSED
from tel_edge.eval.statistics import mcnemar
from tel_edge.runtime.questions.prompt import LETTERS

# The p value below which an improbable result is reported; a report makes some hundreds of tests.
UNLIKELY = 1e-6
# The same for a test that a category has only once.
UNLIKELY_ONCE = 1e-4
# Records are rounded to 6 decimals, columns to float32.
ROUNDING = 1e-5
# The least agreement beyond chance (Cohen's kappa) that exchanged letters must bring, with the
# reference and, where no other variant is at hand, with the right answers.
ALIKE, ALIKE_GOLD = 0.5, 0.2
# A variant whose kappa with the reference is surely below this has little to do with it.
UNLIKE = 1 / 3
# How far, in medians and in nats, a question's log-probabilities must be from the reference's, and
# how near in another order. In sound tables the farthest was at 9.8 medians, with int8 weights.
FAR_MEDIANS, FAR_NATS, NEAR_MEDIANS = 10.0, 0.5, 2.0
# What an option list that only looks permuted may have as its expected number in a table.
LOOKALIKES = 1e-3
# Fewer answers of a letter say nothing about it.
FEW = 5
# A trained adapter moves log-probabilities by much more than this, packing by less.
UNMOVED = 0.01

Integers: TypeAlias = NDArray[np.integer[Any]]
Values: TypeAlias = NDArray[np.float64]


class LikePair:
    """A variant and the reference on the questions that both answered, row by row."""

    def __init__(self, one: Answers, to: Answers) -> None:
        self.one, self.to = one, to
        rows, others = aligned(to, one)
        self.to_rows, self.rows = np.array(rows, np.intp), np.array(others, np.intp)
        self.pick, self.to_pick = one.pick[self.rows], to.pick[self.to_rows]
        self.choices = choices_of(to)[self.to_rows]


def flipped(pair: LikePair) -> str | None:
    """Return a sentence if the picks fit the reference's only with the letters exchanged."""
    for count in np.unique(pair.choices).tolist():
        rows = pair.choices == count
        moved = _exchange(pair.to_pick[rows], pair.pick[rows], count, ALIKE)
        if moved:
            exchanged, before, after = moved
            return (
                f"its letters look exchanged ({exchanged}): its answers are those of "
                f"{name_of(pair.to)} in {after:.0%} of the {rows.sum()} questions with {count} "
                f"options if they are exchanged back, in {before:.0%} as they are"
            )
    return None


def flipped_gold(one: Answers) -> str | None:
    """Return a sentence if the picks are right only with the letters exchanged."""
    choices = choices_of(one)
    for count in np.unique(choices).tolist():
        rows = choices == count
        moved = _exchange(one.gold[rows], one.pick[rows], count, ALIKE_GOLD, most=1 / count)
        if moved:
            exchanged, before, after = moved
            return (
                f"its letters look exchanged ({exchanged}): {after:.0%} of the {rows.sum()} "
                f"questions with {count} options are right if they are exchanged back, "
                f"{before:.0%} as they are"
            )
    return None


def _exchange(
    want: Integers, got: Integers, count: int, least: float, most: float = 1.0
) -> tuple[str, float, float] | None:
    """Return (letters, agreement before, after) of an exchange of letters that surely fits better.

    `want` and `got` are [n] picks among `count` letters. The exchange has to win the exact McNemar
    test against the letters as they are, corrected for all exchanges of as many letters; to reach
    a kappa of `least`; and to hold for each letter by itself, so that an engine which mixes two
    letters up, or always says one, is not taken for it. Of the letters that it moves, no more than
    the share `most` may agree without it.
    """
    inside = (want >= 0) & (want < count) & (got >= 0) & (got < count)
    if not 2 <= count <= len(LETTERS) or not inside.any():
        return None
    cells = want[inside].astype(np.int64) * count + got[inside]
    table = np.bincount(cells, minlength=count * count).reshape(count, count)
    became, letters = _assignment(table), np.arange(count)
    moved = became != letters
    size = int(moved.sum())
    kept, won = table[letters, letters], table[letters, became]
    many = moved & (table.sum(axis=1) >= FEW)
    if not many.any() or (won <= kept)[many].any():
        return None
    if kept[moved].sum() > most * table[moved].sum():
        return None
    # The corrected p value, as a logarithm: 16 letters have 2e13 exchanges.
    p = mcnemar(int(won[moved].sum()), int(kept[moved].sum())) / 2
    tried = math.log(count * math.comb(count, size) * _derangements(size))
    if math.log(max(p, 5e-324)) + tried > math.log(UNLIKELY):
        return None
    before, after, chance = kept.sum(), won.sum(), table.sum(axis=1) @ table.sum(axis=0)[became]
    of = int(inside.sum())
    if _kappa(after / of, chance / of**2) < least:
        return None
    pairs = [f"{LETTERS[a]} became {LETTERS[became[a]]}" for a in letters[many]]
    said = listed(pairs) if len(pairs) <= 4 else f"{', '.join(pairs[:4])} and so on"
    return said, before / len(want), after / len(want)


def _assignment(table: Integers) -> Integers:
    """Return the column of each row, largest cells first: the best one where it fits well.

    Ties go to the diagonal, so letters without answers are left where they are.
    """
    left = table + np.eye(len(table)) / 2
    became = np.zeros(len(table), np.intp)
    for _ in became:
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        became[row] = column
        left[row, :] = left[:, column] = -1
    return became


def _derangements(size: int) -> int:
    """Return the number of permutations of `size` letters that move all of them."""
    return round(math.factorial(size) / math.e) if size else 1


def permuted(pair: LikePair) -> str | None:
    """Return a sentence if single questions look as if only their options were permuted.

    Their log-probabilities are far from the reference's, by `FAR_MEDIANS` of what the median
    question is, but as near as those of ordinary questions once both are sorted. Something else
    that is as far away comes as near to one of the m! orders with a probability of about
    m! (sorted distance / distance)^(m - 1), the share that the balls around them have of the
    volume. That is too likely with fewer than 4 options, which are left out, and where the
    probabilities are nearly even. Only scores that were permuted behind the model look like this:
    given the options in another order, a model also gives other probabilities (then the digests
    of `_asked_differently` tell).
    """
    if not (pair.one.scored and pair.to.scored):
        return None
    distance, nearest = np.zeros(len(pair.rows)), np.zeros(len(pair.rows))
    mine, others = pair.one.logprobs[pair.rows], pair.to.logprobs[pair.to_rows]
    for count in np.unique(pair.choices).tolist():
        rows = pair.choices == count
        one = mine[rows, :count].astype(np.float64)
        to = others[rows, :count].astype(np.float64)
        distance[rows] = _spread(one - to)
        one, to = np.sort(one, axis=1), np.sort(to, axis=1)
        # Equal values, such as a floor for what an engine does not tell, fit in any order.
        tied = (np.diff(one, axis=1) == 0).any(axis=1) | (np.diff(to, axis=1) == 0).any(axis=1)
        nearest[rows] = np.where(tied, np.inf, _spread(one - to))
    # Where a label is missing there is no distance.
    known = np.isfinite(distance)
    if not known.any():
        return None
    median = float(np.median(distance[known]))
    far = known & (distance >= max(FAR_MEDIANS * median, FAR_NATS))
    near = nearest <= max(NEAR_MEDIANS * median, ROUNDING)
    permuted = []
    for at in np.flatnonzero(far & near & (pair.choices >= 4)):
        ratio = max(nearest[at] / distance[at], 1e-9)
        chance = math.lgamma(pair.choices[at] + 1) + (pair.choices[at] - 1) * math.log(ratio)
        if chance + math.log(far.sum()) < math.log(LOOKALIKES):
            permuted.append(pair.one.ids[pair.rows[at]])
    if not permuted:
        return None
    return (
        f"questions whose options look permuted, the probabilities being those of "
        f"{name_of(pair.to)} in another order: {some(permuted)}"
    )


def _spread(difference: Values) -> Values:
    """Return the standard deviation of each row: a common shift of all labels is no difference."""
    with np.errstate(invalid="ignore"):
        spread: Values = difference.std(axis=1)
    return spread


def unmoved(one: Answers, bare: Answers) -> str | None:
    """Return a sentence if an adapter's log-probabilities are those of the same bare backbone."""
    if one.summary.variant.quant != bare.summary.variant.quant or not one.scored:
        return None
    pair = LikePair(one, bare)
    width = min(one.logprobs.shape[1], bare.logprobs.shape[1])
    mine, others = one.logprobs[pair.rows, :width], bare.logprobs[pair.to_rows, :width]
    both = np.isfinite(mine) & np.isfinite(others)
    if not both.any() or np.median(np.abs(mine[both] - others[both])) > UNMOVED:
        return None
    return (
        f"its log-probabilities are those of {name_of(bare)}, as if no adapter were applied, or as "
        "if it had learned nothing, of which tel-train warns"
    )


def nearer_to_bare(pair: LikePair, bare: Answers) -> str | None:
    """Return a sentence if the answers are the bare backbone's rather than the reference's."""
    to = dict(zip(bare.ids, bare.pick.tolist(), strict=True))
    # Answers that a text does not give are no agreement.
    base = np.array([to.get(pair.one.ids[at], UNPARSED) for at in pair.rows], np.int16)
    said = pair.pick >= 0
    as_base, as_to = said & (pair.pick == base), said & (pair.pick == pair.to_pick)
    won, lost = int((as_base & ~as_to).sum()), int((as_to & ~as_base).sum())
    chance = _chance(pair.pick, base)
    if won <= lost or mcnemar(won, lost) > UNLIKELY or _kappa(as_base.mean(), chance) < UNLIKE:
        return None
    return (
        f"answers as {name_of(bare)} does in {as_base.mean():.0%} of the questions, as "
        f"{name_of(pair.to)} in {as_to.mean():.0%}, as if no adapter or another one were applied"
    )


def unlike(pair: LikePair) -> str | None:
    """Return a sentence if the answers have little to do with the reference's, and are worse."""
    agreed = float(((pair.pick == pair.to_pick) & (pair.pick >= 0)).mean()) if len(pair.rows) else 1
    limit = _chance(pair.pick, pair.to_pick)
    limit += UNLIKE * (1 - limit)
    # Chernoff's bound of the binomial's tail, which is never too small.
    if agreed >= limit or -len(pair.rows) * _information(agreed, limit) > math.log(UNLIKELY):
        return None
    gold = pair.to.gold[pair.to_rows]
    right, to_right = pair.pick == gold, pair.to_pick == gold
    won, lost = int((right & ~to_right).sum()), int((to_right & ~right).sum())
    # A model that hardly knows anything changes its answers in a sound pipeline too.
    if won >= lost or mcnemar(won, lost) > UNLIKELY_ONCE:
        return None
    return (
        f"gives the answer of {name_of(pair.to)} in {agreed:.0%} of the questions only, as if its "
        "adapter were another one or its type had destroyed it"
    )


def choices_of(one: Answers) -> Integers:
    """Return the number of options of each row; of texts, where it is not known, one for all."""
    if one.scored:
        counts: Integers = (one.logprobs > -np.inf).sum(axis=1)
        return counts
    most = max(one.gold.max(initial=0), one.pick.max(initial=0)) + 1
    return np.full(len(one.ids), most)


def _chance(one: Integers, other: Integers) -> float:
    """Return how often two lists of picks would agree if they had nothing to do with each other."""
    both = (one >= 0) & (other >= 0)
    if not both.any():
        return 0.0
    width = int(max(one[both].max(), other[both].max())) + 1
    shares = [np.bincount(each[both], minlength=width) / len(one) for each in (one, other)]
    return float(shares[0] @ shares[1])


def _kappa(agreed: float, chance: float) -> float:
    """Return Cohen's kappa; 0 where even chance agrees always.

    Source: J. Cohen, "A coefficient of agreement for nominal scales", Educational and
    Psychological Measurement 20 (1960).
    """
    return float((agreed - chance) / (1 - chance)) if chance < 1 else 0.0


def _information(seen: float, expected: float) -> float:
    """Return the Kullback-Leibler divergence of one share from another, in nats."""
    pairs = ((seen, expected), (1 - seen, 1 - expected))
    return sum(p * math.log(p / q) for p, q in pairs if p > 0)


def name_of(one: Answers) -> str:
    """Return the name of the variant."""
    return one.summary.variant.name


def some(ids: Sequence[str]) -> str:
    """Return the first three and how many there are."""
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return ", ".join(ids[:3]) + more


def listed(names: Sequence[str]) -> str:
    """Return names in a sentence."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
