"""A variant's answers beside the reference's to the same dialogues, and what is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean as mean

from tel_edge.eval.care.answers.records import Along, Record, grouped, shared
from tel_edge.eval.statistics import Mean, Share, clustered_mean, quantile, smallest_bound

# How much of F1 may be lost, and of how few positions there is no 99th percentile.
MARGIN, FEWEST = 0.02, 100
# Who says less has nothing to lose.
LEAST = 0.1
RULE = (
    "Loss: the 95 % interval of the F1 difference (Student's, clustered by scenario) is below 0. "
    f"No loss: it leaves out a loss of {MARGIN * 100:g} points, and of so many dialogues no change "
    "at all would have left it out too (Tango's bound: 189 or more). Else it cannot be told, n is "
    f"too small; nor where the reference itself has an F1 of less than {LEAST * 100:g} points."
)


@dataclass(frozen=True)
class Against:
    """One variant against the reference on `dialogues`; intervals are clustered by scenario.

    `agreed` is the share of the reference's tokens at which both have the same likeliest one, `kl`
    the mean divergence there in nats, `kl_p99` None for few positions, `gap` the mean loss of the
    log-probability of the reference's tokens; all four None where they were not measured. `same`
    is the share of dialogues with the very same texts, `first` the median token at which the others
    part. Facts are counts over all dialogues: right ones that only one of both says, wrong ones
    likewise. `f1` is this variant's less the reference's.
    """

    variant: str
    reference: str
    dialogues: int
    agreed: Share | None
    kl: Mean | None
    kl_p99: float | None
    gap: Mean | None
    same: Share
    first: float | None
    lost: int
    won: int
    wrong_more: int
    wrong_less: int
    f1: Mean
    verdict: str


def parting(one: Record, other: Record) -> int | None:
    """Return how many tokens two answers begin with alike, None where nothing differs.

    Of several exchanges those before count along.
    """
    alike = 0
    for mine, theirs, mine_ended, theirs_ended in zip(
        one.tokens, other.tokens, one.ended, other.ended, strict=False
    ):
        at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
        if at is not None:
            return alike + at
        if len(mine) != len(theirs) or mine_ended != theirs_ended:
            return alike + min(len(mine), len(theirs))
        alike += len(mine)
    return None if len(one.tokens) == len(other.tokens) else alike


def against(
    variant: str,
    reference: str,
    pairs: Sequence[tuple[Record, Record]],
    along: Sequence[Along],
) -> Against:
    """Return what (reference's, variant's) answers to the same dialogues say together."""
    changes = [(mine, parting(theirs, mine)) for theirs, mine in pairs]
    parted = [float(at) for _, at in changes if at is not None]
    same = {mine.id: at is None for mine, at in changes}
    own = [mine for _, mine in pairs]
    theirs = {mine.id: reference_ for reference_, mine in pairs}
    f1 = clustered_mean(grouped(own, lambda mine: mine.measured.f1 - theirs[mine.id].measured.f1))
    right = [(set(a.measured.right), set(b.measured.right)) for a, b in pairs]
    wrong = [(set(a.measured.wrong), set(b.measured.wrong)) for a, b in pairs]
    kls = [value for one in along for value in one.kl]
    return Against(
        variant=variant,
        reference=reference,
        dialogues=len(pairs),
        agreed=shared(along, lambda one: (one.agreed, len(one.kl))) if kls else None,
        kl=_mean(along, "kl") if kls else None,
        kl_p99=quantile(kls, 0.99) if len(kls) >= FEWEST else None,
        gap=_mean(along, "gap") if kls else None,
        same=shared(own, lambda mine: (int(same[mine.id]), 1)),
        first=quantile(parted, 0.5) if parted else None,
        lost=sum(len(a - b) for a, b in right),
        won=sum(len(b - a) for a, b in right),
        wrong_more=sum(len(b - a) for a, b in wrong),
        wrong_less=sum(len(a - b) for a, b in wrong),
        f1=f1,
        verdict=verdict(f1, mean([theirs[mine.id].measured.f1 for mine in own] or [0.0])),
    )


def _mean(along: Sequence[Along], name: str) -> Mean:
    groups = grouped(along, lambda one: getattr(one, name))
    return clustered_mean([[value for one in group for value in one] for group in groups])


def verdict(f1: Mean, reference: float) -> str:
    """Return what `RULE` says of a paired difference of F1 to a reference that has so much."""
    if reference < LEAST:
        return "cannot be told (the reference says hardly a fact)"
    if f1.low is None or f1.high is None:
        return "cannot be told (n too small)"
    if f1.high < 0:
        return "loss" if f1.low <= -MARGIN else f"loss (of less than {MARGIN * 100:g} points)"
    if f1.low > -MARGIN and smallest_bound(f1.of) < MARGIN:
        return "no loss"
    return "cannot be told (n too small)"


def paired(
    reference: Mapping[str, Record], own: Mapping[str, Record]
) -> list[tuple[Record, Record]]:
    """Return the answers of both to the dialogues that both answered, by id."""
    return [
        (reference[id_], own[id_])
        for id_ in reference
        if id_ in own and not (reference[id_].fault or own[id_].fault)
    ]
