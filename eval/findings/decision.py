"""What to deploy: one variant, for which categories and how sure, or nothing at all.

Two questions are kept apart. Whether a smaller variant may stand for the reference is asked of all
categories together, one variant after the other from large to small, and the first that is not
shown to lose less than the margin ends it: so the best of many is no better than chance allows.
Whether the variant that comes out is worth deploying is asked of each category: beside guessing,
trivial baselines, the bare backbone, and the same questions with their options in other orders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tel_edge.eval.findings import paired
from tel_edge.eval.findings.answers import Answers
from tel_edge.eval.findings.checks import Finding
from tel_edge.eval.findings.ladder import Rung
from tel_edge.eval.findings.leakage import Rotations
from tel_edge.eval.findings.paired import BOUND, LEVEL, Change
from tel_edge.eval.scoring.baselines import Baseline, Baselines
from tel_edge.eval.scoring.records import Summary
from tel_edge.eval.statistics import Interval, Share, difference, smallest_bound
from tel_edge.runtime.questions.categories import CATEGORIES

DEPLOY, IN_PART, NOT, UNDECIDED = "deploy", "deploy in part", "do not deploy", "undecided"
# Of a category: worth it, worse than without, and neither shown.
WORTH, WORSE, NOT_SHOWN = "deploy", "do not deploy", "not shown"
# Types in which nothing is lost yet.
UNQUANTIZED = ("F32", "BF16", "F16", "fp32")


@dataclass(frozen=True)
class Budget:
    """What a deployment may cost; None is any.

    `margin` is the share of answers that may be lost against the reference. `bytes` are those on
    the disk, `milliseconds` a question's (p50, median over the categories), `memory` the process's
    anonymous bytes.
    """

    margin: float = BOUND
    bytes: int | None = None
    milliseconds: float | None = None
    memory: int | None = None

    def exceeded(self, rung: Rung) -> str | None:
        """Return which limit a variant exceeds, in words, or None."""
        if self.bytes is not None and rung.bytes > self.bytes:
            return f"{rung.bytes / 1e6:,.1f} MB on disk"
        if self.milliseconds is not None and rung.milliseconds > self.milliseconds:
            return f"{rung.milliseconds:,.1f} ms a question"
        if self.memory is not None and rung.memory is None:
            return "its memory is not known"
        if self.memory is not None and rung.memory is not None and rung.memory > self.memory:
            return f"{rung.memory / 1e6:,.1f} MB of memory"
        return None


@dataclass(frozen=True)
class Worth:
    """What the chosen variant is worth in one category.

    `over_trivial` is Pass@1 less that of the best trivial baseline `trivial`, `over_bare` less that
    of the bare backbone `bare`, on the same questions. `all_orders` is Pass@1 over all orders of
    the options, None where that was not asked. `verdict` is `deploy`, `do not deploy` or
    `not shown`, for the `reason`.
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


@dataclass(frozen=True)
class Decision:
    """The variant to deploy and what that rests on.

    `verdict` is `deploy`, `deploy in part` (in the categories that are worth it), `do not deploy`
    or `undecided`, where the results do not allow a decision; `variant` is what it is about, None
    where there is none. `passed` are the variants that may stand for the reference, from large
    to small, `stopped` the one that ended the sequence, and why. `left_out` are variants that were
    not scored on every category, and those that they lack.
    """

    verdict: str
    variant: str | None
    bytes: int
    margin: float
    headline: str
    sentences: tuple[str, ...]
    categories: tuple[Worth, ...] = ()
    passed: tuple[str, ...] = ()
    stopped: str | None = None
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """All that a decision is made of; see `findings.collect`.

    `known` are the answers, `baselines` and `rotations` the checks by category; `scored` says on
    which categories each variant was scored.
    """

    reference: str
    rungs: Sequence[Rung]
    known: Mapping[str, Sequence[Answers]]
    scored: Mapping[str, Sequence[str]]
    baselines: Mapping[str, Baselines | None]
    rotations: Mapping[str, Sequence[Rotations]]
    checks: Sequence[Finding]


