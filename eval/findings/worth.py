"""What a variant is worth in one category: beside guessing, trivial rules, and no adapter at all.

Each is asked in the benchmark's own order of the options and, where that is known, over all orders,
and without the questions that training has nearly seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tel_edge.eval.benchmarks.duplicates import Duplicates
from tel_edge.eval.findings import leakage, paired
from tel_edge.eval.findings.answers import Answers
from tel_edge.eval.findings.leakage import Rotations
from tel_edge.eval.findings.paired import LEVEL, Change
from tel_edge.eval.scoring import records
from tel_edge.eval.scoring.baselines import POSITIONAL, Baseline, Baselines
from tel_edge.eval.statistics import Interval, Share, difference

# Of a category: worth it, worse than without, and neither shown.
WORTH, WORSE, NOT_SHOWN = "deploy", "do not deploy", "not shown"
# Orders of this share of the questions at least speak for all of them.
MOST_TURNED = 0.9
# Fewer questions without a near-duplicate say nothing.
FEW = 30


@dataclass(frozen=True)
class Worth:
    """What the chosen variant is worth in one category.

    `over_trivial` is Pass@1 less that of the best trivial baseline `trivial`, `over_bare` less that
    of the bare backbone `bare`, on the same questions. `all_orders` is Pass@1 over all orders of
    the options, of the variant `orders_of`, `bare_orders` that of the bare backbone, None where
    that was not asked. `verdict` is `deploy`, `do not deploy` or `not shown`, for the `reason`.
    """

    category: str
    verdict: str
    reason: str
    pass1: Share
    chance: float | None = None
    trivial: str | None = None
    over_trivial: Interval | None = None
    bare: str | None = None
    over_bare: Interval | None = None
    all_orders: Share | None = None
    orders_of: str | None = None
    bare_orders: Share | None = None


@dataclass(frozen=True)
class Category:
    """What there is to judge a category by: answers by variant, and the checks of them."""

    answers: Sequence[Answers]
    floor: Baselines | None = None
    rotations: Sequence[Rotations] = ()
    duplicates: Duplicates | None = None


@dataclass(frozen=True)
class _Case:
    own: Answers
    change: Change | None
    chance: float | None
    top: Baseline | None
    steady: Baseline | None
    over: Interval | None
    orders: Share | None
    bare_orders: Share | None
    rest: Share | None
    seen: leakage.Seen | None


def worths(
    of: Mapping[str, Category], variant: str, reference: str, tainted: Collection[str] = ()
) -> Iterator[Worth]:
    """Yield what `variant` is worth in each category.

    Orders of the options that only `reference` was asked in speak for it too, since it answers as
    that does. Bare backbones that are `tainted` are not compared with.
    """
    changes: dict[str, Change] = {}
    pairs: dict[str, tuple[Answers, Answers | None]] = {}
    for name, category in of.items():
        own = next(each for each in category.answers if each.summary.variant.name == variant)
        bare = _bare(category.answers, own, tainted)
        pairs[name] = own, bare
        if bare is not None and own.ids and bare.ids:
            changes[name] = paired.change(bare, own)
    changes = paired.corrected(changes)
    for name, (own, bare) in pairs.items():
        yield _worth(name, of[name], own, bare, changes.get(name), reference)


def _bare(there: Sequence[Answers], own: Answers, tainted: Collection[str]) -> Answers | None:
    """Return the best bare backbone that was asked the same questions in the same way."""
    found = [
        each
        for each in there
        if each.summary.variant.kind == "base"
        and each.summary.variant.name not in tainted
        and each.summary.variant.asked == own.summary.variant.asked
        and records.same_questions(each.summary, own.summary)
    ]
    return max(
        found,
        key=lambda each: (each.summary.pass1.right, each.summary.variant.backbone_bytes),
        default=None,
    )


def orders(of: Category) -> dict[str, Share]:
    """Return Pass@1 over all orders of the options by variant, where nearly all were asked so."""
    counts = {each.summary.variant.name: len(each.ids) for each in of.answers}
    return {
        each.variant: each.mean
        for each in of.rotations
        if each.questions >= MOST_TURNED * counts.get(each.variant, 0)
    }


def chance(of: Answers) -> float | None:
    """Return the share that guessing gets right, by the number of labels; None of texts."""
    if not of.scored or not of.ids:
        return None
    return float(np.mean(1 / np.isfinite(of.logprobs).sum(axis=1)))


def _worth(
    name: str,
    of: Category,
    own: Answers,
    bare: Answers | None,
    change: Change | None,
    reference: str,
) -> Worth:
    floor = of.floor.baselines if of.floor else ()
    top = max(floor, key=lambda each: each.share.value, default=None)
    unmoved = [each for each in floor if each.name not in POSITIONAL]
    turned = orders(of)
    at = next((one for one in (own.summary.variant.name, reference) if one in turned), None)
    bare_name = bare.summary.variant.name if bare else None
    # Of bare backbones in other types the best that was asked so speaks for the others.
    plain = [
        turned[each.summary.variant.name]
        for each in of.answers
        if each.summary.variant.kind == "base" and each.summary.variant.name in turned
    ]
    seen = leakage.seen(own, of.duplicates) if of.duplicates and own.ids else None
    case = _Case(
        own,
        change,
        of.floor.chance if of.floor else chance(own),
        top,
        max(unmoved, key=lambda each: each.share.value, default=None),
        difference(own.summary.pass1, top.share) if top else None,
        turned[at] if at else None,
        max(plain, key=lambda each: each.value, default=None),
        seen.rest if seen and seen.count and seen.rest.of >= FEW else None,
        seen,
    )
    verdict, reason = next(_reasons(case))
    return Worth(
        name,
        verdict,
        reason,
        own.summary.pass1,
        case.chance,
        top.name if top else None,
        case.over,
        bare_name,
        change.points if change else None,
        case.orders,
        at,
        case.bare_orders,
    )


def _reasons(of: _Case) -> Iterator[tuple[str, str]]:
    """Yield the verdicts that a category's figures allow, with the reason, the gravest first."""
    yield from ((WORSE, reason) for reason in _worse(of))
    yield from ((NOT_SHOWN, reason) for reason in _not_shown(of))
    if of.change is not None and of.top is not None and of.over is not None:
        gain = f"{100 * of.change.points.value:.1f} points over the bare backbone"
        yield WORTH, f"{gain}, {100 * of.over.value:.1f} over {of.top.name}"


