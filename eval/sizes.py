"""Disk: what each type takes, and the smallest variant that is as good, of all and by format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tel_edge.eval.records import Summary, Variant
from tel_edge.eval.statistics import Share
from tel_edge.runtime.formats import FORMATS

# The results of each variant by its name, and within by category.
Results = Mapping[str, Mapping[str, Summary]]


@dataclass(frozen=True)
class Footprint:
    """Disk of one type, in bytes: a backbone with all adapters, or one merged model each.

    `merged` is computed, `categories` times the backbone. Of the backbone `tokenizer` is a file
    that models share, which `merged` has once; it is 0 where every model has its own inside.
    """

    format: str
    quant: str
    categories: int
    backbone: int
    adapters: int
    together: int
    merged: int
    tokenizer: int = 0


@dataclass(frozen=True)
class Smallest:
    """The smallest variant whose Pass@1 intervals all overlap the reference's.

    `bytes` is its backbone and all adapters; `bare` names the backbones without adapter whose
    intervals overlap as well, in which case the adapters show nothing.
    """

    variant: str
    bytes: int
    categories: int
    bare: tuple[str, ...]


@dataclass(frozen=True)
class Best:
    """The smallest variant of one format that answers as the reference does and overlaps it.

    `milliseconds` are its `milliseconds_p50` by category.
    """

    format: str
    variant: str
    bytes: int
    milliseconds: Mapping[str, float]

    @property
    def median(self) -> float:
        """Return the median of the categories' milliseconds."""
        return median(self.milliseconds.values())


def rank(format: str) -> tuple[int, str]:
    """Return the place of a format in tables and legends, one that is not known last."""
    known = list(FORMATS)
    return (known.index(format) if format in known else len(known)), format


def overlap(one: Share, other: Share) -> bool:
    """Return whether the two intervals have a point in common."""
    return one.low <= other.high and other.low <= one.high


def total(variants: Iterable[Variant]) -> int:
    """Return the bytes of one type's backbone and of the adapters of several categories."""
    made = list(variants)
    return max(v.backbone_bytes for v in made) + sum(v.adapter_bytes for v in made)


def footprints(summaries: Sequence[Summary]) -> tuple[Footprint, ...]:
    """Return the disk of every type that has adapters."""
    made = []
    with_adapter = [summary for summary in summaries if summary.variant.adapter]
    for key in dict.fromkeys((s.variant.format, s.variant.quant) for s in with_adapter):
        own = [s for s in with_adapter if (s.variant.format, s.variant.quant) == key]
        adapters = sum({s.category: s.variant.adapter_bytes for s in own}.values())
        backbone = max(s.variant.backbone_bytes for s in own)
        tokenizer = max(s.variant.tokenizer_bytes for s in own)
        count = len({s.category for s in own})
        merged = count * (backbone - tokenizer) + tokenizer
        made.append(
            Footprint(*key, count, backbone, adapters, backbone + adapters, merged, tokenizer)
        )
    return tuple(sorted(made, key=lambda f: (rank(f.format), -f.backbone, f.quant)))


def smallest(results: Results, reference: str) -> Smallest:
    """Find it among `results`, which are on the reference's questions."""
    held, with_adapter = _held(results, reference), _kind(results[reference]).adapter
    sizes = {
        name: _size(rows) for name, rows in held.items() if _kind(rows).adapter == with_adapter
    }
    bare = tuple(name for name in held if name not in sizes)
    name = min(sizes, key=lambda name: (sizes[name], name))
    return Smallest(name, sizes[name], len(results[reference]), bare)


def best(results: Results, reference: str) -> tuple[Best, ...]:
    """Return the best of each format that has a variant as good as the reference."""
    to = _kind(results[reference])
    found: dict[str, Best] = {}
    for name, rows in _held(results, reference).items():
        own = _kind(rows)
        # Answers that are read from texts take another time than those by letters.
        if (own.adapter, _suffix(own)) == (to.adapter, _suffix(to)):
            times = {category: summary.milliseconds_p50 for category, summary in rows.items()}
            made = Best(own.format, name, _size(rows), times)
            found[own.format] = min(
                made, found.get(own.format, made), key=lambda each: (each.bytes, each.variant)
            )
    return tuple(sorted(found.values(), key=lambda each: rank(each.format)))


def _held(results: Results, reference: str) -> Results:
    """Return the variants that overlap the reference in all its categories."""
    to = results[reference]
    return {
        name: rows
        for name, rows in results.items()
        if rows.keys() == to.keys()
        and all(overlap(summary.pass1, to[at].pass1) for at, summary in rows.items())
    }


def _kind(rows: Mapping[str, Summary]) -> Variant:
    return next(iter(rows.values())).variant


def _suffix(variant: Variant) -> str:
    """Return what the name says beside the type: how it was answered, nothing for letters."""
    return variant.name.partition(variant.quant)[2]


def _size(rows: Mapping[str, Summary]) -> int:
    return total(summary.variant for summary in rows.values())