def decide(of: Evidence, budget: Budget | None = None) -> Decision:
    """Return what to deploy, within a budget."""
    budget = budget or Budget()
    left_out = {
        name: tuple(category for category in of.known if category not in there)
        for name, there in of.scored.items()
        if set(of.known) - set(there)
    }
    rungs = {rung.variant: rung for rung in of.rungs}
    if of.reference not in rungs:
        gaps = "; ".join(f"{name} lacks {', '.join(lacks)}" for name, lacks in left_out.items())
        return _undecided(
            budget,
            "no variant with an adapter was scored on every category, so none can stand for all",
            (f"{gaps}: export and evaluate what is missing, or use a workspace for each set",),
            left_out,
        )
    to = rungs[of.reference]
    passed, stopped = sequence(of.rungs, of.reference, budget.margin)
    fitting = [rung for rung in passed if budget.exceeded(rung) is None]
    certain = [finding for finding in of.checks if finding.certain]
    names = tuple(rung.variant for rung in passed)
    if certain:
        kinds = ", ".join(dict.fromkeys(finding.kind for finding in certain))
        said = (
            f"the report's own checks found what cannot be ({kinds}), so the figures do not decide"
        )
        return _undecided(budget, said, (), left_out, names, stopped)
    if not fitting:
        over = "; ".join(f"{rung.variant}: {budget.exceeded(rung)}" for rung in passed)
        return Decision(
            NOT, None, 0, budget.margin, f"do not deploy: nothing fits the budget ({over})",
            tuple(_doubts(of, to, None, stopped, budget)), (), names, stopped, left_out,
        )  # fmt: skip
    best = min(fitting, key=lambda rung: (rung.bytes, rung.variant))
    worth = tuple(_worths(of, best.variant))
    good = [each.category for each in worth if each.verdict == WORTH]
    bad = [each.category for each in worth if each.verdict != WORTH]
    size = f"{best.variant}, {best.bytes / 1e6:,.1f} MB"
    if good and not bad:
        verdict, headline = DEPLOY, f"deploy {size}"
    elif good:
        verdict = IN_PART
        headline = f"deploy {size}, for {', '.join(good)}; not for {', '.join(bad)}"
    else:
        verdict = NOT
        which = "in its category" if len(worth) == 1 else "in any of its categories"
        headline = f"do not deploy: {best.variant} is not shown to be worth it {which}"
    sentences = tuple(_doubts(of, to, best, stopped, budget))
    return Decision(
        verdict, best.variant, best.bytes, budget.margin, headline, sentences, worth, names,
        stopped, left_out,
    )  # fmt: skip


def _undecided(
    budget: Budget,
    said: str,
    sentences: tuple[str, ...],
    left_out: Mapping[str, tuple[str, ...]],
    passed: tuple[str, ...] = (),
    stopped: str | None = None,
) -> Decision:
    return Decision(
        UNDECIDED, None, 0, budget.margin, f"undecided: {said}", sentences, (), passed, stopped,
        left_out,
    )  # fmt: skip


def sequence(rungs: Sequence[Rung], reference: str, margin: float) -> tuple[list[Rung], str | None]:
    """Return the variants that may stand for the reference, itself first, and what ended it.

    They are tried from large to small, each at its full level, and none after the first that fails:
    a fixed sequence, in which a variant that loses more than the margin passes no more often than a
    single test lets it. Source: W. Maurer, L. Hothorn and W. Lehmacher, "Multiple comparisons in
    drug clinical trials and preclinical assays: a-priori ordered hypotheses" (1995).
    """
    to = next(rung for rung in rungs if rung.variant == reference)
    others = [
        r for r in rungs if r.kind in ("lora", "merged") and r is not to and r.bytes < to.bytes
    ]
    passed = [to]
    for rung in sorted(others, key=lambda rung: (-rung.bytes, rung.variant)):
        verdict = rung.judged(margin)
        if verdict not in ("no loss", "gain"):
            return passed, f"{rung.variant}: {_why(rung, verdict, margin)}"
        passed.append(rung)
    return passed, None


def _why(rung: Rung, verdict: str, margin: float) -> str:
    if rung.change is None:
        return "no records to compare it by"
    if verdict == "n too small":
        return (
            f"{rung.change.of:,} questions bound a loss at "
            f"{100 * smallest_bound(rung.change.of):.1f} points at best, even if no answer changes"
        )
    where = f" in {', '.join(rung.worst)}" if rung.worst else ""
    bound = max(0.0, -100 * rung.change.points.low)
    return f"{verdict}{where}, up to {bound:.1f} points where {100 * margin:g} may be lost"


def _worths(of: Evidence, variant: str) -> Iterator[Worth]:
    """Yield what a variant is worth in each category."""
    changes: dict[str, Change] = {}
    pairs: dict[str, tuple[Answers, Answers | None]] = {}
    for category, there in of.known.items():
        own = next(each for each in there if each.summary.variant.name == variant)
        bare = _bare(there, own)
        pairs[category] = own, bare
        if bare is not None and own.ids and bare.ids:
            changes[category] = paired.change(bare, own)
    changes = paired.corrected(changes)
    for category, (own, bare) in pairs.items():
        turned = {each.variant: each.mean for each in of.rotations.get(category, ())}
        # The same adapter over an unquantized backbone says it as well.
        orders = turned.get(variant) or turned.get(of.reference)
        yield _worth(
            category, own.summary, bare, changes.get(category), of.baselines.get(category), orders
        )


def _bare(there: Sequence[Answers], own: Answers) -> Answers | None:
    """Return the bare backbone that was asked in the same way, the largest of several."""
    texts = own.summary.variant.name.endswith("-generate")
    found = [
        each
        for each in there
        if each.summary.variant.kind == "base"
        and each.summary.variant.name.endswith("-generate") == texts
    ]
    return max(found, key=lambda each: each.summary.variant.backbone_bytes, default=None)


