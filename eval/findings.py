"""What the files of a workspace say about a backbone: the contents of the report, unformatted."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tel_edge.eval import baselines, records, router, sizes
from tel_edge.eval.baselines import Baseline, Baselines
from tel_edge.eval.records import Summary
from tel_edge.eval.sizes import Best, Footprint, Smallest
from tel_edge.runtime.categories import CATEGORIES
from tel_edge.runtime.errors import InputError
from tel_edge.runtime.workspace import Workspace

SCHEMA_VERSION = 1
# Below this the 95 % interval of a share is wider than 19 points.
FEW = 100
# What has lost nothing yet: the first of them that was scored.
REFERENCES = ("lora-F16", "lora-fp32")


@dataclass(frozen=True)
class Row:
    """One variant on one category. `points` is its Pass@1 less the reference's, times 100.

    `points` is None where the reference was not scored on the same questions.
    """

    summary: Summary
    points: float | None

    @property
    def disk(self) -> int:
        """Return the bytes of the backbone and the adapter."""
        return self.summary.variant.backbone_bytes + self.summary.variant.adapter_bytes


@dataclass(frozen=True)
class Section:
    """One category: its variants, bare backbones first, by format, large before small."""

    category: str
    title: str
    rows: tuple[Row, ...]
    baselines: Baselines | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Training:
    """What `training.json` says of one adapter; what it does not say is None or empty.

    `curve` holds points with `step` and any of `epoch`, `loss`, `validation_loss` and
    `validation_pass1`.
    """

    category: str
    seconds: float | None
    parameters: int | None
    config: Mapping[str, Any]
    curve: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class Report:
    """Everything that the report says; `reference` is the variant that others are compared to.

    `formats` has the best variant of each format that has one as good as the reference.
    """

    backbone: str
    reference: str
    sections: tuple[Section, ...]
    footprints: tuple[Footprint, ...]
    smallest: Smallest
    formats: tuple[Best, ...]
    trainings: tuple[Training, ...]
    settings: Mapping[str, str]
    router: router.Measured | None = None


def collect(workspace: Workspace, backbone: str) -> Report:
    """Read the results of a backbone, a pure function of the files.

    They are its summaries, the trivial baselines, each adapter's `training.json` and the router's
    figures; all but the first may be missing. Raises `InputError` if there are no results or a file
    is broken.
    """
    summaries = records.summaries(workspace, backbone)
    if not summaries:
        raise InputError(
            f"{workspace.root / 'results' / backbone}: no results; "
            f"make some with: tel-eval --backbone {backbone}"
        )
    reference = _reference(summaries)
    names = [name for name in CATEGORIES if any(s.category == name for s in summaries)]
    names += sorted({s.category for s in summaries} - set(names))
    sections = tuple(_section(workspace, name, summaries, reference) for name in names)
    compared = _compared(sections)
    return Report(
        backbone=backbone,
        reference=reference,
        sections=sections,
        footprints=sizes.footprints(summaries),
        smallest=sizes.smallest(compared, reference),
        formats=sizes.best(compared, reference),
        trainings=tuple(
            training for name in names if (training := _training(workspace, backbone, name))
        ),
        settings=_settings(summaries),
        router=router.read(routed) if (routed := router.report_path(workspace)).is_file() else None,
    )


def document(report: Report) -> dict[str, Any]:
    """Return `report.json`, version 1.

    - `schema_version`, `backbone`, `reference` (the name of a variant)
    - `settings`: name to text, what the results were made with
    - `categories`: a list of `category`, `title`, `chance` (0 to 1 or null), `baselines` (a list
      of `name` and `share`), `best_baseline` (one of them or null), `notes` (sentences) and
      `variants`: a list of all fields of the summary, `disk_bytes` and `points` (Pass@1 less the
      reference's, in hundredths, or null)
    - `footprint`: a list of `format`, `quant`, `categories` and, in bytes, `backbone`,
      `adapters`, `together`, `merged`, `tokenizer` (of `backbone`; `merged` has it once)
    - `smallest`: `variant`, `bytes`, `categories`, `bare`
    - `formats`: the smallest variant of each format that overlaps the reference, where one does:
      a list of `format`, `variant`, `bytes`, `milliseconds` (category to `milliseconds_p50`)
    - `training`: a list of `category`, `seconds`, `parameters`, `config`, `curve`
    - `router`: how requests without a category are sent on (`eval.router.Measured`), or null

    A share is `right` of `of`, `value`, and the 95 % interval `low` to `high`, all in 0 to 1.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "backbone": report.backbone,
        "reference": report.reference,
        "settings": dict(report.settings),
        "categories": [_category_document(section) for section in report.sections],
        "footprint": [asdict(footprint) for footprint in report.footprints],
        "smallest": asdict(report.smallest),
        "formats": [asdict(each) for each in report.formats],
        "training": [asdict(training) for training in report.trainings],
        "router": asdict(report.router) if report.router else None,
    }


