"""What the results say on the reference paper's questions: Tables 1 and 2, Figures 1 to 3.

`collect` reads all backbones of a workspace; `paper_tables` and `paper_plots` show what it found.
Nothing here imports `findings`, whose report holds a `Paper`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tel_edge.eval.findings import published, sizes
from tel_edge.eval.scoring import records
from tel_edge.eval.scoring.records import Summary, Variant
from tel_edge.eval.statistics import Interval, Share, difference
from tel_edge.runtime.bundles.backbones import BACKBONES
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.questions.categories import CATEGORIES
from tel_edge.runtime.workspace import Workspace

# With fewer questions on either side a gap between the parts is not stated.
FEWEST = 30
RANKED = "3gpp_tsg"


@dataclass(frozen=True)
class Line:
    """One backbone on one category; None where it was not scored.

    `before` is the bare backbone and `after` the adapted one on the test part, `seen` the adapted
    one on the train part. `gap` is Pass@1 of `seen` less that of `after`, None also where either
    has fewer than `FEWEST` questions.
    """

    backbone: str
    category: str
    before: Summary | None
    after: Summary | None
    seen: Summary | None
    gap: Interval | None
    published: published.ModelPair | None


@dataclass(frozen=True)
class RankPoint:
    """One rank on `RANKED`: the adapter's bytes and Maj@4, None where only the paper has it."""

    rank: int
    adapter_bytes: int | None
    majority: Share | None
    published: published.Rank | None


@dataclass(frozen=True)
class Paper:
    """All that the paper's tables and figures are made of.

    `ranks` are by backbone, each sorted by rank; `notes` are sentences on what is left out.
    """

    lines: tuple[Line, ...]
    references: tuple[Summary, ...]
    ranks: Mapping[str, tuple[RankPoint, ...]]
    notes: tuple[str, ...] = ()

    def reference(self, line: Line) -> Summary | None:
        """Return the result of the backbone's large reference model on the line's category.

        It lies under the backbone's own name, or under a name that has the reference model's in
        it, and is about the same questions as `after`. Answers by letters go before answers read
        from texts.
        """
        own = [
            summary
            for summary in self.references
            if summary.category == line.category
            and _belongs(summary, line.backbone)
            and (line.after is None or _asked(summary) == _asked(line.after))
        ]
        return min(own, key=lambda s: (s.label_mass is None, s.variant.name), default=None)


def collect(workspace: Workspace, backbones: Sequence[str] | None, published: bool) -> Paper:
    """Read the results of `backbones`, by default of all that have some.

    `published` lays the paper's values beside them. Raises `InputError` if a file is broken.
    """
    home = workspace.root / "results"
    every = [
        summary
        for folder in (sorted(home.iterdir()) if home.is_dir() else ())
        if folder.is_dir()
        for summary in records.summaries(workspace, folder.name)
        if summary.part == "test" and not summary.rotated
    ]
    names = list(dict.fromkeys(s.backbone for s in every if s.variant.kind != "reference"))
    # The named ones first, in the paper's order.
    names.sort(key=lambda name: ([*BACKBONES, name].index(name), name))
    shown = tuple(names if backbones is None else backbones)
    lines: list[Line] = []
    notes: list[str] = []
    for name in shown:
        own = [s for s in every if s.backbone == name and s.variant.kind != "reference"]
        lines += _lines(workspace, name, own, published, notes)
    references = tuple(summary for summary in every if summary.variant.kind == "reference")
    if backbones is None:
        alone = {s.backbone for s in references if not any(_belongs(s, name) for name in shown)}
        notes += [
            f"{name}: the large reference model of no backbone here; scored with "
            "--reference-name it can be called like the one it is"
            for name in sorted(alone)
        ]
    ranks = {name: points for name in shown if (points := _ranks(workspace, name, published))}
    return Paper(tuple(lines), references, ranks, tuple(notes))


def _asked(summary: Summary) -> tuple[str, str]:
    return summary.dataset, summary.split


def _belongs(summary: Summary, backbone: str) -> bool:
    known = BACKBONES.get(backbone)
    wanted = _plain(known.reference.rpartition("/")[2]) if known else ""
    named = _plain(f"{summary.backbone}/{summary.variant.name}")
    return summary.backbone == backbone or bool(wanted and wanted in named)


