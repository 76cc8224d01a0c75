"""The quantization ladder: every variant's size and loss, and the one to deploy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

from tel_edge.eval.findings import sizes
from tel_edge.eval.findings.paired import BOUND, Change, pooled
from tel_edge.eval.scoring.records import Summary, Variant
from tel_edge.eval.statistics import smallest_bound

# The order of the ladder.
KINDS = ("lora", "merged", "base", "reference")
# Results of each variant by category, and what they changed against the reference.
Results = Mapping[str, Mapping[str, Summary]]
Changes = Mapping[str, Mapping[str, Change]]


@dataclass(frozen=True)
class Rung:
    """One variant over all the reference's categories; shares are plain means over them.

    `bytes` is the disk of the backbone and all adapters, or of all merged models. `change` is over
    the questions of all categories together, None without records. `worst` names the categories
    with a significant loss of their own. `front` says that no smaller variant has a higher Pass@1;
    a large reference model is no part of it, as it is nothing to deploy.
    """

    variant: str
    format: str
    quant: str
    kind: str
    bytes: int
    pass1: float
    majority: float
    milliseconds: float
    memory: int | None
    change: Change | None
    worst: tuple[str, ...]
    front: bool = False

    @property
    def verdict(self) -> str:
        """Return that of the change; a significant loss in one category is a loss too."""
        if self.change is None:
            return "no records"
        return "loss" if self.worst else self.change.verdict


@dataclass(frozen=True)
class Best:
    """The smallest variant of one format without a significant loss.

    `milliseconds` are its `milliseconds_p50` by category, `verdict` is that of its rung.
    """

    format: str
    variant: str
    bytes: int
    milliseconds: Mapping[str, float]
    verdict: str

    @property
    def median(self) -> float:
        """Return the median of the categories' milliseconds."""
        return median(self.milliseconds.values())


@dataclass(frozen=True)
class Recommendation:
    """The smallest variant without a loss, and the sentences that say what it rests on.

    `variant` is the reference where no smaller one is shown to be as good.
    """

    variant: str
    bytes: int
    sentences: tuple[str, ...]


def rungs(results: Results, changes: Changes, reference: str) -> tuple[Rung, ...]:
    """Return the variants that were scored on all of the reference's questions, large first."""
    wanted = results[reference].keys()
    made = [
        _rung(name, rows, changes.get(name, {}))
        for name, rows in results.items()
        if rows.keys() == wanted
    ]
    made.sort(key=lambda rung: (KINDS.index(rung.kind), -rung.bytes, rung.variant))
    own = [rung for rung in made if rung.kind != "reference"]
    fronts = {rung.variant for rung in own if not any(_beats(other, rung) for other in own)}
    return tuple(replace(rung, front=rung.variant in fronts) for rung in made)


def _rung(name: str, rows: Mapping[str, Summary], changes: Mapping[str, Change]) -> Rung:
    summaries = list(rows.values())
    first = summaries[0].variant
    memory = [s.memory_anonymous for s in summaries if s.memory_anonymous is not None]
    all_there = changes.keys() == rows.keys()
    return Rung(
        name,
        first.format,
        first.quant,
        first.kind,
        sizes.total(s.variant for s in summaries),
        mean(s.pass1.value for s in summaries),
        mean(s.majority.value for s in summaries),
        median(s.milliseconds_p50 for s in summaries),
        max(memory, default=None),
        pooled(list(changes.values())) if all_there else None,
        tuple(at for at, each in changes.items() if each.verdict == "loss"),
    )


def _beats(one: Rung, other: Rung) -> bool:
    no_worse = one.bytes <= other.bytes and one.pass1 >= other.pass1
    return no_worse and (one.bytes < other.bytes or one.pass1 > other.pass1)


def recommend(made: Sequence[Rung], reference: str) -> Recommendation:
    """Return the smallest variant whose loss is not significant and bounded below one point."""
    to = next(rung for rung in made if rung.variant == reference)
    adapted = [rung for rung in made if rung.kind in ("lora", "merged")]
    sound = [rung for rung in adapted if rung.verdict in ("no loss", "gain")]
    best = min([*sound, to], key=lambda rung: (rung.bytes, rung.variant))
    sentences = [_sentence(best, to)]
    smaller = [rung for rung in adapted if rung.bytes < best.bytes]
    if smaller:
        sentences.append(_why(smaller))
    compared = [rung for rung in made if rung.kind == "base" and rung.change]
    bare = [rung.variant for rung in compared if rung.verdict != "loss"]
    if bare and to.kind != "base" and to.change is not None:
        sentences.append(
            f"without an adapter {', '.join(bare)} shows no significant loss either: these results "
            "do not show that the adapters help"
        )
    return Recommendation(best.variant, best.bytes, tuple(sentences))


def _sentence(best: Rung, to: Rung) -> str:
    size = f"{best.bytes / 1e6:,.1f} MB"
    if best.change is None:
        return f"{best.variant}, {size}: there are no records to compare others by"
    if best is to:
        return (
            f"recommended: {best.variant}, {size}, the reference itself; no smaller variant is "
            f"shown to lose less than {100 * BOUND:.0f} point"
        )
    if best.verdict == "gain":
        return (
            f"recommended: {best.variant}, {size}, the smallest variant without a loss; it answers "
            f"better than {to.variant} (p {best.change.p:.2g}, of {best.change.of:,} questions)"
        )
    return (
        f"recommended: {best.variant}, {size}, the smallest variant whose loss against "
        f"{to.variant} is not significant at 5 % (p {best.change.p:.2g}) and whose upper bound is "
        f"below {100 * BOUND:.0f} point ({max(0.0, -100 * best.change.points.low):.2f}, of "
        f"{best.change.of:,} questions)"
    )


def _why(smaller: Sequence[Rung]) -> str:
    known = [rung for rung in smaller if rung.change is not None]
    if not known:
        return "smaller variants have no records"
    if any(rung.verdict == "n too small" for rung in known):
        of = min(rung.change.of for rung in known if rung.change)
        return (
            f"n too small: {of:,} questions bound a loss at {100 * smallest_bound(of):.1f} points "
            "at best, even if no answer changes"
        )
    return "smaller variants: " + "; ".join(
        f"{rung.variant} {rung.verdict}, "
        f"up to {max(0.0, -100 * rung.change.points.low):.1f} points lost"
        for rung in known
        if rung.change
    )


def by_format(made: Sequence[Rung], results: Results, reference: str) -> tuple[Best, ...]:
    """Return the best of each format, of variants that answer as the reference does."""
    to = next(iter(results[reference].values())).variant
    found: dict[str, Best] = {}
    for rung in made:
        own = next(iter(results[rung.variant].values())).variant
        # Answers that are read from texts take another time than those by letters.
        alike = (own.adapter, _suffix(own)) == (to.adapter, _suffix(to))
        if alike and rung.verdict not in ("loss", "no records"):
            verdict = "reference" if rung.variant == reference else rung.verdict
            times = {at: s.milliseconds_p50 for at, s in results[rung.variant].items()}
            best = Best(rung.format, rung.variant, rung.bytes, times, verdict)
            found[rung.format] = min(
                best, found.get(rung.format, best), key=lambda each: (each.bytes, each.variant)
            )
    return tuple(sorted(found.values(), key=lambda each: sizes.rank(each.format)))


def _suffix(variant: Variant) -> str:
    """Return how the variant was answered: nothing for letters."""
    return "generate" if variant.name.endswith("-generate") else ""
