"""`report.json`: everything that the report says, as one JSON document."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tel_edge.eval.findings.findings import Report
from tel_edge.eval.findings.ladder import Rung
from tel_edge.eval.findings.paired import Change
from tel_edge.eval.findings.paper import Line, Paper
from tel_edge.eval.findings.sections import Section, VariantRow, best
from tel_edge.eval.reports import card

SCHEMA_VERSION = 4


def document(report: Report) -> dict[str, Any]:
    """Return `report.json`, version 4; its JSON Schema is docs/report.schema.json.

    - `schema_version`, `backbone`, `part`, `reference` (the name of a variant)
    - `settings`: name to text, what the results were made with
    - `decision`: of fields of `decision.Decision`, and `commands`, the lines to type
    - `recommendation`: `variant` (null: none), `bytes`, `sentences`, the same in words
    - `ladder`: every variant over all categories, of fields of `ladder.Rung` and its `verdict`
    - `categories`: `category`, `title`, `chance`, `baselines` (`name`, `share`), `best_baseline`,
      `leakage` (`leakage.Leakage` or null), `notes`, and `variants`: all fields of the summary,
      `disk_bytes`, `calibration_error`, `trivial` and `change` (`paired.Change` and its `verdict`)
    - `footprint`, `formats`, `training`, `router`, `reliability` (variant to bins)
    - `device`: variant to what `tel-bench` measured of it (`benched.Benched`); empty: nothing
    - `checks`: what a sound pipeline does not do (`checks.Finding`); empty is good
    - `paper`: `lines`, `references`, `ranks`, `notes` of the reference paper's tables and figures
    - `parts`: category to the number of questions in train, validation and test

    A share is `right` of `of`, `value`, and the 95 % interval `low` to `high`, all in 0 to 1; an
    interval of a difference is `value`, `low`, `high` in -1 to 1. Bytes, milliseconds and nats.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "backbone": report.backbone,
        "part": report.part,
        "reference": report.reference,
        "settings": dict(report.settings),
        "decision": {
            **asdict(report.decision),
            "commands": list(card.commands(report)),
        },
        "recommendation": {
            "variant": report.decision.variant if card.commands(report) else None,
            "bytes": report.decision.bytes if card.commands(report) else 0,
            "sentences": [card.headline(report), *card.sentences(report)],
        },
        "ladder": [_rung(rung) for rung in report.ladder],
        "categories": [_category(section) for section in report.sections],
        "footprint": [asdict(footprint) for footprint in report.footprints],
        "formats": [asdict(each) for each in report.formats],
        "reliability": {
            name: [asdict(each) for each in bins] for name, bins in report.reliability.items()
        },
        "training": [asdict(training) for training in report.trainings],
        "device": {name: asdict(each) for name, each in report.device.items()},
        "checks": [asdict(finding) for finding in report.checks],
        "paper": _paper(report.paper),
        "parts": {name: list(counts) for name, counts in report.parts.items()},
        "router": asdict(report.router) if report.router else None,
    }


def _rung(rung: Rung) -> dict[str, Any]:
    return {**asdict(rung), "change": change_document(rung.change), "verdict": rung.verdict}


def change_document(change: Change | None) -> dict[str, Any] | None:
    """Return a change with its verdict, as in `report.json` and `compare.json`."""
    return {**asdict(change), "verdict": change.verdict} if change else None


def _category(section: Section) -> dict[str, Any]:
    made, top = section.baselines, best(section.baselines)
    return {
        "category": section.category,
        "title": section.title,
        "chance": made.chance if made else None,
        "baselines": [asdict(baseline) for baseline in made.baselines] if made else [],
        "best_baseline": asdict(top) if top else None,
        "leakage": asdict(section.leakage) if section.leakage else None,
        "notes": list(section.notes),
        "variants": [_variant(row) for row in section.rows],
    }


def _variant(row: VariantRow) -> dict[str, Any]:
    return {
        **asdict(row.summary),
        "disk_bytes": row.disk,
        "calibration_error": row.calibration_error,
        "trivial": row.trivial,
        "change": change_document(row.change),
    }


def _paper(paper: Paper) -> dict[str, Any]:
    return {
        "lines": [{**asdict(line), "reference": _reference(paper, line)} for line in paper.lines],
        "references": [asdict(each) for each in paper.references],
        "ranks": {name: [asdict(point) for point in of] for name, of in paper.ranks.items()},
        "notes": list(paper.notes),
    }


def _reference(paper: Paper, line: Line) -> str | None:
    """Return the name of the large model that the line's backbone is held against."""
    found = paper.reference(line)
    return found.backbone if found else None
