"""The quantization ladder: every variant's size and loss over all categories."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

from tel_edge.eval.findings import sizes
from tel_edge.eval.findings.paired import Change, pooled
from tel_edge.eval.scoring.records import Summary
from tel_edge.eval.statistics import Interval
from tel_edge.runtime.bundles.formats import FORMATS

# The order of the ladder.
KINDS = ("lora", "merged", "base", "reference")
# Results of each variant by category, and what they changed against the reference.
Results = Mapping[str, Mapping[str, Summary]]
Changes = Mapping[str, Mapping[str, Change]]


@dataclass(frozen=True)
class Lowest:
    """The category with the lowest bound, its change in points and its number of questions."""

    category: str
    points: Interval
    of: int


@dataclass(frozen=True)
class Rung:
    """One variant over all categories; shares are plain means over them.

    `bytes` is the disk of the backbone and all adapters, or of all merged models. `milliseconds` is
    the median of the categories' p50, `slowest` the largest. `change` is over the questions of all
    categories together, None without records. `losses` are the points of categories with a
    significant loss; `lowest` is the one whose bound is the lowest. `usual` says that the
    adapter, if any, is of the format's usual type, `texts` that answers were read from texts.
    `front` says that no smaller variant has a higher Pass@1; a large reference model is no part of
    it, as it is nothing to deploy.
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
    losses: Mapping[str, Interval]
    lowest: Lowest | None = None
    front: bool = False
    usual: bool = True
    texts: bool = False
    slowest: float = 0.0

    @property
    def worst(self) -> tuple[str, ...]:
        """Return the categories with a significant loss of their own."""
        return tuple(self.losses)

    @property
    def verdict(self) -> str:
        """Return that of the change; a significant loss in one category is a loss too."""
        if self.change is None:
            return "no records"
        return "loss" if self.losses else self.change.verdict


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


def rungs(results: Results, changes: Changes, categories: Collection[str]) -> tuple[Rung, ...]:
    """Return the variants that were scored on the reference's questions in all `categories`."""
    made = [
        _rung(name, {at: rows[at] for at in categories}, _only(changes.get(name, {}), categories))
        for name, rows in results.items()
        if rows.keys() >= set(categories)
    ]
    made.sort(key=lambda rung: (KINDS.index(rung.kind), -rung.bytes, rung.variant))
    own = [rung for rung in made if rung.kind != "reference"]
    fronts = {rung.variant for rung in own if not any(_beats(other, rung) for other in own)}
    return tuple(replace(rung, front=rung.variant in fronts) for rung in made)


def _only(changes: Mapping[str, Change], categories: Collection[str]) -> dict[str, Change]:
    return {at: each for at, each in changes.items() if at in categories}


def _rung(name: str, rows: Mapping[str, Summary], changes: Mapping[str, Change]) -> Rung:
    summaries = list(rows.values())
    first = summaries[0].variant
    memory = [s.memory_anonymous for s in summaries]
    known = [each for each in memory if each is not None]
    row = FORMATS.get(first.format)
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
        # One that is not known may be the largest.
        max(known) if len(known) == len(memory) else None,
        pooled(list(changes.values())) if all_there else None,
        {at: each.points for at, each in changes.items() if each.verdict == "loss"},
        _lowest(changes) if all_there else None,
        # What tel-run takes by itself asks once.
        usual=(row is None or first.adapter_quant in (None, row.usual))
        and not first.asked.startswith("orders"),
        texts=first.asked == "generate",
        slowest=max(s.milliseconds_p50 for s in summaries),
    )


def _lowest(changes: Mapping[str, Change]) -> Lowest | None:
    at = min(changes, key=lambda name: changes[name].points.low, default=None)
    return None if at is None else Lowest(at, changes[at].points, changes[at].of)


def _beats(one: Rung, other: Rung) -> bool:
    no_worse = one.bytes <= other.bytes and one.pass1 >= other.pass1
    return no_worse and (one.bytes < other.bytes or one.pass1 > other.pass1)


def by_format(made: Sequence[Rung], results: Results, reference: str) -> tuple[Best, ...]:
    """Return the best of each format, of variants that answer as the reference does."""
    to = next(iter(results[reference].values())).variant
    found: dict[str, Best] = {}
    for rung in made:
        own = next(iter(results[rung.variant].values())).variant
        # Answers that are read from texts take another time than those by letters.
        alike = (own.adapter, own.asked) == (to.adapter, to.asked)
        if alike and rung.verdict not in ("loss", "no records"):
            verdict = "reference" if rung.variant == reference else rung.verdict
            times = {at: s.milliseconds_p50 for at, s in results[rung.variant].items()}
            best = Best(rung.format, rung.variant, rung.bytes, times, verdict)
            found[rung.format] = min(
                best, found.get(rung.format, best), key=lambda each: (each.bytes, each.variant)
            )
    return tuple(sorted(found.values(), key=lambda each: sizes.rank(each.format)))