def _worse(of: _Case) -> Iterator[str]:
    own, change, top, orders = of.own.summary, of.change, of.top, of.orders
    if own.unparsed * 2 > own.questions:
        yield f"{own.unparsed:,} of {own.questions:,} texts give no answer"
    if of.chance is not None and own.pass1.low <= of.chance:
        yield f"no better than guessing ({_percent(of.chance)})"
    if change is not None and change.adjusted < LEVEL and change.lost > change.won:
        yield f"the bare backbone is better by {-100 * change.points.value:.1f} points"
    if top is not None and of.over is not None and of.over.value <= 0:
        more = -100 * of.over.value
        by = f"{more:.1f} points more" if of.over.high < 0 else "and this is not shown to be better"
        yield f"{top.name} alone reaches {_percent(top.share.value)}, {by}"
    if orders is not None:
        if of.chance is not None and orders.low <= of.chance:
            yield (
                f"with the options in other orders it is guessing ({_percent(orders.value)}): it "
                "knows where answers stand, not which they are"
            )
        if of.bare_orders is not None and orders.value <= of.bare_orders.value:
            yield (
                "its gain does not survive other orders of the options: over all orders it has "
                f"{_percent(orders.value)}, the bare backbone {_percent(of.bare_orders.value)}"
            )
        if of.steady is not None and orders.value <= of.steady.share.value:
            yield (
                f"over all orders of the options it has {_percent(orders.value)}, "
                f"{of.steady.name} alone {_percent(of.steady.share.value)}"
            )
    if of.rest is not None and of.chance is not None and of.rest.low <= of.chance:
        yield (
            f"no better than guessing on the {of.rest.of:,} questions that are unlike any of the "
            f"train part ({_percent(of.rest.value)})"
        )


def _not_shown(of: _Case) -> Iterator[str]:
    change, top = of.change, of.top
    if change is None:
        yield "the bare backbone was not scored on the same questions"
    elif change.adjusted >= LEVEL:
        yield "not shown to be better than the bare backbone"
    if top is None or of.over is None:
        yield "no trivial baselines to compare with; tel-eval --baselines makes them"
    elif of.over.low <= 0:
        yield f"not shown to beat {top.name} ({_percent(top.share.value)})"
    elif of.rest is not None and of.rest.value <= top.share.value:
        yield (
            f"on the {of.rest.of:,} questions unlike any of the train part it has "
            f"{_percent(of.rest.value)}, {top.name} {_percent(top.share.value)} of all"
        )
    if of.seen is not None and of.seen.count and of.rest is None:
        yield (
            f"only {of.seen.rest.of:,} of {of.seen.of:,} questions are unlike those of the train "
            f"part, too few to tell what is not remembered"
        )
    with_, without = of.orders, of.bare_orders
    if with_ is not None and without is not None and difference(with_, without).low <= 0:
        yield (
            "its gain is not shown to survive other orders of the options "
            f"({_percent(with_.value)}, the bare backbone {_percent(without.value)})"
        )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
