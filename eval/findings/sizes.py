"""Disk: what each type takes with all its adapters, beside a merged model each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tel_edge.eval.scoring.records import Summary, Variant
from tel_edge.runtime.bundles.formats import FORMATS

# What has lost nothing yet: the first of them that was scored.
REFERENCES = ("lora-F16", "lora-fp32")


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


def rank(format: str) -> tuple[int, str]:
    """Return the place of a format in tables and legends, one that is not known last."""
    known = list(FORMATS)
    return (known.index(format) if format in known else len(known)), format


def held_against(summaries: Sequence[Summary], names: Sequence[str]) -> tuple[str, list[str]]:
    """Return the variant that others are held against, and the categories that a decision is on.

    Those are the ones in which a variant with an adapter was scored, all of `names` where there is
    none. The variant is one that was scored on the most of them.
    """
    adapted = [s for s in summaries if s.variant.adapter] or list(summaries)
    wanted = [name for name in names if any(s.category == name for s in adapted)]
    counts = Counter(summary.variant.name for summary in adapted)
    most = max(counts.values())
    return reference(s.variant for s in adapted if counts[s.variant.name] == most), wanted


def reference(variants: Iterable[Variant]) -> str:
    """Choose one of `REFERENCES`, or the largest variant with an adapter, or else the largest."""
    made = list(variants)
    if known := [name for name in REFERENCES if any(variant.name == name for variant in made)]:
        return known[0]
    among = [variant for variant in made if variant.adapter] or made
    # By name second: answers read from texts come after those by letters.
    return min(among, key=lambda variant: (-variant.backbone_bytes, variant.name)).name


def total(variants: Iterable[Variant]) -> int:
    """Return the bytes of one type's backbone and of the adapters of several categories.

    Of merged models each category has its own.
    """
    made = list(variants)
    backbones = [variant.backbone_bytes for variant in made]
    own = sum(backbones) if made[0].merged else max(backbones)
    return own + sum(variant.adapter_bytes for variant in made)


def footprints(summaries: Sequence[Summary]) -> tuple[Footprint, ...]:
    """Return the disk of every type that has adapters."""
    made = []
    with_adapter = [s for s in summaries if s.variant.adapter and not s.variant.merged]
    for key in dict.fromkeys((s.variant.format, s.variant.quant) for s in with_adapter):
        own = [s for s in with_adapter if (s.variant.format, s.variant.quant) == key]
        # Adapters of another type than the usual one have names that go on behind the type.
        plain = min((s.variant.name for s in own), key=lambda name: (len(name), name))
        own = [s for s in own if s.variant.name == plain]
        adapters = sum({s.category: s.variant.adapter_bytes for s in own}.values())
        backbone = max(s.variant.backbone_bytes for s in own)
        tokenizer = max(s.variant.tokenizer_bytes for s in own)
        count = len({s.category for s in own})
        merged = count * (backbone - tokenizer) + tokenizer
        made.append(
            Footprint(*key, count, backbone, adapters, backbone + adapters, merged, tokenizer)
        )
    return tuple(sorted(made, key=lambda f: (rank(f.format), -f.backbone, f.quant)))
