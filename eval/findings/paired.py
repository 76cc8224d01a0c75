"""Two variants on the same questions: which answers changed, and whether that may be chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tel_edge.eval.findings import calibration
from tel_edge.eval.findings.answers import Answers, aligned
from tel_edge.eval.statistics import (
    Interval,
    Share,
    holm,
    mcnemar,
    paired_difference,
    share,
    smallest_bound,
)

# A loss of less than this, in shares, is one that a deployment may take.
BOUND = 0.01
LEVEL = 0.05
# Fewer values than this have no 99th percentile.
PERCENTILE = 100


@dataclass(frozen=True)
class Change:
    """What a variant's answers are beside the reference's on the same `of` questions.

    `lost` were right and are wrong, `won` the other way, `other` are wrong in another way.
    `points` is the difference of Pass@1 with its 95 % interval (Tango), `p` the exact two-sided
    McNemar test, `adjusted` the same after Holm's correction over the categories. `agreement` is
    the share of equal picks; `kl_mean` and `kl_p99` are the divergence of the labels' distribution
    from the reference's, in nats (None: no log-probabilities, or too few questions).
    """

    of: int
    lost: int
    won: int
    other: int
    points: Interval
    p: float
    adjusted: float
    agreement: Share
    kl_mean: float | None
    kl_p99: float | None

    @property
    def verdict(self) -> str:
        """Return `loss`, `gain`, `no loss`, `unclear` or `n too small`.

        `no loss` takes a difference that is not significant and a bound of the loss below `BOUND`,
        `n too small` says that so few questions could not show that if no answer changed: a bound
        that is met by answers that happened to be won says nothing.
        """
        if self.adjusted < LEVEL:
            return "loss" if self.lost > self.won else "gain"
        if smallest_bound(self.of) >= BOUND:
            return "n too small"
        return "no loss" if -self.points.low < BOUND else "unclear"


def change(reference: Answers, other: Answers) -> Change:
    """Compare two variants on one category and part.

    A question that one of them could not be asked counts as answered wrong.
    """
    ours, theirs = (np.asarray(rows, np.intp) for rows in aligned(reference, other))
    before, after = reference.right[ours], other.right[theirs]
    same = reference.pick[ours] == other.pick[theirs]
    alone = np.delete(reference.right, ours), np.delete(other.right, theirs)
    lost = int((before & ~after).sum() + alone[0].sum())
    won = int((after & ~before).sum() + alone[1].sum())
    # Records beyond what the summary counts are for `checks` to tell, and no reason to stop here.
    of = max(reference.summary.questions, len(ours) + len(alone[0]) + len(alone[1]))
    p, kl = mcnemar(won, lost), None
    if reference.scored and other.scored and len(ours):
        # The question with most choices may be one that only one of them could be asked.
        width = max(reference.logprobs.shape[1], other.logprobs.shape[1])
        kl = calibration.divergence(
            _probabilities(reference, ours, width), _probabilities(other, theirs, width)
        )
    return Change(
        of,
        lost,
        won,
        int((~before & ~after & ~same).sum()),
        paired_difference(won, lost, of),
        p,
        p,
        share(int(same.sum()), of),
        None if kl is None else float(kl.mean()),
        None if kl is None or len(kl) < PERCENTILE else float(np.quantile(kl, 0.99)),
    )


def _probabilities(
    answers: Answers, rows: npt.NDArray[np.intp], width: int
) -> npt.NDArray[np.float64]:
    """Return the labels' probabilities [rows, width]."""
    made = calibration.probabilities(answers.logprobs[rows])
    return np.pad(made, ((0, 0), (0, width - made.shape[1])))


def corrected(of: Mapping[str, Change]) -> dict[str, Change]:
    """Return the changes of one variant by category with `adjusted` filled in."""
    adjusted = holm([each.p for each in of.values()])
    return {
        name: replace(each, adjusted=p)
        for (name, each), p in zip(of.items(), adjusted, strict=True)
    }


def pooled(of: Sequence[Change]) -> Change:
    """Return the change over the questions of all categories together.

    `kl_p99` has no sum and is None.
    """
    count = sum(each.of for each in of)
    lost, won = sum(each.lost for each in of), sum(each.won for each in of)
    p = mcnemar(won, lost)
    known = [(each.kl_mean, each.of) for each in of if each.kl_mean is not None]
    mean = sum(kl * n for kl, n in known) / sum(n for _, n in known) if known else None
    return Change(
        count,
        lost,
        won,
        sum(each.other for each in of),
        paired_difference(won, lost, count),
        p,
        p,
        share(sum(each.agreement.right for each in of), count),
        mean if len(known) == len(of) else None,
        None,
    )