def best(made: Baselines | None) -> Baseline | None:
    """Return the baseline with the largest share, the first of equal ones."""
    return max(made.baselines, key=lambda b: b.share.value, default=None) if made else None


def variants(report: Report) -> tuple[str, ...]:
    """Return the names of all variants, in the order of the rows."""
    rows = sorted((row for section in report.sections for row in section.rows), key=_order)
    return tuple(dict.fromkeys(row.summary.variant.name for row in rows))


def formats(report: Report) -> tuple[str, ...]:
    """Return the formats of all variants, in the order of the rows."""
    made = {row.summary.variant.format for section in report.sections for row in section.rows}
    return tuple(sorted(made, key=sizes.rank))


def _category_document(section: Section) -> dict[str, Any]:
    made, top = section.baselines, best(section.baselines)
    return {
        "category": section.category,
        "title": section.title,
        "chance": made.chance if made else None,
        "baselines": [asdict(baseline) for baseline in made.baselines] if made else [],
        "best_baseline": asdict(top) if top else None,
        "notes": list(section.notes),
        "variants": [
            {**asdict(row.summary), "disk_bytes": row.disk, "points": row.points}
            for row in section.rows
        ],
    }


def _reference(summaries: Sequence[Summary]) -> str:
    """Choose one of `REFERENCES`, or the largest variant with an adapter, or else the largest."""
    made = [s.variant for s in summaries]
    if known := [name for name in REFERENCES if any(variant.name == name for variant in made)]:
        return known[0]
    among = [variant for variant in made if variant.adapter] or made
    # By name second: answers read from texts come after those by letters.
    return min(among, key=lambda variant: (-variant.backbone_bytes, variant.name)).name


def _section(
    workspace: Workspace, name: str, summaries: Sequence[Summary], reference: str
) -> Section:
    own = [summary for summary in summaries if summary.category == name]
    to = next((summary for summary in own if summary.variant.name == reference), None)
    rows = [
        Row(
            summary,
            (summary.pass1.value - to.pass1.value) * 100 if to and _same(summary, to) else None,
        )
        for summary in own
    ]
    path, made, notes = records.baselines_path(workspace, name), None, []
    if path.is_file():
        made = baselines.read(path)
        if any((made.dataset, made.part, made.split) != _questions(s)[:3] for s in own):
            made = None
            notes.append(
                "the trivial baselines on file are about other questions; run tel-eval --baselines"
            )
    else:
        notes.append("no trivial baselines to compare with; tel-eval --baselines makes them")
    title = CATEGORIES[name].title if name in CATEGORIES else name
    ordered = tuple(sorted(rows, key=_order))
    return Section(name, title, ordered, made, (*notes, *_notes(ordered, made, to)))