def _plain(name: str) -> str:
    """Return a model's name as folders and servers spell it alike."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def _lines(
    workspace: Workspace,
    backbone: str,
    own: Sequence[Summary],
    with_published: bool,
    notes: list[str],
) -> list[Line]:
    """Return a line for each category that was scored, and add to the notes what was not used."""
    adapted = _adapted(summary.variant for summary in own)
    bare = _bare([s.variant for s in own if not s.variant.adapter], adapted)
    by = {(summary.variant.name, summary.category): summary for summary in own}
    found = []
    for category in [*CATEGORIES, *sorted({s.category for s in own} - set(CATEGORIES))]:
        after = by.get((adapted, category)) if adapted else None
        before = by.get((bare, category)) if bare else None
        seen = None
        if adapted:
            path = workspace.results(backbone, adapted, category, "train").with_suffix(".json")
            seen = records.read_summary(path) if path.is_file() else None
        for what, other in (("without an adapter", before), ("on the seen part", seen)):
            if not after or not other:
                continue
            alike = records.same_training(other, after)
            if _asked(other) != _asked(after) or not alike:
                scored = "was scored on another data set or split than" if alike else (
                    "has an adapter of another training than"
                )  # fmt: skip
                notes.append(
                    f"{backbone}, {category}: {other.variant.name} {what} {scored} "
                    f"{after.variant.name} and is left out"
                )
                before = None if other is before else before
                seen = None if other is seen else seen
        if before or after or seen:
            beside = published.pair(backbone, category) if with_published else None
            gap = _gap(seen, after)
            found.append(Line(backbone, category, before, after, seen, gap, beside))
    return found


def _adapted(variants: Iterable[Variant]) -> str | None:
    """Return the variant with an adapter that has lost least: the report's reference."""
    own = [variant for variant in variants if variant.adapter]
    return sizes.reference(own) if own else None


def _bare(variants: Sequence[Variant], adapted: str | None) -> str | None:
    """Return the bare variant of the adapted one's type, or else the largest."""
    names = {variant.name for variant in variants}
    alike = "base-" + (adapted or "").removeprefix("lora-")
    largest = min(variants, key=lambda v: (-v.backbone_bytes, v.name), default=None)
    return alike if alike in names else largest.name if largest else None


def _gap(seen: Summary | None, unseen: Summary | None) -> Interval | None:
    if not seen or not unseen or min(seen.questions, unseen.questions) < FEWEST:
        return None
    return difference(seen.pass1, unseen.pass1)


def _ranks(workspace: Workspace, backbone: str, with_published: bool) -> tuple[RankPoint, ...]:
    """Return the finished runs of the backbone's rank sweep, and the paper's ranks beside them.

    The sweep is called `rank-<backbone>`, or `rank` as the preset calls it.
    """
    beside = {
        row.rank: row
        for row in published.FIGURE_3
        if with_published and (row.backbone, row.category) == (backbone, RANKED)
    }
    for name in (f"rank-{backbone}", "rank"):
        files = sorted((workspace.root / "sweeps" / name / "rows").glob("*.json"))
        found = [point for path in files if (point := _point(path, backbone, beside))]
        if found:
            alone = beside.keys() - {point.rank for point in found}
            found += [RankPoint(rank, None, None, beside[rank]) for rank in alone]
            return tuple(sorted(found, key=lambda point: point.rank))
    return ()


def _point(path: Path, backbone: str, beside: Mapping[int, published.Rank]) -> RankPoint | None:
    """Return what a row of `tel-sweep` says, None if it failed or is about something else."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        # A folder's backbone stands there with its path.
        of = Path(row["options"]["backbone"]).name
        if row["error"] is not None or (of, row["category"]) != (backbone, RANKED):
            return None
        rank = int(row["options"]["rank"])
        return RankPoint(
            rank, int(row["adapter_bytes"]), Share(**row["majority"]), beside.get(rank)
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: no row of a rank sweep ({error}); run tel-sweep again") from None