def _worth(
    category: str,
    own: Summary,
    bare: Answers | None,
    change: Change | None,
    floor: Baselines | None,
    orders: Share | None,
) -> Worth:
    top: Baseline | None = max(
        floor.baselines if floor else (), key=lambda each: each.share.value, default=None
    )
    chance = floor.chance if floor else None
    over = difference(own.pass1, top.share) if top else None
    verdict, reason = next(_reasons(own, change, chance, top, over, orders))
    return Worth(
        category,
        verdict,
        reason,
        own.pass1,
        chance,
        top.name if top else None,
        over,
        bare.summary.variant.name if bare else None,
        change.points if change else None,
        orders,
    )


def _reasons(
    own: Summary,
    change: Change | None,
    chance: float | None,
    top: Baseline | None,
    over: Interval | None,
    orders: Share | None,
) -> Iterator[tuple[str, str]]:
    """Yield the verdicts that a category's figures allow, with the reason, the gravest first."""
    if own.unparsed * 2 > own.questions:
        yield WORSE, f"{own.unparsed:,} of {own.questions:,} texts give no answer"
    if chance is not None and own.pass1.low <= chance:
        yield WORSE, f"no better than guessing ({100 * chance:.1f} %)"
    if change is not None and change.adjusted < LEVEL and change.lost > change.won:
        yield WORSE, f"the bare backbone is better by {-100 * change.points.value:.1f} points"
    if top is not None and over is not None and over.value <= 0:
        by = f"it beats this by {-100 * over.value:.1f} points"
        yield WORSE, f"{top.name} alone reaches {100 * top.share.value:.1f} %, {by}"
    if chance is not None and orders is not None and orders.low <= chance:
        yield (
            WORSE,
            f"with the options in other orders it is guessing ({100 * orders.value:.1f} %): it "
            "knows where answers stand, not which they are",
        )
    if change is None:
        yield NOT_SHOWN, "the bare backbone was not scored beside it"
    elif change.adjusted >= LEVEL:
        yield NOT_SHOWN, "not shown to be better than the bare backbone"
    else:
        if top is not None and over is not None and over.low <= 0:
            yield NOT_SHOWN, f"not shown to beat {top.name} ({100 * top.share.value:.1f} %)"
        gain = f"{100 * change.points.value:.1f} points over the bare backbone"
        if top is None or over is None:
            yield WORTH, f"{gain}; no trivial baselines to compare with"
        else:
            yield WORTH, f"{gain}, {100 * over.value:.1f} over {top.name}"


def _doubts(
    of: Evidence, to: Rung, best: Rung | None, stopped: str | None, budget: Budget
) -> Iterator[str]:
    """Yield how sure the decision is, and what it does not rest on, a sentence each."""
    if best is not None and best.change is not None and best is not to:
        bound, count = max(0.0, -100 * best.change.points.low), best.change.of
        yield (
            f"against {to.variant} it loses at most {bound:.2f} points of all {count:,} answers "
            f"(95 %)" + _lowest(best)
        )
    elif best is to:
        margin = f"{100 * budget.margin:g} point{'' if budget.margin == BOUND else 's'}"
        yield f"it is the reference itself: no smaller one is shown to lose less than {margin}"
    if stopped:
        yield f"tried from large to small, stopped at {stopped}"
    if to.quant not in UNQUANTIZED:
        option = "" if to.format == "gguf" else f" --format {to.format}"
        plain = "F16" if to.format == "gguf" else "fp32"
        yield (
            f"{to.variant}, which all are held against, is quantized itself: what that costs was "
            f"not measured; tel-export{option} --quant {plain}, then tel-eval, measures it"
        )
    for category, there in of.known.items():
        if of.baselines.get(category) is None and there:
            yield "no trivial baselines in some categories; tel-eval --baselines makes them"
            break
    unasked = [
        category
        for category, there in of.known.items()
        if not of.rotations.get(category) and _turns(there)
    ]
    if unasked:
        yield (
            f"not asked with the options in other orders: {', '.join(unasked)}; "
            "tel-eval --rotations does"
        )


def _lowest(best: Rung) -> str:
    if best.lowest is None or best.change is None or best.change.of == best.lowest.of:
        return ""
    at, points = best.lowest.category, best.lowest.points
    return (
        f"; worst in {at}, {100 * points.value:+.1f} [{100 * points.low:+.1f}, "
        f"{100 * points.high:+.1f}] of {best.lowest.of:,}"
    )


def _turns(there: Sequence[Answers]) -> bool:
    """Return whether a category's questions have options that can be put into other orders."""
    known = CATEGORIES.get(there[0].summary.category) if there else None
    return known is not None and not known.labels
