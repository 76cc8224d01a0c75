"""What to deploy: one variant, for which categories and how sure, or nothing at all.

Two questions are kept apart. Whether a smaller variant may stand for the reference is asked of all
categories together, one variant after the other from large to small, and the first that is not
shown to lose less than the margin ends it: so the best of many is no better than chance allows.
Whether the variant that comes out is worth deploying is asked of each category (`worth`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tel_edge.eval.findings.benched import Benched
from tel_edge.eval.findings.checks import Finding
from tel_edge.eval.findings.ladder import Rung
from tel_edge.eval.findings.paired import BOUND
from tel_edge.eval.findings.worth import WORTH, Category, Worth, orders, worths
from tel_edge.eval.statistics import smallest_bound
from tel_edge.runtime.questions.categories import CATEGORIES

DEPLOY, IN_PART, NOT, UNDECIDED = "deploy", "deploy in part", "do not deploy", "undecided"
UNMEASURED = "not measured on the device"
# Types in which nothing is lost yet.
UNQUANTIZED = ("F32", "BF16", "F16", "fp32")


@dataclass(frozen=True)
class Budget:
    """What a deployment may cost; None is any.

    `margin` is the share of answers that may be lost against the reference. `bytes` are those on
    the disk, `milliseconds` a question's (p50) in any category, `memory` the process's anonymous
    bytes.
    """

    margin: float = BOUND
    bytes: int | None = None
    milliseconds: float | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Decision:
    """The variant to deploy and what that rests on.

    `verdict` is `deploy`, `deploy in part` (in the categories that are worth it), `do not deploy`
    or `undecided`, where the results do not allow a decision; `variant` is what it is about, None
    where there is none. `passed` are the variants that may stand for the reference, from large
    to small, `stopped` the one that ended the sequence, and why, `over_budget` those that passed
    and cost too much. `left_out` are variants that were not scored on every category, and those
    that they lack.
    """

    verdict: str
    variant: str | None
    bytes: int
    budget: Budget
    headline: str
    sentences: tuple[str, ...]
    categories: tuple[Worth, ...] = ()
    passed: tuple[str, ...] = ()
    stopped: str | None = None
    over_budget: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """All that a decision is made of; see `findings.collect`.

    `part` is the part of the split that was scored, `scored` says on which of the `categories`
    each variant was. `device` has what `tel-bench` measured of variants where they will run; where
    it is not None, times and memory of no other machine count.
    """

    reference: str
    part: str
    rungs: Sequence[Rung]
    categories: Mapping[str, Category]
    scored: Mapping[str, Sequence[str]]
    checks: Sequence[Finding]
    device: Mapping[str, Benched] | None = None

    @property
    def lacking(self) -> dict[str, tuple[str, ...]]:
        """Return the variants that were not scored on every category, and what they lack."""
        gaps = {
            name: tuple(category for category in self.categories if category not in there)
            for name, there in self.scored.items()
        }
        return {name: lacks for name, lacks in gaps.items() if lacks}

    @property
    def tainted(self) -> dict[str, str]:
        """Return the variants of which the checks are certain that something is wrong, and what."""
        return {
            name: finding.text
            for finding in reversed(self.checks)
            if finding.certain
            for name in finding.variant.split(", ")
        }


@dataclass(frozen=True)
class _Sequence:
    passed: Sequence[Rung]
    stopped: str | None
    over_budget: Mapping[str, str]


def decide(of: Evidence, budget: Budget | None = None) -> Decision:
    """Return what to deploy, within a budget."""
    budget = budget or Budget()
    rungs = {rung.variant: rung for rung in of.rungs}
    if why := next(_impossible(of, rungs.get(of.reference)), None):
        headline = f"undecided: {why[0]}"
        return Decision(UNDECIDED, None, 0, budget, headline, why[1:], left_out=of.lacking)
    to = rungs[of.reference]
    passed, stopped = sequence(of.rungs, of.reference, budget.margin, of.tainted)
    costs = {rung.variant: exceeded(rung, budget, of.device) for rung in passed}
    over = {name: cost for name, cost in costs.items() if cost}
    tried = _Sequence(passed, stopped, over)
    names = tuple(rung.variant for rung in passed)
    fitting = [rung for rung in passed if rung.variant not in over]
    if not fitting:
        verdict, headline = _unfit(passed, over)
        return Decision(
            verdict, None, 0, budget, headline, tuple(_doubts(of, to, None, tried, budget)), (),
            names, stopped, over, of.lacking,
        )  # fmt: skip
    best = min(fitting, key=lambda rung: (rung.bytes, rung.variant))
    worth = tuple(worths(of.categories, best.variant, of.reference, of.tainted))
    verdict, headline = _verdict(best, worth)
    sentences = tuple(_doubts(of, to, best, tried, budget))
    return Decision(
        verdict, best.variant, best.bytes, budget, headline, sentences, worth, names, stopped,
        over, of.lacking,
    )  # fmt: skip


def _unfit(passed: Sequence[Rung], over: Mapping[str, str]) -> tuple[str, str]:
    unknown = [name for name, cost in over.items() if cost == UNMEASURED]
    if unknown:
        return UNDECIDED, (
            f"undecided: {' or '.join(unknown)} may fit the budget, and tel-bench did not measure "
            "it on the device"
        )
    least = min(passed, key=lambda rung: (rung.bytes, rung.variant)).variant
    return NOT, (
        f"do not deploy: nothing that may stand for the reference fits the budget; the smallest, "
        f"{least}: {over[least]}"
    )


def _verdict(best: Rung, worth: Sequence[Worth]) -> tuple[str, str]:
    good = [each.category for each in worth if each.verdict == WORTH]
    bad = [each.category for each in worth if each.verdict != WORTH]
    size = f"{best.variant}, {best.bytes / 1e6:,.1f} MB"
    if good and not bad:
        return DEPLOY, f"deploy {size}"
    if good:
        return IN_PART, f"deploy {size}, for {', '.join(good)}; not for {', '.join(bad)}"
    which = "in its category" if len(worth) == 1 else "in any of its categories"
    return NOT, f"do not deploy: {best.variant} is not shown to be worth it {which}"


def _impossible(of: Evidence, to: Rung | None) -> Iterator[tuple[str, ...]]:
    """Yield why nothing can be decided, each a headline and sentences; the first counts."""
    if of.part != "test":
        yield (f"these are answers of the {of.part} part, which training has seen or chosen by",)
    every = [one.summary for category in of.categories.values() for one in category.answers]
    if not any(summary.variant.adapter for summary in every):
        yield ("no adapter was scored, so there is nothing to decide between",)
    if not any(summary.questions for summary in every):
        yield ("no question was scored",)
    gaps = "; ".join(f"{name} lacks {', '.join(lacks)}" for name, lacks in of.lacking.items())
    remedy = f"{gaps}: export and evaluate what is missing, or use a workspace for each set"
    if to is None:
        yield (
            "no variant with an adapter was scored on every category, so none can stand for all",
            remedy,
        )
        return
    unquantized = {s.variant.name for s in every if s.variant.adapter and _whole(s.variant.quant)}
    if not _whole(to.quant) and (missing := sorted(unquantized & of.lacking.keys())):
        yield (
            f"{missing[0]} was not scored on every category, so what {to.variant} loses against it "
            "is known in part only",
            remedy,
        )
    if to.kind != "lora" or not to.usual:
        yield (f"{to.variant} is nothing that tel-run takes; export and evaluate usual adapters",)
    bare = {summary.variant.name for summary in every if summary.variant.kind == "base"}
    for name in (to.variant, *([min(bare)] if bare and bare <= of.tainted.keys() else [])):
        if name in of.tainted:
            yield ("the report's own checks found what cannot be", of.tainted[name])


def _whole(quant: str) -> bool:
    return quant in UNQUANTIZED


def sequence(
    rungs: Sequence[Rung], reference: str, margin: float, tainted: Mapping[str, str] | None = None
) -> tuple[list[Rung], str | None]:
    """Return the variants that may stand for the reference, itself first, and what ended it.

    Those that `tel-run` can take are tried from large to small, each at its full level, and none
    after the first that fails: a fixed sequence, in which a variant that loses more than the margin
    passes no more often than a single test lets it. `tainted` ones fail. Source: W. Maurer,
    L. Hothorn and W. Lehmacher, "Multiple comparisons in drug clinical trials and preclinical
    assays: a-priori ordered hypotheses" (1995).
    """
    to = next(rung for rung in rungs if rung.variant == reference)
    others = [
        rung
        for rung in rungs
        if rung.kind == "lora" and rung.usual and rung.texts == to.texts and rung.bytes < to.bytes
    ]
    passed = [to]
    for rung in sorted(others, key=lambda rung: (-rung.bytes, rung.variant)):
        if why := (tainted or {}).get(rung.variant) or _fails(rung, margin):
            return passed, why if why.startswith(rung.variant) else f"{rung.variant}: {why}"
        passed.append(rung)
    return passed, None


def _fails(rung: Rung, margin: float) -> str | None:
    """Return why a variant is not shown to lose less than the margin, None where it is."""
    change = rung.change
    if change is None:
        return "no records to compare it by"
    may = f"where {100 * margin:g} may be lost"
    lost = [
        f"{at} ({100 * points.value:+.1f}, perhaps {100 * points.low:+.1f})"
        for at, points in rung.losses.items()
        if -points.low >= margin
    ]
    if lost:
        return f"a loss in {', '.join(lost)}, {may}"
    if smallest_bound(change.of) >= margin:
        return (
            f"{change.of:,} question{'s' * (change.of != 1)} bound a loss at "
            f"{100 * smallest_bound(change.of):.1f} points at best, even if no answer changes"
        )
    if -change.points.low >= margin:
        return f"it may lose up to {-100 * change.points.low:.1f} points {may}"
    return None


def exceeded(rung: Rung, budget: Budget, device: Mapping[str, Benched] | None = None) -> str | None:
    """Return which limit a variant exceeds, in words, or None."""
    there = (device or {}).get(rung.variant)
    slowest = there.milliseconds if there else rung.slowest
    memory = there.memory if there else rung.memory
    if budget.bytes is not None and not rung.bytes <= budget.bytes:
        return f"{rung.bytes / 1e6:,.2f} MB on disk, more than {budget.bytes / 1e6:g}"
    limited = budget.milliseconds is not None or budget.memory is not None
    if limited and device is not None and there is None:
        return UNMEASURED
    if budget.milliseconds is not None and not slowest <= budget.milliseconds:
        return f"{slowest:,.2f} ms a question, more than {budget.milliseconds:g}"
    if budget.memory is not None and memory is None:
        return "its memory is not known"
    if budget.memory is not None and memory is not None and not memory <= budget.memory:
        return f"{memory / 1e6:,.2f} MB of memory, more than {budget.memory / 1e6:g}"
    return None


def _doubts(
    of: Evidence, to: Rung, best: Rung | None, tried: _Sequence, budget: Budget
) -> Iterator[str]:
    """Yield how sure the decision is, and what it does not rest on, a sentence each."""
    if best is not None and best is not to and best.change is not None:
        bound, count = max(0.0, -100 * best.change.points.low), best.change.of
        yield (
            f"against {to.variant} it loses at most {bound:.2f} points of all {count:,} answers "
            f"(95 %)" + _lowest(best)
        )
    elif best is to and len(tried.passed) == 1:
        margin = f"{100 * budget.margin:g} point{'' if budget.margin == BOUND else 's'}"
        yield f"it is the reference itself: no smaller one is shown to lose less than {margin}"
    if best is not None and tried.over_budget:
        each = "; ".join(f"{name}: {cost}" for name, cost in tried.over_budget.items())
        yield f"over the budget: {each}"
    if tried.stopped:
        yield f"tried from large to small, stopped at {tried.stopped}"
    if not _whole(to.quant):
        option = "" if to.format == "gguf" else f" --format {to.format}"
        plain = "F16" if to.format == "gguf" else "fp32"
        yield (
            f"{to.variant}, which all are held against, is quantized itself: what that costs was "
            f"not measured; tel-export{option} --quant {plain}, then tel-eval, measures it, where "
            "the backbone's own weights were never quantized"
        )
    if best is not None:
        yield from _unlooked(of, best.variant)
    some = [
        f"{name} ({one.summary.questions:,} of {one.summary.questions + one.summary.left_out:,})"
        for name, category in of.categories.items()
        for one in category.answers
        if one.summary.left_out and best is not None and one.summary.variant.name == best.variant
    ]
    if some:
        yield f"not all questions were asked: {', '.join(some)}"


def _unlooked(of: Evidence, name: str) -> Iterator[str]:
    """Yield what was not looked at, so that it cannot have spoken against the variant."""
    # What, and which command looks, to the categories.
    lacking: dict[tuple[str, str], list[str]] = {}

    def note(category: str, what: str, remedy: str = "") -> None:
        lacking.setdefault((what, remedy), []).append(category)

    for category, known in of.categories.items():
        asked, bare = orders(known), {*_names(known, "base")}
        if _turns(known) and not {name, of.reference} & asked.keys():
            note(
                category,
                "not asked with the options in other orders",
                "; tel-eval --rotations does",
            )
        elif _turns(known) and not bare & asked.keys():
            note(category, "the bare backbone was not asked with the options in other orders")
        if known.duplicates is None:
            note(
                category,
                "near-duplicates of the train part were not looked for",
                "; tel-eval --baselines does",
            )
        if out := sorted(bare & of.tainted.keys()):
            note(category, f"not compared with {', '.join(out)} (see the checks)")
    for (what, remedy), where in lacking.items():
        yield f"{what}: {', '.join(where)}{remedy}"


def _names(of: Category, kind: str) -> Iterator[str]:
    return (each.summary.variant.name for each in of.answers if each.summary.variant.kind == kind)


def _lowest(best: Rung) -> str:
    if best.lowest is None or best.change is None or best.change.of == best.lowest.of:
        return ""
    at, points = best.lowest.category, best.lowest.points
    return (
        f"; most in {at}, {100 * points.value:+.1f} [{100 * points.low:+.1f}, "
        f"{100 * points.high:+.1f}] of {best.lowest.of:,}"
    )


def _turns(of: Category) -> bool:
    """Return whether a category's questions have options that can be put into other orders."""
    known = CATEGORIES.get(of.answers[0].summary.category) if of.answers else None
    return known is not None and not known.labels