def _notes(
    rows: Sequence[Row], made: Baselines | None, reference: Summary | None
) -> tuple[str, ...]:
    """Return what a reader of the category's numbers must know, a sentence each."""
    notes, top = [], best(made)
    if top:
        beaten = [
            row.summary.variant.name
            for row in rows
            if row.summary.variant.adapter and top.share.value >= row.summary.pass1.low
        ]
        if beaten:
            notes.append(
                f"a trivial baseline does as well: {top.name} {top.share.value:.1%} "
                f"against {', '.join(beaten)}"
            )
    few = min(row.summary.questions for row in rows)
    if few < FEW:
        notes.append(f"{few} questions are too few to tell differences of a few points")
    if rejected := max(row.summary.rejected for row in rows):
        notes.append(f"{rejected} malformed rows of the data set left out")
    for row in rows:
        summary = row.summary
        if summary.too_long:
            notes.append(
                f"{summary.variant.name}: {summary.too_long} questions longer than the context, "
                "counted as wrong"
            )
        if summary.unparsed:
            notes.append(
                f"{summary.variant.name}: {summary.unparsed} texts give no answer, counted as wrong"
            )
        if reference and row.points is None:
            notes.append(f"{summary.variant.name}: scored on other questions, not compared")
    adrift = [
        row.summary.variant.name
        for row in rows
        if row.summary.label_mass is not None and row.summary.label_mass < 0.5
    ]
    if adrift:
        notes.append(f"less than half of the probability is on the labels: {', '.join(adrift)}")
    return tuple(notes)


def _compared(sections: Sequence[Section]) -> sizes.Results:
    """Return what was scored on the reference's questions."""
    own: dict[str, dict[str, Summary]] = {}
    for section in sections:
        for row in section.rows:
            if row.points is not None:
                own.setdefault(row.summary.variant.name, {})[section.category] = row.summary
    return own


def _training(workspace: Workspace, backbone: str, category: str) -> Training | None:
    path = workspace.adapter(backbone, category) / "training.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        seconds, parameters = found.get("seconds"), found.get("parameters")
        config, curve = found.get("config") or {}, found.get("curve") or []
        return Training(
            category,
            None if seconds is None else float(seconds),
            None if parameters is None else int(parameters),
            dict(config),
            tuple(_point(point) for point in curve if point.get("step") is not None),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not the record of a training ({error})\n"
            f"train again: tel-train --backbone {backbone} --category {category}"
        ) from None


def _point(point: Mapping[str, Any]) -> dict[str, float]:
    """Keep what can be drawn; a loss that has left the numbers is no JSON either."""
    names = ("step", "epoch", "loss", "validation_loss", "validation_pass1")
    known = {name: float(point[name]) for name in names if point.get(name) is not None}
    return {name: value for name, value in known.items() if math.isfinite(value)}


def _settings(summaries: Sequence[Summary]) -> dict[str, str]:
    """Return what the results were made with, by name; of more than three values their number."""
    found: dict[str, list[str]] = {}
    for summary in summaries:
        made = {"data set": summary.dataset, "part": summary.part, "k": summary.k}
        # The groups of `made_with` are flattened; the split is a category's own.
        made |= {**summary.made_with, "split": {summary.category: summary.split}}
        for name, text in _flat(made):
            found.setdefault(name, []).append(text)
    unique = {name: tuple(dict.fromkeys(texts)) for name, texts in found.items()}
    return {
        name: " or ".join(texts) if len(texts) <= 3 else f"{len(texts)} different values"
        for name, texts in unique.items()
    }


def _flat(made: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in made.items():
        if isinstance(value, Mapping):
            yield from _flat(value, "" if name == "settings" else f"{name} ")
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            # A SHA-256 is told apart by its beginning; the summaries hold it whole.
            yield prefix + name, text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text


def _questions(summary: Summary) -> tuple[str, str, str, int]:
    return summary.dataset, summary.part, summary.split, summary.questions


def _same(one: Summary, other: Summary) -> bool:
    return _questions(one) == _questions(other)


def _order(row: Row) -> tuple[bool, tuple[int, str], int, str]:
    variant = row.summary.variant
    return variant.adapter, sizes.rank(variant.format), -variant.backbone_bytes, variant.name
